"""The audit: honest code passes, and each planted mistake is refuted by the experiment that is made for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.audit.planted import BUGS, SAMPLING_BUGS, Bug

from wardround.cli import run
from wardround.errors import AuditFailed, ConfigError, PrivacyError
from wardround_client.audit import AuditReport, audit
from wardround_client.audit.report import AuditRow
from wardround_client.config import HospitalConfig, Identity
from wardround_client.consent.agreement import Agreement
from wardround_client.privacy import mechanism
from wardround_simulation.federation import changed, embedded

DECLARED, DELTA = 200, 1 / 2001
SURE = 1 - 1e-6  # at this confidence honest code is refuted by chance less than once in a million audits


@pytest.fixture(autouse=True)
def fewer_canaries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time; how near the bound comes to the claim is asked of as many as there are."""
    if "bound" not in request.node.name:
        monkeypatch.setattr(import_module("wardround_client.audit.whole_run"), "CANARIES", 300)


@lru_cache
def agreement(*, family: str = "encoder-head", patients_per_step: int = 0, algorithm: str = "reptile") -> Agreement:
    federation = changed(
        embedded(),
        task={"image_size_px": 16 if family == "conv4" else 32},
        model={"family": family, "width": 8, "features": 8},
        privacy={"patients_per_step": patients_per_step},
        algorithm={"name": algorithm},
        rounds={"rounds": 10, "evaluate_every": 5},
    )
    return Agreement.of(federation, HospitalConfig(hospital=Identity(name="north", declared_patients=DECLARED)), Path())


def audited(terms: Agreement, trials: int, only: tuple[str, ...] = (), confidence: float = 0.95) -> AuditReport:
    return audit(terms, declared_patients=DECLARED, delta=DELTA, trials=trials, only=only, confidence=confidence)


