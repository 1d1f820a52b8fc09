"""Every question, deployed: a coordinator and two daemons over TLS; a run of each from its first round to its last.

One algorithm asks each. The others differ in what is computed between question and answer, and that is the same code in
a simulation: tests/simulation/test_every_question.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.chosen import EACH_QUESTION
from tests.story.processes import forked, running, typed

from orthanc import free_port
from wardround.algorithms import ALGORITHMS
from wardround.config import load_federation

pytestmark = pytest.mark.story

NAMES = ("north", "south")
FEDERATION = """
name = "{algorithm}"
[task]
label_column = "num"
classes = ["0", "1"]
kind = "table"
features = ["age", "chol"]
centre = [55, 225]
spread = [15, 45]
[model]
family = "mlp"
width = 4
[algorithm]
name = "{algorithm}"
local_learning_rate = 0.1
[privacy]
patients_per_episode = 10
[rounds]
rounds = 2
quorum = 2
evaluate_every = 2
deadline_s = 60
"""


class Fleet:
    """Two hospitals that are up, and their coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.coordinator = folder, folder / "coordinator"
        self.homes = [folder / name for name in NAMES]

    def federation(self, algorithm: str) -> Path:
        """An agreement with this algorithm."""
        file = self.folder / f"{algorithm}.toml"
        file.write_text(FEDERATION.format(algorithm=algorithm))
        return file


def table(path: Path, seed: int) -> Path:
    rng = random.Random(seed)
    rows = (f"{rng.gauss(50 + 10 * y, 8):.0f},{rng.gauss(200 + 50 * y, 30):.0f},{y}" for y in [0, 1] * 30)
    path.write_text("\n".join(["age,chol,num", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    ports = ["--port", free_port(), "--admin-port", 0, "--health-port", 0]
    typed("coordinator", "init", fleet.coordinator, "--host", "127.0.0.1", *ports)
    with running(fleet.folder, forked()) as start:
        for seed, (name, home) in enumerate(zip(NAMES, fleet.homes, strict=True)):
            typed("hospital", "init", home, "--name", name, "--patients", 60)
            config = home / "hospital.toml"
            # A budget for all of the runs together, each of which costs epsilon 8.
            config.write_text(config.read_text().replace("epsilon = 10.0", "epsilon = 1000.0"))
            data = table(fleet.folder / f"{name}.csv", seed)
            typed("hospital", "ingest", home, "--table", data, "--federation", fleet.federation("fedavg"))
            typed("hospital", "join", home, fleet.coordinator / "invitation.toml")
            typed("coordinator", "register", fleet.coordinator, home / "join.json")
        start("coordinator", "up", fleet.coordinator).wait_for(lambda line: "is up" in line, "sign of life")
        for home in fleet.homes:
            start("hospital", "up", home).wait_for(lambda line: "connected" in line.lower(), "connection")
        yield fleet


@pytest.mark.parametrize("algorithm", EACH_QUESTION)
def test_a_federation_of_daemons_learns_with(algorithm: str, fleet: Fleet) -> None:
    file = fleet.federation(algorithm)
    for home in fleet.homes:
        typed("hospital", "approve", home, file, "--yes")
    said = typed("coordinator", "run", fleet.coordinator, file, "--run", algorithm, "--json")
    assert '"event": "done"' in said

    folder = fleet.coordinator / "runs" / algorithm
    rounds = [
        event
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if event["event"] == "round"
    ]
    closing = ["class_means"] if ALGORITHMS[algorithm].closes_with_means else []
    question = load_federation(file).algorithm.question
    assert [event["question"] for event in rounds] == ["statistics", question, question, *closing, "confusion"]
    assert all(event["replied"] == 2 and not event["rejected"] for event in rounds)
    assert 0 < rounds[-1]["epsilon_max"] <= 8
    theta = load_file(folder / "checkpoint.safetensors")["theta"]
    assert bool(theta.isfinite().all()) and not torch.equal(theta, torch.zeros_like(theta))
