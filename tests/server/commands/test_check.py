"""`coordinator check`: who is there, who has approved, what a run costs, before anybody pays for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.server.commands.test_commands import call
from tests.server.test_hospitals import card

from wardround.config import load_federation
from wardround.errors import QuorumMissed
from wardround.wire import Answered
from wardround_server.answers import AnswerBook
from wardround_server.commands import app
from wardround_server.events import RoundEnded, RunStarted
from wardround_server.hospitals import LastSeen, Registry


@pytest.fixture
def home(tmp_path: Path) -> Path:
    call("init", tmp_path)
    for name, patients in (("anna", 400), ("bert", 60), ("carl", 100)):
        Registry(tmp_path).add(card(name, patients=patients))
    Registry(tmp_path).set_nodes({"anna": 1, "bert": 2, "carl": 3})
    return tmp_path


def check(home: Path, monkeypatch: pytest.MonkeyPatch, seen: dict[int, LastSeen]) -> tuple[dict[str, Any], object]:
    monkeypatch.setattr("wardround_server.commands.check.seen_nodes", lambda _: seen)
    result = CliRunner().invoke(app, ["check", str(home), str(home / "federation.toml"), "--json"])
    return json.loads(result.stdout), result.exception


ONLINE, SILENT, GONE = LastSeen("online", 29.0), LastSeen("online", 20.0, 15.0), LastSeen("offline", 7200.0)


def test_it_says_who_is_there_who_has_approved_and_what_it_costs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load_federation(home / "federation.toml").digest
    book = AnswerBook.of_home(home, Registry(home))
    book.add("anna", Answered(run="spring", federation=digest, round=3, sha256="0" * 64), epsilon=1.5)
    run = home / "runs" / "spring"
    run.mkdir(parents=True)
    why = "it has not approved agreement"
    events = [RunStarted(digest=digest), RoundEnded(epsilon={"anna": 1.5}, rejected={"bert": why})]
    (run / "events.jsonl").write_text("".join(event.line() + "\n" for event in events))

    said, error = check(home, monkeypatch, {1: ONLINE, 2: SILENT, 3: GONE})
    assert error is None
    rows = {row["hospital"]: row for row in said["hospitals"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "anna": "online",
        "bert": "silent, last seen 20 s ago",
        "carl": "offline for 2 h",
    }
    assert {name: row["approved"] for name, row in rows.items()} == {
        "anna": "yes: answered round 3 of run spring",
        "bert": f"no: {why}",
        "carl": "not known",
    }
    assert (said["agreement"], said["online"], said["quorum"]) == (digest, 2, 2)
    assert (rows["anna"]["epsilon_so_far"], rows["carl"]["epsilon_so_far"]) == (1.5, 0)
    noise = {name: float(row["noise"]) for name, row in rows.items()}
    assert noise["anna"] >= noise["bert"] > 0, "who declares fewer patients has a larger delta"
    assert said["questions"] == "1 x statistics, 40 x gradient"


def test_a_quorum_that_is_not_there_ends_with_6(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, error = check(home, monkeypatch, {1: ONLINE, 2: GONE})
    assert isinstance(error, QuorumMissed)
    assert said["online"] == 1


def test_a_person_gets_a_table_that_cuts_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround_server.commands.check.seen_nodes", lambda _: {1: ONLINE, 2: ONLINE})
    text = CliRunner().invoke(app, ["check", str(home), str(home / "federation.toml")]).stdout
    assert load_federation(home / "federation.toml").digest in text
    assert "\u2026" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
