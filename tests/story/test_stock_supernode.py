"""Flower's own `flower-supernode` can stand where our daemon does: the same app, the same hospital, the same ledger."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import pytest
from tests.hostile.conftest import make_home
from tests.rounds import TWO_COLUMNS
from tests.story.processes import Process, forked, running, typed

from orthanc import free_port
from wardround_client.hospital import Hospital

pytestmark = pytest.mark.story

SUPERNODE = str(Path(sys.executable).with_name("flower-supernode"))
FEDERATION = f'name = "stock"{TWO_COLUMNS}[rounds]\nrounds = 1\nquorum = 1\ndeadline_s = 600.0\n'


def test_a_stock_supernode_answers_for_a_hospital(tmp_path: Path) -> None:
    home, coordinator = make_home(tmp_path / "made" / "home", 60, federation=FEDERATION), tmp_path / "coordinator"
    federation = tmp_path / "made" / "federation.toml"
    typed("coordinator", "init", coordinator, "--port", 0, "--admin-port", 0, "--health-port", 0)
    typed("coordinator", "register", coordinator, home / "join.json")
    with running(tmp_path, forked()) as start:
        server: Process = start("coordinator", "up", coordinator)
        server.wait_for(lambda line: "is up" in line, "sign of life")
        typed("hospital", "join", home, coordinator / "invitation.toml")
        typed("hospital", "approve", home, federation, "--yes")
        start(
            *("--superlink", tomllib.loads((coordinator / "invitation.toml").read_text())["address"]),
            *("--root-certificates", home / "coordinator-ca.pem"),
            *("--auth-supernode-private-key", home / "node.key"),
            *("--node-config", f'hospital="{home}"'),
            *("--host", "127.0.0.1", "--port", free_port()),
            command=[SUPERNODE],
            # It starts its helpers by name; and what it caches belongs into this test's folder.
            env={
                "PATH": f"{Path(SUPERNODE).parent}{os.pathsep}{os.environ['PATH']}",
                "FLWR_HOME": str(tmp_path / "flower"),
            },
        )
        run = start("coordinator", "run", coordinator, federation, "--run", "spring", "--json")
        done = run.wait_for_event(lambda event: event["event"] == "done", "end of the run")
        assert run.wait() == 0
        assert server.stop() == 0

    # The same promise as under our daemon: both rounds were paid for, and released, in the hospital's own ledger.
    assert Path(done["report"]).is_file()
    events = [json.loads(line) for line in run.text.splitlines() if line.startswith("{")]
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["replied"] for event in rounds] == [1, 1]
    assert set(rounds[-1]["epsilon"]) == {"st-anna"}
    hospital = Hospital.open(home)
    kinds = [(entry.kind, entry.round) for entry in hospital.ledger.entries()]
    hospital.ledger.close()
    assert kinds == [("reserved", 0), ("released", 0), ("reserved", 1), ("released", 1)]
