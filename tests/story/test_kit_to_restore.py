"""A hospital from its kit on: invited, set up, backed up, lost, restored from an old copy; nothing is spent twice."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

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


def last(said: str) -> Any:
    """The last JSON object of what was said."""
    return json.JSONDecoder().raw_decode(said, said.rindex('{"event"'))[0]


def tar(*arguments: object) -> None:
    subprocess.run(["tar", *map(str, arguments)], check=True)


def test_a_hospital_is_invited_set_up_lost_and_restored(tmp_path: Path) -> None:
    home, coordinator, table = tmp_path / "home", tmp_path / "coordinator", tmp_path / "table.csv"
    draws = random.Random(1)
    rows = [f"{draws.gauss(0, 1):.4f},{draws.gauss(0, 1):.4f},{'yes' if i % 2 else 'no'},p{i}" for i in range(40)]
    table.write_text("\n".join(["a,b,y,id", *rows]) + "\n")
    typed("coordinator", "init", coordinator, "--port", 0, "--admin-port", 0, "--health-port", 0)
    federation = coordinator / "federation.toml"
    federation.write_text(FEDERATION)
    with running(tmp_path, forked()) as start:

        def up(expected: str = "connected") -> Process:
            daemon = start("hospital", "up", home)
            daemon.wait_for(lambda line: line.startswith(expected), expected)
            return daemon

        start("coordinator", "up", coordinator).wait_for(lambda line: "is up" in line, "coordinator")
        kit = last(typed("coordinator", "invite", coordinator, "st-anna", "--json"))
        given = ("--digest", kit["sha256"], "--patients", 40, "--images", table, "--patient-column", "id")
        stands = last(typed("hospital", "setup", kit["kit"], home, "--yes", "--json", *given))
        assert (stands["state"], stands["registered"]) == ("waiting for approval", False)
        registered = last(typed("coordinator", "register", coordinator, stands["card"], "--yes", "--json"))
        assert registered["key"] == stands["key"], "both read the same to each other"
        typed(*stands["next"].split()[1:], "--yes", "--runs", 3)
        stands = last(typed("hospital", "setup", kit["kit"], home, "--yes", "--json"))
        assert (stands["state"], stands["registered"]) == ("approved", True)

        daemon = up()
        typed("coordinator", "run", coordinator, federation, "--run", "spring")
        assert daemon.stop() == 0
        tar("-C", tmp_path, "-cpf", tmp_path / "home.tar", "home")
        after_spring = status(home)

        daemon = up()
        typed("coordinator", "run", coordinator, federation, "--run", "summer")
        assert daemon.stop() == 0
        truth = status(home)
        shutil.rmtree(home)

        tar("-C", tmp_path, "-xpf", tmp_path / "home.tar")
        assert status(home)["epsilon_spent"] == after_spring["epsilon_spent"] < truth["epsilon_spent"]
        typed("hospital", "ledger", home, "--verify")
        daemon = up()
        typed("coordinator", "run", coordinator, federation, "--run", "autumn", expect=6)
        assert daemon.wait() == 4, daemon.text
        assert status(home)["epsilon_spent"] == after_spring["epsilon_spent"], "it answered nothing"

        typed("hospital", "accept-history", home, coordinator / "answers" / "st-anna.jsonl", "--yes")
        assert status(home)["epsilon_spent"] >= truth["epsilon_spent"]
        daemon = up()
        typed("coordinator", "run", coordinator, federation, "--run", "autumn", "--resume")
        assert daemon.stop() == 0
        assert status(home)["epsilon_spent"] > truth["epsilon_spent"]
        typed("hospital", "ledger", home, "--verify")


def status(home: Path) -> dict[str, Any]:
    said = typed("hospital", "status", home, "--json", expect=6)  # and a line after it: no daemon runs there
    found: dict[str, Any] = json.JSONDecoder().raw_decode(said, said.index("{"))[0]
    return found
