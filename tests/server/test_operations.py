"""What the coordinator tells the hook: who is late or rejected, once in a run; and that old runs are no news."""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.test_runs_seen import ended, write

import wardround_server.operations as module
from wardround.cli import run as command
from wardround.hooks import Hook
from wardround_server.events import LATE, RoundMissed, RunFailed
from wardround_server.home import Home
from wardround_server.operations import tell, watched


class Told(Hook):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__([], 1.0, Path("nowhere"), {})
        self.notices: list[tuple[str, str]] = []

    def tell(self, event: str, key: str, /, **fields: Any) -> None:
        self.notices.append((event, key))


def test_who_is_late_and_who_is_rejected() -> None:
    told = Told()
    tell(told, "spring", ended(0))
    assert told.notices == []
    rejected = {"anna": f"{LATE} 9 s", "bert": "refused: PolicyRefusal approved"}
    tell(told, "spring", ended(1, rejected=rejected, absent=("carl",)))
    tell(told, "spring", RoundMissed(round=2, absent=("carl",)))
    tell(told, "spring", RunFailed(run="spring", message="x", time="t"))
    assert told.notices == [
        ("hospital-late", "spring anna"),
        ("hospital-late", "spring carl"),
        ("hospital-rejected", "spring bert"),
        ("hospital-late", "spring carl"),
        ("run-failed", "spring t"),
    ]


def test_a_real_command_is_told_of_today_and_metrics_are_served_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    home = Home(tmp_path / "home")
    assert command(["coordinator", "init", str(home.folder)]) == 0
    script, out = tmp_path / "hook.py", tmp_path / "out"
    script.write_text(f"#!{sys.executable} -S\nimport sys\nopen({str(out)!r}, 'a').write(sys.stdin.read())\n")
    script.chmod(0o700)
    with home.config_file.open("a") as file:
        file.write(f'[operations]\nhook = ["{script}"]\nmetrics_port = 0\n')
    operations = home.config().operations.model_copy(update={"metrics_port": _free_port()})
    runs = home.folder / "runs"
    old = ended(0, absent=("long ago",), time=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    write(runs, "winter", old, ended(1, absent=("nobody knows when",)))
    write(runs, "spring", ended(0, absent=("carl",)).stamped())
    for _ in range(2):  # and once only, over a restart
        with watched(home, operations):
            _until(lambda: out.exists() and '"carl"' in out.read_text())
            page = httpx.get(f"http://127.0.0.1:{operations.metrics_port}/metrics", trust_env=False, timeout=60)
            assert 'wardround_run_absent{run="spring"} 1.0' in page.text
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["hook-set-up", "hospital-late"]
    assert lines[1]["hospital"] == "carl" and lines[1]["coordinator"] == home.config().address


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _until(true: Any) -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        threading.Event().wait(0.02)
