"""The promise itself: what a price knows, what a hospital's program can do, and what two hospitals that differ in their
patients alone let others see. docs/privacy-specification.md gives each sentence its tests.
"""

from __future__ import annotations

import ast
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import rounds
from tests.intake import ingest_table

from wardround.accountant import Answers, calibrate, epsilon, rows_for
from wardround.config import Federation, Privacy
from wardround.labels.one import kind as one_class
from wardround.schedule import Schedule
from wardround.toml import loads
from wardround.wire import RoundReply
from wardround_client.config import HospitalConfig
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy import mechanism
from wardround_client.round import _own_prior, answer

ROOT = Path(__file__).parents[2]
DECLARED = 40
HOSPITAL = f'[hospital]\nname = "north"\ndeclared_patients = {DECLARED}\n'
FEDERATION = """
name = "heart"
[task]
label_column = "sick"
classes = ["no", "yes"]
kind = "table"
features = ["age", "chol"]
centre = [55.0, 240.0]
spread = [15.0, 50.0]
[model]
family = "logistic"
[algorithm]
local_steps = 2
[rounds]
rounds = 3
evaluate_every = 3
"""


@dataclass(frozen=True)
class Site:
    """A hospital with an approved agreement."""

    hospital: Hospital
    agreement: Agreement


def site(folder: Path, patients: int, *, classes: tuple[str, ...] = ("no", "yes"), visits: int = 2) -> Site:
    """A hospital that declares 40 patients and has so many, with `visits` rows each."""
    hospital = Hospital.create(folder, HOSPITAL)
    dice = random.Random(patients)
    rows = [
        f"p{patient},{dice.gauss(55, 15):.1f},{dice.gauss(240, 50):.1f},{classes[patient % len(classes)]}"
        for patient in range(patients)
        for _ in range(visits)
    ]
    (folder / "heart.csv").write_text("\n".join(["who,age,chol,sick", *rows]) + "\n")
    ingest_table(
        folder / "heart.csv", folder / "cohort",
        key=hospital.patients.key, features=("age", "chol"), patient_column="who",
        labels=("sick",),
    )  # fmt: skip
    (folder / "federation.toml").write_text(FEDERATION)
    return Site(hospital, hospital.approvals.approve(folder / "federation.toml"))


def run(at: Site) -> list[bytes]:
    """A whole run's replies."""
    plans = at.agreement.schedule.rounds
    return [answer(at.hospital, rounds.request(at.agreement, plan.number)) for plan in plans]


def read(at: Site, replies: list[bytes]) -> list[RoundReply]:
    plans = at.agreement.schedule.rounds
    return [rounds.read(at.agreement, blob, plan.number) for blob, plan in zip(replies, plans, strict=True)]


def reserved(at: Site) -> list[list[list[float]]]:
    return [list(entry.body["rows"]) for entry in at.hospital.ledger.entries() if entry.kind == "reserved"]


@given(declared=st.integers(1, 10**9))
def test_delta_is_just_below_one_tenth_of_a_declared_patient(declared: int) -> None:
    """P4: "delta is 1/(10 x declared patients + 1), just below 1/(10 x declared patients)"."""
    config = loads(f'[hospital]\nname = "n"\ndeclared_patients = {declared}\n', HospitalConfig, name="hospital.toml")
    assert config.delta == 1 / (10 * declared + 1)
    assert config.delta < 1 / (10 * declared)


def test_a_hospital_s_own_delta_is_taken() -> None:
    """P4: "unless the hospital itself writes another"."""
    text = '[hospital]\nname = "n"\ndeclared_patients = 400\n[budget]\ndelta = 1e-6\n'
    assert loads(text, HospitalConfig, name="hospital.toml").delta == 1e-6


@pytest.mark.parametrize("change", ["quorum = 9", "deadline_s = 5.0"])
def test_a_price_knows_nothing_of_the_other_hospitals(change: str) -> None:
    """P5: "nothing is deducted for sampling hospitals or for the other hospitals' noise"."""

    def price(text: str) -> float:
        federation = loads(text, Federation, name="federation.toml")
        schedule = Schedule.of(federation)
        calibration = calibrate(schedule, federation.privacy, declared_patients=DECLARED, delta=1e-3)
        return epsilon([row for plan in schedule.rounds for row in rows_for(calibration, plan)], 1e-3)

    assert price(FEDERATION) == price(f'{FEDERATION}{change}\n[outer]\noptimizer = "yogi"\nweighting = "uniform"\n')


