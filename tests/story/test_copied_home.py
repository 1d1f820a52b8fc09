"""A home is copied and both copies are used, over IPv6 where there is any: one stops, is told, and is mended."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

from tests.hostile.conftest import make_home
from tests.rounds import TWO_COLUMNS
from tests.story.processes import Process, forked, running, typed

FEDERATION = f"""name = "hearts"{TWO_COLUMNS}
[privacy]
epsilon = 2.0
[rounds]
rounds = 1
quorum = 1
deadline_s = 60.0
"""


def loopback() -> str:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return "127.0.0.1"
    return "::1"


def test_a_copy_that_does_not_know_what_the_other_answered_stops_and_is_mended(tmp_path: Path) -> None:
    home, coordinator = make_home(tmp_path / "made" / "home", 40, federation=FEDERATION), tmp_path / "coordinator"
    federation = tmp_path / "made" / "federation.toml"
    ports = ("--port", 0, "--admin-port", 0, "--health-port", 0)
    typed("coordinator", "init", coordinator, "--host", loopback(), *ports)
    typed("coordinator", "register", coordinator, home / "join.json")
    with running(tmp_path, forked()) as start:

        def up(place: Path) -> Process:
            daemon = start("hospital", "up", place)
            daemon.wait_for(lambda line: line.startswith("connected"), "connection")
            return daemon

        start("coordinator", "up", coordinator).wait_for(lambda line: "is up" in line, "coordinator")
        typed("hospital", "join", home, coordinator / "invitation.toml")
        typed("hospital", "approve", home, federation, "--yes", "--runs", 2)
        copy = Path(shutil.copytree(home, tmp_path / "copy"))
        daemon = up(home)
        typed("coordinator", "run", coordinator, federation, "--run", "spring")
        assert daemon.stop() == 0

        daemon = up(copy)
        said = typed("coordinator", "run", coordinator, federation, "--run", "summer", expect=6)
        assert "one_life" in said, said + daemon.text
        assert daemon.wait() == 4
        assert "accept-history" in daemon.text
        assert "accept-history" in (copy / "hospital.log").read_text()
        assert "STOPPED" in typed("hospital", "status", copy, expect=6)

        typed("hospital", "accept-history", copy, coordinator / "answers" / "st-anna.jsonl", "--yes")
        daemon = up(copy)
        typed("coordinator", "run", coordinator, federation, "--run", "summer", "--resume")
        assert daemon.stop() == 0
        spent = [epsilon_spent(place) for place in (copy, home)]
        assert spent[0] > 1.2 * spent[1] > 0
        assert '"answers": 4' in typed("coordinator", "status", coordinator, "--json")


def epsilon_spent(home: Path) -> float:
    said = typed("hospital", "status", home, "--json", expect=6)  # and a line after it: no daemon runs there
    return float(json.JSONDecoder().raw_decode(said, said.index("{"))[0]["epsilon_spent"])
