"""Outlines: Dice of patients at the images' own resolution, alike for everybody; and the command on a few patients."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import outlines
import segmentation
from federated import learned
from hospitals import agreed
from outlines import CUTS, OutlinedTarget, cells_of, dice, shares, thinned
from real_data import DATA, Outlined, glioma, polyps, vessels
from rows import STAND_INS, Row, rows
from segmentation import Organ
from wardround.config import Federation, ModelChoice
from wardround.models.head import EncoderHead
from wardround.task import Task
from wardround_client.cohort.examples import Examples

SIZE, CELL = 16, 4
SIDE = SIZE // CELL
real = pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")


def hospital(name: str, patients: int, seed: int) -> Outlined:
    """Two images each, on which a bright square is inside."""
    numbers = np.random.default_rng(seed)
    inside = np.zeros((2 * patients, SIZE, SIZE), bool)
    for each, (row, column) in zip(inside, numbers.integers(0, 9, (2 * patients, 2)), strict=True):
        each[row : row + 7, column : column + 7] = True
    noise = numbers.integers(0, 60, (2 * patients, 3, SIZE, SIZE))
    images = (noise + 150 * inside[:, None]).astype(np.uint8)
    return Outlined(name, images, inside, np.ones_like(inside), np.arange(patients).repeat(2))


def target(site: Outlined) -> OutlinedTarget:
    """What the encoder gives of a cell is which part of it is inside."""
    y = shares(site, CELL)
    examples = cells_of(y, y, site.patient, SIDE, 4)
    return OutlinedTarget("new", ("out", "in"), examples, examples, site, SIDE)


class Nothing:
    """An encoder of what is encoded."""

    features, fingerprint = 2, "nothing"

    def __call__(self, x: Tensor) -> Tensor:
        return x


def knowing(support: Examples) -> Callable[[Tensor], Tensor]:
    return lambda z: z


def test_who_knows_the_cells_outlines_well_and_who_knows_nothing_does_not() -> None:
    here = target(hospital("new", 6, 0))
    assert dice(knowing, here, 2, 0)["dice"] > 0.8
    assert dice(lambda support: lambda z: torch.full((len(z), 2), 0.5), here, 2, 0)["dice"] < 0.5


def test_where_the_cut_lies_is_chosen_on_the_support_alone() -> None:
    """A model whose probabilities are all too small is as good as another, once there is a support."""
    here = target(hospital("new", 6, 0))
    timid = lambda support: lambda z: 0.3 * z  # noqa: E731
    assert dice(timid, here, 2, 0)["dice"] == pytest.approx(dice(knowing, here, 2, 0)["dice"], abs=0.1)
    assert dice(timid, here, 0, 0)["dice"] == 0
    assert 0 < min(CUTS) < max(CUTS) < 1


def test_everybody_is_judged_on_the_same_supports_and_no_patient_on_both_sides() -> None:
    site = hospital("new", 6, 0)
    here, seen = target(site), []
    number = torch.arange(len(here.examples.z)).double().unsqueeze(1).expand(-1, 2)
    here = OutlinedTarget(
        "new", ("out", "in"), cells_of(number, here.examples.y, site.patient, SIDE, 4), here.raw, site, SIDE
    )

    def predictor(support: Examples) -> Callable[[Tensor], Tensor]:
        learned = set(site.patient[(support.z[:, 0].long() // SIDE**2).numpy()].tolist())
        shown: list[set[int]] = []
        seen.append((learned, shown))

        def probabilities(z: Tensor) -> Tensor:
            shown.append(set(site.patient[(z[:, 0].long() // SIDE**2).numpy()].tolist()))
            return torch.full((len(z), 2), 0.5)

        return probabilities

    for _ in range(2):
        dice(predictor, here, 2, 3)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first == second
    for taught, (chosen_on, judged_on) in first:
        assert len(taught) == 2
        assert chosen_on == taught
        assert not judged_on & taught


def test_what_nobody_outlined_is_neither_learned_nor_judged() -> None:
    site = hospital("new", 4, 0)
    known = site.known.copy()
    known[:, :8] = False
    half = Outlined("new", site.images, site.inside & known, known, site.patient)
    assert set(shares(half, CELL).sum(1).tolist()) == {0.0, 1.0}
    everywhere = lambda support: lambda z: torch.ones(len(z), 2)  # noqa: E731
    judged = dice(everywhere, target(half), 1, 0)["dice"]
    assert judged > dice(everywhere, target(site), 1, 0)["dice"] / 2
    area = half.inside.sum() / known.sum()
    assert judged == pytest.approx(2 * area / (1 + area), abs=0.2)


def test_a_thinned_hospital_keeps_its_patients_and_its_cells_in_their_order() -> None:
    examples = target(hospital("new", 4, 0)).examples
    number = torch.arange(len(examples.z)).float().unsqueeze(1)
    few = thinned(cells_of(number, examples.y, np.arange(4).repeat(2), SIDE, 4), torch.tensor([2, 3, 6]), 5, 0)
    assert (few.patients, few.cells, len(few.z)) == (2, 5, 15)
    assert few.z.flatten().tolist() == sorted(few.z.flatten().tolist())
    assert set((few.z.flatten().long() // SIDE**2).tolist()) == {2, 3, 6}


FEDERATED = [row for row in rows((2, 2)) if row.kind == "federated" and STAND_INS not in row.name]


@pytest.mark.parametrize("row", FEDERATED, ids=lambda row: row.name)
def test_every_method_learns_outlines_in_private_and_at_home(row: Row) -> None:
    """A cell is of several classes in part, which no method may take for one class."""
    trial = replace(row.private[0], rounds=1)
    task = Task(label_column="y", classes=("out", "in"), labels="mask", image_size_px=SIZE, cells_per_image=4)
    choice = ModelChoice(features=2, embedding=trial.embedding)
    federation = Federation(name="test", task=task, model=choice, **agreed(row.algorithm, trial, 8.0))
    model = federation.algorithm.extended(EncoderHead.of(Nothing(), 2, trial.embedding))
    cohorts = {name: target(hospital(name, 4, seed)).examples for seed, name in enumerate(("one", "two"))}
    learner = learned(federation, model, cohorts, private=True)
    here = cohorts["one"]
    found = learner.probabilities(learner.adapt(here.subset(here.patient < 2)), here.z)
    assert found.isfinite().all()
    assert found.sum(1).allclose(torch.ones(len(found)))


def test_the_command_measures_a_few_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(data: Path) -> list[Outlined]:
        return [hospital(name, 4, seed) for seed, name in enumerate(("one", "two"))]

    monkeypatch.setattr(segmentation, "ORGANS", {"squares": Organ(few, ("out", "in"), SIZE, CELL, 2)})
    monkeypatch.setattr(outlines, "DRAWS", 1)
    every = [row for row in rows((2, 2)) if row.name in ("local only", "FedAvg + fine-tune")]
    monkeypatch.setattr("rows.TRIALS", 1)
    brief = [replace(row, exact=row.exact[:1], private=row.private[:1]) for row in every]
    monkeypatch.setattr(segmentation, "all_rows", lambda: brief)
    names = [row.name for row in brief]
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--study", "hospital one", "--seeds", "2"]
    segmentation.main([*options, "--epsilon", "none", "8", "--rows", *names])
    printed = capsys.readouterr().out
    assert "### squares, new hospital one: one, 1 shot" in printed
    assert "Dice" in printed
    assert all(f"| {name} | " in printed for name in names)


@real
def test_the_real_hospitals_are_read() -> None:
    data = Path(os.environ[DATA])
    for sites, numbers in (
        (polyps(data, 6), {"kvasir": 1000, "clinicdb": 29}),
        (glioma(data, 12), {"cs": 16, "du": 45, "fg": 14, "ht": 34}),
        (vessels(data, 256), {"drive": 40, "stare": 20, "chase": 14}),
    ):
        assert {site.name: int(site.patient.max()) + 1 for site in sites} == numbers
        for site in sites:
            assert site.images.shape[2:] == site.inside.shape[1:] == site.known.shape[1:]
            assert 0 < site.inside[site.known].mean() < 0.3
