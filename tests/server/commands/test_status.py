"""`coordinator status`: how each run stands, as its events and Flower have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wardround_server.commands import app, status
from wardround_server.events import Event, RunEnded, RunFailed, RunStarted
from wardround_server.sinks.jsonl import FILE

LAST: dict[str, Event | None] = {
    "asked": RunStarted(), "left": RunStarted(), "done": RunEnded(), "failed": RunFailed(message="gone"), "new": None,
}  # fmt: skip


@pytest.mark.parametrize("up", [True, False])
def test_each_run_goes_on_is_stopped_or_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: bool) -> None:
    runner, home = CliRunner(), str(tmp_path / "coordinator")
    assert runner.invoke(app, ["init", home]).exit_code == 0
    for name, event in LAST.items():
        folder = tmp_path / "coordinator" / "runs" / name
        folder.mkdir(parents=True)
        (folder / FILE).write_text("" if event is None else event.model_dump_json() + "\n")
    monkeypatch.setattr(status, "all_going_on", lambda home, names: {"asked": 7} if up else None)
    said = runner.invoke(app, ["status", home], env={"COLUMNS": "200"}).stdout
    words = {name: next(line for line in said.splitlines() if line.split()[:1] == [name]) for name in LAST}
    assert ("going on" in words["asked"]) is up and ("stopped" in words["asked"]) is not up
    assert "stopped" in words["left"] and "stopped" in words["new"]
    assert "ended" in words["done"] and "ended" in words["failed"]
    lines = json.loads(runner.invoke(app, ["status", home, "--json"]).stdout)["runs"]
    assert {each["run"] for each in lines if each["going_on"]} == ({"asked"} if up else set())


@pytest.mark.parametrize("content", [b"no JSON\n", b"[1]\n", b"\xff\n", None])
def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path, content: bytes | None) -> None:
    runner, home = CliRunner(), str(tmp_path / "coordinator")
    assert runner.invoke(app, ["init", home]).exit_code == 0
    for name in ("damaged", "whole"):
        (tmp_path / "coordinator" / "runs" / name).mkdir(parents=True)
    (tmp_path / "coordinator" / "runs" / "whole" / FILE).write_text(RunEnded().model_dump_json() + "\n")
    damaged = tmp_path / "coordinator" / "runs" / "damaged" / FILE
    damaged.mkdir() if content is None else damaged.write_bytes(content)
    said = runner.invoke(app, ["status", home]).stdout
    assert "cannot be read" in said and "ended" in said
    found = {each["run"]: each for each in json.loads(runner.invoke(app, ["status", home, "--json"]).stdout)["runs"]}
    assert found["damaged"]["error"] and found["whole"]["event"] == "done" and "error" not in found["whole"]
