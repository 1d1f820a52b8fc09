"""The labelled patients of a hospital: who may be learned from, whose scanner, and no patient on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.intake import ingest_table

from wardround.config import Federation
from wardround.errors import DataError
from wardround.models import build_model
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.cohort.store import CohortStore
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.shared_model import SharedModel

KEY = bytes(range(32))
CPU = torch.device("cpu")


def federation(labels: str = "one", classes: Sequence[str] = ("no", "yes")) -> Federation:
    task = {"label_column": "y", "classes": classes, "kind": "table", "features": ["a", "b"], "labels": labels}
    return Federation.model_validate({"name": "rows", "task": task, "model": {"family": "logistic"}})


def cohort(folder: Path, lines: Sequence[str]) -> CohortStore:
    """A table of patient, manufacturer and label, with two columns of numbers that tell the label."""
    text = ["who,manufacturer,y,a,b"]
    for number, line in enumerate(lines):
        label = line.rsplit(",", 1)[1]
        text.append(f"{line},{('yes' in label) + number / 1000},{('more' in label) + number / 1000}")
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text("\n".join(text) + "\n")
    ingest_table(
        folder / "table.csv",
        folder / "cohort",
        key=KEY,
        features=("a", "b"),
        patient_column="who",
        labels=("y",),
    )
    return CohortStore.open(folder / "cohort", withdrawn=())


def labelled(store: CohortStore, of: Federation, shots: int = 0) -> tuple[Labelled, list[str]]:
    found, findings = Labelled.of(store, of.task, build_model(of), CPU, shots=shots)
    return found, [finding.what for finding in findings]


def test_a_patient_s_manufacturer_is_that_of_most_images(tmp_path: Path) -> None:
    lines = ["p0,Acme,no", "p0,Acme,no", "p0,Zeta,no", "p1,Zeta,yes", "p1,Acme,yes", "p2,,yes", "p3,Zeta,no"]
    found, warnings = labelled(cohort(tmp_path, lines), federation())
    assert found.manufacturers == ("acme", "acme", "unknown", "zeta")
    assert found.examples.patients == len(found.pseudonyms) == 4
    assert warnings == []


def test_what_is_amiss_is_told_or_stops(tmp_path: Path) -> None:
    lines = [f"p{n},{'Acme' if n < 5 else 'Zeta'},{'no' if n < 5 else 'yes'}" for n in range(9)] + ["p9,Acme,NO"]
    store = cohort(tmp_path, lines)
    found, warnings = labelled(store, federation())
    assert found.examples.patients == 9
    assert any("'NO' (1, perhaps 'no')" in each for each in warnings)
    assert any("a possible shortcut" in each for each in warnings)
    with pytest.raises(DataError, match="fewer than 2 classes x 5 shots = 10"):
        labelled(store, federation(), shots=5)


@given(classes=st.lists(st.integers(0, 2), min_size=4, max_size=30), shots=st.integers(0, 6), draw=st.integers(0, 5))
def test_no_patient_is_on_both_sides(classes: list[int], shots: int, draw: int) -> None:
    y = torch.tensor(classes)
    z = torch.arange(float(len(y))).unsqueeze(1)
    examples = Examples(z=z, y=y, patient=torch.arange(len(y)), summary=z, classes=3)
    everybody = Labelled(examples, tuple(map(str.encode, map(str, range(len(y))))), tuple(map(str, range(len(y)))))
    support, query = everybody.split(shots, draw)
    assert sorted((*support.pseudonyms, *query.pseudonyms)) == sorted(everybody.pseudonyms)
    for label in range(3):
        there = classes.count(label)
        assert int((support.examples.y == label).sum()) == min(shots or there, there // 2)
    for side in (support, query):
        assert [float(name) for name in side.manufacturers] == side.examples.z[:, 0].tolist(), "they go with their rows"
    assert query.pseudonyms == everybody.without(support.pseudonyms).pseudonyms


def test_findings_each_there_or_not_are_adapted_to_and_judged(tmp_path: Path) -> None:
    """Multi-label: a cell holds several findings, or none of them."""
    cells = ["yes;more", "yes", "more", "none"]
    store = cohort(tmp_path, [f"p{n},Acme,{cells[n % 4]}" for n in range(40)])
    several = federation("several", ("yes", "more"))
    model = several.algorithm.extended(build_model(several))
    everybody, warnings = labelled(store, several)
    assert any("'none' (10)" in each for each in warnings)
    support, query = everybody.split(0, 0)
    shown = support.examples.targets
    assert support.examples.patients == 20
    assert int(shown[:, 0].sum()) == 10, "half of those who show the first of two findings as rare as each other"
    assert int((shown.sum(1) == 0).sum()) == 5, "who shows nothing is a class too"

    release = Release("run", several.digest, 1, model.initial(), torch.zeros(2), torch.ones(2))
    start = SharedModel(several, Path(), release, model, release.theta, new_classes=False)
    made = AdaptedModel.learned("several", start, support, recipe="", shots=0, seed=0)
    learner = made.learner
    assert learner.score(learner.unadapted(), query.examples) == pytest.approx(0.5)
    assert learner.score(made.fitted, query.examples) == 1
    judged = learner.report(made.fitted, query.examples, query.manufacturers)
    accuracy = judged.metrics["balanced_accuracy"]
    assert accuracy is not None
    assert accuracy.value == 1

    labels, classes = learner.loss.labels, several.task.classes
    rows = ([0.9, 0.6], [0.1, 0.7], [0.2, 0.3])
    assert [labels.prediction(probabilities, classes) for probabilities in rows] == ["yes;more", "more", "none"]


def test_variants_are_learned_from_with_the_weight_of_their_patient() -> None:
    from wardround_client.personal.learner import shots_of

    z = torch.arange(6.0).view(3, 2)
    examples = Examples(
        z=z, y=torch.tensor([0, 1, 1]), patient=torch.tensor([0, 1, 1]), summary=z, classes=2,
        augmented=10 + z.unsqueeze(1),
    )  # fmt: skip
    shots = shots_of(examples)
    assert shots.x[:, 0].tolist() == [0, 10, 2, 12, 4, 14]
    assert shots.y.tolist() == [0, 0, 1, 1, 1, 1]
    assert shots.patient.tolist() == [0, 0, 1, 1, 1, 1]
    assert np.allclose(shots.weight.tolist(), [0.5, 0.5, 0.25, 0.25, 0.25, 0.25])
