"""A rule and an outer optimizer of another package, as CONTRIBUTING.md says, in a run that stops and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.recipes import follow
from tests.server.conftest import FakeHospital, FakeTransport, a_federation

from wardround.config import Federation
from wardround.models import build_model
from wardround.optimizers import OPTIMIZERS
from wardround.rules import RULES
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import Event, RoundEnded
from wardround_server.rounds import run


def played(federation: Federation, folder: Path, *, stops: bool = False) -> State:
    """The state that a run of three hospitals ends in; it may be interrupted after two rounds, and resumed."""
    hospitals = FakeTransport(*(FakeHospital(name, federation) for name in ("anna", "bert", "carl")))
    checkpointer = Checkpointer(folder)

    def events(resume: bool) -> Iterator[Event]:
        return run(federation, build_model(federation), hospitals, checkpointer, run_name="spring", resume=resume)

    if stops:
        ended = (event for event in events(resume=False) if isinstance(event, RoundEnded))
        for _ in range(2):
            next(ended)
        ended.close()
    assert list(events(resume=stops))
    state = checkpointer.load(run="spring", federation=federation.digest)
    assert state is not None
    return state


def test_an_optimizer_of_another_package_goes_on_from_its_own_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow("A new outer optimizer", tmp_path, monkeypatch)
    assert OPTIMIZERS.names[-1] == "adagrad"
    federation = a_federation(optimizer="adagrad", learning_rate=0.1, tau=0.01)
    whole = played(federation, tmp_path / "whole")
    resumed = played(federation, tmp_path / "stops", stops=True)
    assert set(whole.outer) == {"second"} and (whole.outer["second"] > 0.01**2).all()
    assert torch.equal(whole.theta, resumed.theta)
    assert Federation.from_canonical(federation.canonical()) == federation


def test_a_rule_of_another_package_combines_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("A new aggregation rule", tmp_path, monkeypatch)
    assert RULES.names[-1] == "norm-clipping"
    federation = a_federation(rule="norm-clipping", times=0.5)
    assert federation.outer.model_dump()["times"] == 0.5
    clipped, mean = (
        played(each, tmp_path / each.digest) for each in (federation, a_federation(rule="mean"))
    )  # fmt: skip
    assert 0 < clipped.theta.norm() < mean.theta.norm()
    ours = federation.outer.rule(torch.tensor([[3.0], [1.0], [-1.0]]), torch.ones(3))
    torch.testing.assert_close(ours, torch.tensor([0.5 / 3]))
