"""`wardround simulate --audit`: a person sees what an attacker gets, and a refuted promise ends with exit code 4."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from wardround.errors import AuditFailed
from wardround_client.audit import LEAST_TRIALS, AuditReport, AuditRow
from wardround_server.events import parsed
from wardround_simulation import audited, commands
from wardround_simulation.federation import changed, embedded
from wardround_simulation.settings import Settings
from wardround_simulation.simulate import simulate
from wardround_simulation.watch import JsonWatch, PlainWatch, RichWatch, Watch

SMALL = Settings(
    federation=changed(embedded(), rounds={"rounds": 2}, algorithm={"adapt_steps": 3}),
    base=Path(),
    out=Path(),
    hospitals=2,
    patients=(10, 12),
    shots=1,
    audit=True,
    strangers=30,
    trials=LEAST_TRIALS,
)


def simulated(out: Path, **options: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    simulate(replace(SMALL, out=out, **options), JsonWatch(stream))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, simulated(out)


def test_the_findings_come_before_done_and_done_names_their_files(
    private: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, events = private
    assert [event["event"] for event in events] == ["round"] * 3 + ["membership", "audit", "done"]
    membership, audit, done = events[-3:]
    assert done["membership"] == membership["file"] == str(out / "membership.json")
    assert done["audit"] == audit["file"] == str(out / "audit.json")
    assert len(membership["attacks"]) == 5
    assert membership["non_members"] >= 30
    assert audit["holds"] and audit["lower_bound_epsilon"] <= audit["claimed_epsilon"] <= 8
    assert [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()] == events


def test_the_report_shows_both_and_the_strangers_are_gone(private: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = private
    html = (out / "report.html").read_text()
    assert "What an attacker gets" in html and "Audit with canaries" in html
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["hospitals"]
    assert len(list((out / "hospitals").iterdir())) == 3
    assert "curve" in json.loads((out / "membership.json").read_text())["ceiling"]


@pytest.mark.parametrize("kind", [PlainWatch, RichWatch])
def test_a_person_reads_the_tables(private: tuple[Path, list[dict[str, Any]]], kind: type[Any]) -> None:
    said = io.StringIO()
    watch: Watch = kind(Console(file=said, width=140))
    for event in private[1][-3:-1]:
        watch.event(parsed(event))
    text = " ".join(said.getvalue().split())
    for words in (
        "TPR at 0.1 % FPR",
        "Deltas, all but one known",
        "at most, by the promise",
        "the audit shows at least",
    ):
        assert words in text


def test_without_privacy_there_is_no_ceiling_and_everybody_is_found(tmp_path: Path) -> None:
    out = tmp_path / "out"
    events = simulated(out, privacy=False)
    membership, audit = events[-3:-1]
    assert membership["privacy"] == audit["privacy"] == "OFF"
    assert membership["ceiling"] is None
    assert membership["attacks"][-1]["points"][0]["tpr"] == 1.0
    assert audit["skipped"] == audited.NOTHING_CLAIMED
    html = (out / "report.html").read_text()
    assert "Privacy was OFF, so nothing limits what an attack may find" in html and audited.NOTHING_CLAIMED in html
    said = io.StringIO()
    for event in (membership, audit):
        PlainWatch(Console(file=said, width=140)).event(parsed(event))
    assert "privacy is OFF" in said.getvalue() and audited.NOTHING_CLAIMED in said.getvalue()


def test_a_refuted_claim_ends_with_4_after_the_report_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P60: "The lower bound must not pass the claim"."""
    refuted = AuditRow("run", "too much is given away", "nothing", 8.0, 99.0, guesses=10, answers=10)
    monkeypatch.setattr(audited, "canaries", lambda *_: AuditReport(8.0, 1e-3, 0.95, (refuted,), 0.1))
    monkeypatch.setattr(audited, "infer_membership", lambda *_: {"skipped": "not asked here"})
    out = tmp_path / "out"
    with pytest.raises(AuditFailed, match="at least 99") as raised:
        simulated(out)
    assert raised.value.exit_code == 4
    assert "The audit refutes what is claimed" in (out / "report.html").read_text()
    assert json.loads((out / "events.jsonl").read_text().splitlines()[-1])["event"] == "done"


def test_the_option_reaches_the_simulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Settings] = []
    monkeypatch.setattr(
        "wardround_simulation.simulate.simulate", lambda settings, watch, resume: asked.append(settings)
    )
    for arguments in ([], ["--audit"]):
        result = CliRunner().invoke(
            commands.app.as_click("simulate"), [*arguments, "--out", str(tmp_path / "out")], catch_exceptions=False
        )
        assert result.exit_code == 0
    assert [settings.audit for settings in asked] == [False, True]
