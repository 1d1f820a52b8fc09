"""A coordinator's home as version 0.1 left it: settings, registry and a run are read as they are, and work goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.server.commands.test_commands import call
from tests.web import served

from wardround.cli import run
from wardround.files import private_folder
from wardround_server.home import Home
from wardround_server.pages.desk import Desk
from wardround_server.pages.site import app
from wardround_server.runs_seen import RunsSeen

TOML = """\
address = "127.0.0.1"
[listen]
host = "127.0.0.1"
port = 19391
admin_port = 9093
health_port = 9094
"""
KEY = (
    "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBKZUVTj7w1zFuqS3mpVfoXzXlXunjQRWh5BI1T7Ckx"
    "FaNg9+wtqgWSjHHSeZnyCHNkuqbs4jnjC4bsng86H5aQBgiEDMhYBvKUTI12dfpaVPO7Gfv/hECtIFEdP1IJRU/Q=="
)
HOSPITALS = {
    "hospitals": [{"name": "anna", "public_key": KEY, "declared_patients": 100, "node_id": 4471628400253540053}]
}
ROUND = {
    "event": "round", "round": 0, "question": "statistics", "hospitals": 2, "replied": 1, "rejected": {"bert": "late"},
    "declared_patients": {"anna": 100}, "rounds": 4, "epsilon_max": 1.2, "epsilon": {"anna": 1.2}, "delta_norm": None,
    "accuracy": None, "seconds": 3.333,
}  # fmt: skip
EVENTS = [
    {"event": "start", "run": "spring", "federation": "example", "digest": "eec4", "from_round": 0, "rounds": 4,
     "hospitals": ["anna"]},
    {"event": "waiting", "round": 0, "quorum": 2},
    ROUND,
    ROUND | {"round": 1, "question": "gradient", "epsilon_max": 4.2, "delta_norm": 0.118, "accuracy": 0.5},
    {"event": "done", "run": "spring", "rounds": 4, "checkpoint": "/old/runs/spring/checkpoint.safetensors"},
]  # fmt: skip


@pytest.fixture(params=range(len(EVENTS)), ids=lambda last: str(EVENTS[last]["event"]))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Left after any of the events."""
    home = tmp_path / "coordinator"
    call("init", home, "--host", "127.0.0.1")
    (home / "coordinator.toml").write_text(TOML)
    private_folder(home / "runs")
    Home(home).write("hospitals.json", json.dumps(HOSPITALS))
    lines = [json.dumps(event) + "\n" for event in EVENTS[: request.param + 1]]
    Home(home).write("runs/spring/events.jsonl", "".join(lines))
    return home


def said(capsys: pytest.CaptureFixture[str], *arguments: object, expect: int = 0) -> str:
    capsys.readouterr()
    code = run(["coordinator", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == expect, out + err
    return out


def test_its_commands_and_its_page_read_it(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = "done" in (old / "runs/spring/events.jsonl").read_text()
    told = json.loads(said(capsys, "status", old, "--json", expect=6))
    assert [each["hospital"] for each in told["hospitals"]] == ["anna"]
    assert [(each["run"], each["going_on"]) for each in told["runs"]] == [("spring", False)]
    assert ("ended" if ended else "stopped") in said(capsys, "status", old, expect=6)
    said(capsys, "report", old, "spring")
    assert "spring" in (old / "runs/spring/report.html").read_text()
    assert "WRONG" not in said(capsys, "doctor", old)
    with served(app(Desk(Home(old)))) as there:
        for path, name in (("/", "spring"), ("/runs/spring", "spring"), ("/hospitals", "anna")):
            page = there.page(path)
            assert page.status == 200 and name in page.text, path
    seen = RunsSeen(old / "runs")
    lines = (old / "runs/spring/events.jsonl").read_text().splitlines()
    assert [name for name, _ in seen.news()] == ["spring"] * len(lines)
    assert seen.progress()["spring"].done == max(0, min(2, len(lines) - 2))
    said(capsys, "remove", old, "anna")
    assert not json.loads(said(capsys, "status", old, "--json", expect=6))["hospitals"]