def test_a_hospital_s_wheel_holds_no_way_to_answer_without_noise() -> None:
    """P6: "exact answers live in the simulation's package, which a hospital's wheel does not hold"."""
    project = tomllib.loads((ROOT / "deploy" / "hospital" / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert set(packed.values()) == {"wardround", "wardround_flower", "wardround_client"}
    sources = [file for folder in packed for file in (ROOT / "deploy" / "hospital" / folder).resolve().rglob("*.py")]
    cohorts = []
    for file in sources:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                assert not [name for name in names if name.startswith(("wardround_simulation", "wardround_server"))], (
                    file
                )
            if isinstance(node, ast.ClassDef):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                if {"gradient", "sum"} <= methods:
                    cohorts.append(f"{file.name}:{node.name}")
    # A rehearsal's patients are invented and its answers zeros; the audit passes on what the private one answers.
    protocol, private = "__init__.py:Cohort", "private_cohort.py:PrivateCohort"
    assert set(cohorts) == {protocol, private, "rehearsal.py:Rehearsal", "walls.py:_InUnits"}


def test_hospitals_that_differ_in_their_patients_alone_look_alike(tmp_path: Path) -> None:
    """P8, P46, P47: "nothing computed from the true number of patients or images enters"."""
    few, many = site(tmp_path / "few", 12, visits=1), site(tmp_path / "many", 90, visits=5)
    ours, theirs = run(few), run(many)
    assert [len(blob) for blob in ours] == [len(blob) for blob in theirs]
    assert [reply.header for reply in read(few, ours)] == [reply.header for reply in read(many, theirs)]
    assert few.agreement.calibration == many.agreement.calibration
    assert reserved(few) == reserved(many)


@pytest.mark.parametrize("classes", [("yes",), ("neither",)])
@pytest.mark.parametrize("patients", [1, 12])
def test_whether_a_round_is_answered_does_not_depend_on_a_patient(
    tmp_path: Path, patients: int, classes: tuple[str, ...]
) -> None:
    """P56: "a cohort of one class, of one patient or of nobody is answered about like any other"."""
    odd, usual = site(tmp_path / "odd", patients, classes=classes), site(tmp_path / "usual", 40)
    replies = read(odd, run(odd))
    assert [reply.header for reply in replies] == [reply.header for reply in read(usual, run(usual))]
    assert all(reply.header.refusal is None and reply.answer.std() > 0 for reply in replies)


def test_what_was_forecast_is_what_the_ledger_holds(tmp_path: Path) -> None:
    """P27, P41, P53: a run's rows follow from the approved copy alone, and were known before it."""
    at = site(tmp_path / "home", 40)
    plans, calibration = at.agreement.schedule.rounds, at.agreement.calibration
    forecast: list[tuple[Answers, ...]] = [rows_for(calibration, plan) for plan in plans]
    run(at)
    held = [tuple(Answers(noise, rate, int(count)) for noise, rate, count in rows) for rows in reserved(at)]
    assert held == forecast
    delta = at.hospital.config.delta
    assert at.hospital.ledger.spent(delta) == epsilon([row for rows in forecast for row in rows], delta)


def test_a_class_prior_is_made_of_released_counts_and_of_nothing_else(tmp_path: Path) -> None:
    """P52: "class priors are computed from released answers, never from the data"."""
    at = site(tmp_path / "home", 40)
    assert _own_prior(at.hospital, rounds.RUN, at.agreement) is None
    released = read(at, run(at))[0].answer
    expected = one_class.prior(torch.from_numpy(released[:2].copy()), 40)
    prior = _own_prior(at.hospital, rounds.RUN, at.agreement)
    assert prior is not None and torch.equal(prior, expected)


def test_the_default_is_one_image_of_each_drawn_patient() -> None:
    """P9: "m is public, and 1 by default"."""
    assert Privacy().images_per_patient == 1


def test_each_normal_number_is_a_sum_of_two_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """P51: "a sum of two independent draws a coordinate". A Box-Muller draw is made of two uniforms and gives two
    coordinates; two coordinates that are each a sum of two draws are made of four, and every one of them moves both.
    """

    def normal(uniforms: list[float]) -> torch.Tensor:
        monkeypatch.setattr(mechanism, "uniform", lambda size: torch.tensor(uniforms[:size], dtype=torch.float64))
        return mechanism.standard_normal(2)

    base = [0.21, 0.63, 0.34, 0.82]
    for place in range(4):
        changed = [value + 0.01 * (place == other) for other, value in enumerate(base)]
        assert (normal(changed) != normal(base)).all(), place
