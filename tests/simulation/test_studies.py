"""Whole studies: outlines, places, and scans with a table beside them, learned by every kind of method.

The hospitals write what a PACS would hold (segmentations beside images, series of slices), once for all methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tables import Called

from wardround.config import Federation
from wardround.labels import LABEL_KINDS
from wardround.text import capital
from wardround_client.hospital import Hospital
from wardround_client.personal.labelled import Labelled
from wardround_client.privacy.ledger import Ledger
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.report.data import read_run
from wardround_server.report.page import page
from wardround_server.rounds import run
from wardround_server.words import facts
from wardround_simulation.evaluate import learner
from wardround_simulation.federation import changed, embedded, to_toml, with_algorithm
from wardround_simulation.phantoms import for_task, make_profiles
from wardround_simulation.sites import Site, prepare, synthetic_sites

PATIENTS = 8
METHODS = ("fedavg", "reptile", "fomaml", "prototypical", "ridge")
CASES = [("outline", each) for each in METHODS] + [("scan-and-patient", each) for each in METHODS]
CASES += [("place", "ridge")]


@dataclass(frozen=True)
class Studies:
    federation: Federation
    sites: list[Site]


def small(study: str) -> Federation:
    federation = embedded(study)
    task: dict[str, Any] = {"image_size_px": 32}
    if federation.task.inputs:
        inputs = [each.model_dump(mode="json") for each in federation.task.inputs]
        task["inputs"] = [{**each, "image_size_px": 32} if each["kind"] != "table" else each for each in inputs]
    rounds = {"rounds": 2, "evaluate_every": 2, "quorum": 2}
    privacy = {"patients_per_episode": 4, "epsilon": 60.0}
    return changed(federation, task=task, model={"features": 8}, rounds=rounds, privacy=privacy)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Studies]]:
    made = {}
    for study in dict.fromkeys(study for study, _ in CASES):
        federation = small(study)
        profiles = [replace(for_task(each, federation.task), patients=PATIENTS) for each in make_profiles(3, seed=2)]
        sites = synthetic_sites(profiles, tmp_path_factory.mktemp(study))
        prepare(sites, federation, compute="cpu", step=lambda *_: None)
        made[study] = Studies(federation, sites)
    yield made


@pytest.mark.parametrize(("study", "method"), CASES)
def test_a_study_is_learned_from_privately_and_used_at_home(
    study: str, method: str, studies: dict[str, Studies], tmp_path: Path
) -> None:
    federation = with_algorithm(studies[study].federation, method)
    file = tmp_path / "federation.toml"
    file.write_text(to_toml(federation))
    hospitals = [Hospital.open(site.home, ledger=Ledger(None)) for site in studies[study].sites]
    for hospital in hospitals:
        hospital.approvals.approve(file)
    *members, stranger = hospitals
    agreement = stranger.approvals.preview(file)
    checkpointer = Checkpointer(tmp_path)
    events = list(run(agreement.federation, agreement.model, Called(members), checkpointer, run_name="spring"))
    ended = [each for each in events if isinstance(each, RoundEnded)]
    questions = [each.question for each in ended]
    assert questions[0] == "statistics" and len(questions) == ended[0].rounds
    assert "confusion" in questions, "what was learned is judged privately"
    (tmp_path / "events.jsonl").write_text("\n".join(each.line() for each in events) + "\n")
    shown = [*(facts(each) for each in ended), page(read_run(tmp_path))]
    named, judged = LABEL_KINDS[federation.task.labels].evaluated, ended[questions.index("confusion")]
    assert (named in facts(judged)) == (judged.accuracy is not None) and f"{capital(named)} by round" in shown[-1]
    assert not federation.task.dense or not any("accuracy" in each.lower() for each in shown)

    state = checkpointer.load(run="spring", federation=federation.digest)
    assert state is not None
    model = learner(agreement, state, torch.device("cpu"))
    everybody, _ = Labelled.of(stranger.patients.cohort(), federation.task, agreement.model, torch.device("cpu"))
    support, query = everybody.split(2, seed=0)
    assert 0 <= model.score(model.adapt(support.examples), query.examples) <= 1


def test_what_the_hospitals_hold_is_what_the_task_wants(studies: dict[str, Studies]) -> None:
    shapes = {}
    for study, made in studies.items():
        store = Hospital.open(made.sites[0].home, ledger=Ledger(None)).patients.cohort()
        shapes[study] = store.inputs.shape[1:]
        assert len(set(store.pseudonyms)) == PATIENTS, "each phantom patient is in the cohort"
        if made.federation.task.dense:
            planes = store.inputs[:][:, -1]
            assert 0 < (planes > 0).mean() < 0.5, "disease covers a part of the images"
    image = (2, 32, 32)  # and its plane
    assert shapes == {"outline": image, "place": image, "scan-and-patient": (6 * 32 * 32 + 2,)}
