from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.server.test_hospitals import card

from wardround.config import load_federation
from wardround.errors import ConfigError, FederationError, QuorumMissed, RunStopped, Unreachable, WardroundError
from wardround.screen import Screen
from wardround_server.commands import app
from wardround_server.follow import follow
from wardround_server.home import Home
from wardround_server.sinks import progress


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, WardroundError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_init_makes_files_that_are_good_as_they_are(tmp_path: Path) -> None:
    call("init", tmp_path, "--host", "fl.example.org", "--port", 4444)
    config = Home(tmp_path).config()
    assert (config.address, config.listen.host, config.listen.port) == ("fl.example.org", "0.0.0.0", 4444)
    load_federation(tmp_path / "federation.toml")
    invitation = tomllib.loads((tmp_path / "invitation.toml").read_text())
    assert invitation["address"] == "fl.example.org:4444"
    assert invitation["ca_pem"].strip() == (tmp_path / "tls" / "ca.crt").read_text().strip()


def test_init_again_keeps_what_was_written(tmp_path: Path) -> None:
    call("init", tmp_path)
    (tmp_path / "federation.toml").write_text("mine")
    before = (tmp_path / "tls" / "ca.crt").read_bytes()
    call("init", tmp_path)
    assert (tmp_path / "federation.toml").read_text() == "mine"
    assert (tmp_path / "tls" / "ca.crt").read_bytes() == before


def test_register_while_down_is_noted_and_status_shows_it(tmp_path: Path) -> None:
    call("init", tmp_path)
    (tmp_path / "join.json").write_text(card("anna").model_dump_json())
    assert "noted" in call("register", tmp_path, tmp_path / "join.json")
    result = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    assert result.exit_code == 6, "as `hospital status` when its daemon is down"
    status = json.loads(result.stdout)
    assert set(status.pop("certificates")) == {"server certificate", "CA"}
    assert status == {
        "event": "status",
        "up": False,
        "hospitals": [{"hospital": "anna", "declared_patients": 100, "status": "coordinator down", "answers": 0}],
        "runs": [],
    }


def test_a_folder_that_is_no_home(tmp_path: Path) -> None:
    for arguments in (["up"], ["status"], ["run", tmp_path / "federation.toml"]):
        with pytest.raises(ConfigError):
            call(arguments[0], tmp_path, *arguments[1:])


def test_run_without_a_coordinator(tmp_path: Path) -> None:
    call("init", tmp_path)
    with pytest.raises(Unreachable, match="coordinator up"):
        call("run", tmp_path, tmp_path / "federation.toml")


def test_a_misspelt_key_in_coordinator_toml(tmp_path: Path) -> None:
    call("init", tmp_path)
    path = tmp_path / "coordinator.toml"
    path.write_text(path.read_text().replace("admin_port", "adminport"))
    with pytest.raises(ConfigError, match="did you mean 'admin_port'"):
        call("up", tmp_path)


@pytest.mark.parametrize("command", ["init", "register", "remove", "up", "run", "stop", "status", "report"])
def test_every_help_has_an_example_and_the_exit_codes(command: str) -> None:
    text = call(command, "--help")
    assert "Examples:" in text
    assert f"wardround coordinator {command}" in text
    assert "Exit codes" in text


class FakeControl:
    """A run that Flower says is finished."""

    how = "failed details"

    def run_status(self, run_id: int) -> tuple[str, str]:
        return "finished", self.how

    def stop_run(self, run_id: int) -> None:
        raise AssertionError("nobody asked for it")


ROUND = {"event": "round", "round": 0, "hospitals": 2, "replied": 1, "rejected": {"anna": "NaN"}, "epsilon_max": 1.0}
START = {"event": "start", "run": "spring", "from_round": 0, "rounds": 2}


def follow_events(folder: Path, *events: object, terminal: bool = False) -> str:
    before = json.dumps({"event": "done", "run": "an earlier one"}) + "\n"
    (folder / "events.jsonl").write_text(before + "".join(json.dumps(event) + "\n" for event in events))
    out = io.StringIO()
    with progress.on(Screen(file=out, width=200, force_terminal=terminal)) as tell:
        follow(FakeControl(), 1, folder / "events.jsonl", len(before), tell)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_following_shows_who_was_rejected_and_ends_with_the_run(tmp_path: Path, terminal: bool) -> None:
    said = follow_events(tmp_path, START, ROUND, {"event": "done"}, terminal=terminal)
    assert "round 0: anna: NaN" in said
    assert "1/2 replied, epsilon 1.00" in said


def test_who_is_missing_is_said_before_the_start_and_after_each_round(tmp_path: Path) -> None:
    start = START | {"hospitals": ["anna"], "registered": {"anna": {}, "bert": {}}}
    waiting = {"event": "waiting", "round": 0, "quorum": 1, "missing": ["bert"], "seconds": 60.0}
    going_on = {"event": "proceeding", "round": 0, "absent": ["bert"]}
    said = follow_events(tmp_path, start, waiting, going_on, ROUND | {"absent": ["bert"]}, {"event": "done"})
    assert "connected: anna; not connected: bert" in said
    assert "waiting for bert, at most 60 s" in said
    assert "going on without bert" in said
    assert "round 0: bert: not connected" in said


def test_a_run_that_failed_fails_with_its_own_error(tmp_path: Path) -> None:
    failed = {"event": "failed", "error": "QuorumMissed", "message": "round 1: nobody.", "exit_code": 6}
    with pytest.raises(QuorumMissed, match="nobody"):
        follow_events(tmp_path, START, failed)


def test_a_run_that_ends_without_a_word_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="failed details"):
        follow_events(tmp_path, START)


def test_a_run_that_somebody_else_stopped_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeControl, "how", "stopped ")
    with pytest.raises(RunStopped, match="--resume"):
        follow_events(tmp_path, START)