def check_found(terms: Agreement, bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    broken = audited(terms, bug.trials, (bug.found_by,))
    assert bug.found_by in broken.refuted, broken.to_json()
    with pytest.raises(AuditFailed, match=bug.found_by):
        broken.check()


@pytest.mark.parametrize("name", BUGS)
def test_the_audit_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P60: "the audit must CATCH planted bugs"."""
    check_found(agreement(family="conv4" if BUGS[name].conv4 else "encoder-head"), BUGS[name], monkeypatch)


@pytest.mark.parametrize("name", SAMPLING_BUGS)
def test_the_audit_finds_where_patients_are_sampled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_found(agreement(patients_per_step=32), SAMPLING_BUGS[name], monkeypatch)


def test_honest_code_passes_the_whole_audit() -> None:
    """P60: "The lower bound must not pass the claim"."""
    report = audited(agreement(), 300, confidence=SURE)
    assert report.holds, report.to_json()
    names = "run one_run repeat images companions model tensor episodes class_means confusion statistics"
    assert [row.name for row in report.rows] == [*names.split(), "alone", "refusals", "retries"]
    report.check()


@pytest.mark.parametrize(
    ("terms", "only"),
    [
        (lambda: agreement(patients_per_step=32), ("run", "sampling")),
        (lambda: agreement(family="conv4"), ("model", "tensor")),
        (lambda: agreement(algorithm="maml"), ("run", "repeat")),
        (lambda: agreement(algorithm="maml", patients_per_step=32), ("run",)),
    ],
    ids=["a sample", "conv4", "episodes", "sampled episodes"],
)
def test_honest_code_passes_what_is_its_own(terms: Callable[[], Agreement], only: tuple[str, ...]) -> None:
    report = audited(terms(), 200, only, SURE)
    assert report.holds, report.to_json()
    assert {row.name for row in report.rows} - {"one_run"} == set(only)


def test_the_bound_of_the_whole_run_is_near_the_claim() -> None:
    report = audited(agreement(), 400, ("run",))
    assert 0.75 * report.claimed_epsilon < report.lower_bound_epsilon <= report.claimed_epsilon
    assert report.claimed_epsilon == pytest.approx(8, rel=1e-3)
    assert "claimed epsilon 8.00 at delta 0.0005; the audit shows at least" in report.headline


def test_the_bound_of_a_run_about_samples_is_no_small_part_of_the_claim() -> None:
    report = audited(agreement(patients_per_step=32), 400, ("run",))
    assert 0.25 * report.claimed_epsilon < report.lower_bound_epsilon <= report.claimed_epsilon


def test_a_report_is_plain_json_with_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS["noise off"].plant(monkeypatch)
    report = audited(agreement(), 200, ("run", "images", "statistics"))
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["holds"] is False
    assert told["refuted"][0] == "run"
    assert [row["name"] for row in told["experiments"]] == ["run", "one_run", "images", "statistics"]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_answers_that_are_not_finite_end_in_a_verdict(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "noised", lambda total, std: torch.full_like(total, value).float())
    assert all(
        math.isfinite(row.lower_bound_epsilon)
        for row in audited(agreement(), 200, ("run", "repeat", "statistics")).rows
    )


def test_progress_ends_at_the_number_that_was_announced() -> None:
    seen: list[tuple[str, int, int]] = []
    terms = agreement(patients_per_step=32)
    names = ("run", "sampling", "repeat", "episodes")
    audit(
        terms,
        declared_patients=DECLARED,
        delta=DELTA,
        trials=200,
        only=names,
        progress=lambda *step: seen.append(step),
    )
    assert seen[-1][1] == seen[-1][2]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert list(dict.fromkeys(name for name, _, _ in seen)) == list(names)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trials": 3}, "3 trials"),
        ({"confidence": 1.0}, "confidence of 1.0"),
        ({"only": ("runs",)}, "no experiment of this agreement is called runs"),
    ],
)
def test_an_impossible_audit_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        audit(agreement(), declared_patients=DECLARED, delta=DELTA, **wrong)


def test_a_refuted_claim_is_a_privacy_error_that_names_the_experiment_and_both_numbers() -> None:
    row = AuditRow("images", "each image is clipped", "Gaussian noise", 1.0, 2.5, 100, 100)
    with pytest.raises(PrivacyError, match=r"images .*at least 2\.50 where 1\.00 is claimed.*Next: ") as caught:
        AuditReport(8.0, DELTA, 0.95, (row,), 1.0).check()
    assert caught.value.exit_code == 4


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hospital that has approved one federation and holds no patient at all."""
    home = tmp_path / "home"
    assert run(["hospital", "init", str(home), "--name", "north", "--patients", str(DECLARED)]) == 0
    federation = tmp_path / "federation.toml"
    federation.write_text(
        'name = "test"\n[task]\nlabel_column = "sick"\nclasses = ["no", "yes"]\nkind = "table"\n'
        'features = ["a", "b"]\n[model]\nfamily = "logistic"\n[rounds]\nrounds = 4\n'
    )
    assert run(["hospital", "approve", str(home), str(federation), "--yes"]) == 0
    return home


def test_the_command_reads_no_patient_and_leaves_the_ledger_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    (digest,) = (folder.name for folder in (home / "approved").iterdir())
    capsys.readouterr()
    assert run(["hospital", "audit", str(home), digest[:8], "--trials", "200"]) == 0
    out = capsys.readouterr().out
    assert "the audit shows at least" in out
    assert "No real patient was read" in out
    assert digest[:12] in out
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("named", ["123456789", "abc", "no-such.toml"])
def test_a_federation_that_is_not_there_is_refused(home: Path, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hospital", "audit", str(home), named]) == 2
    assert named in capsys.readouterr().err


def test_the_command_ends_with_4_when_a_claim_is_refuted(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    BUGS["noise off"].plant(monkeypatch)
    capsys.readouterr()
    assert run(["hospital", "audit", str(home), str(home.parent / "federation.toml"), "--trials", "200", "--json"]) == 4
    out, err = capsys.readouterr()
    told, failed = (json.loads(line) for line in (out + err).splitlines())
    assert told["event"] == "audit"
    assert not told["holds"]
    assert failed["error"] == "AuditFailed"
    assert "run (" in failed["message"]
