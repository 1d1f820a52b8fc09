"""The coordinator's rounds: what is refused is told and the round goes on; what is stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.server.conftest import FakeHospital, FakeTransport, Reply, a_federation, poisoned

from wardround.config import Federation
from wardround.errors import ConfigError, FederationError, QuorumMissed
from wardround.models import Model, build_model
from wardround.wire import Refusal, RoundReply, RoundRequest
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import Event, RoundEnded, RunStarted
from wardround_server.rounds import run


def play(
    federation: Federation, transport: FakeTransport, checkpointer: Checkpointer, *, resume: bool = False
) -> list[Event]:
    model = build_model(federation)
    return list(run(federation, model, transport, checkpointer, run_name="spring", resume=resume, reconnect_s=0.0))


def rounds_of(events: list[Event]) -> list[RoundEnded]:
    return [event for event in events if isinstance(event, RoundEnded)]


def three(federation: Federation, **change: Callable[[RoundRequest, RoundReply], Reply]) -> list[FakeHospital]:
    return [FakeHospital(name, federation, change=change.get(name)) for name in ("anna", "bert", "carl")]


def state_of(federation: Federation, checkpointer: Checkpointer) -> State:
    found = checkpointer.load(run="spring", federation=federation.digest)
    assert found is not None
    return found


def same(one: State, other: State) -> bool:
    tensors = [(s.theta, s.shift, s.scale, *(s.outer[name] for name in sorted(s.outer))) for s in (one, other)]
    return one.round == other.round and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_a_run_from_its_first_round_to_its_last(checkpointer: Checkpointer) -> None:
    federation = a_federation(rounds=2, every=1)
    events = play(federation, FakeTransport(*three(federation)), checkpointer)
    assert [e.event for e in events] == ["start", *["round"] * 5, "done"]
    rounds = rounds_of(events)
    assert [r.question for r in rounds] == ["statistics", "gradient", "confusion", "gradient", "confusion"]
    assert all(r.replied == 3 and r.rejected == {} for r in rounds)
    assert rounds[0].epsilon == {"anna": 0.5, "bert": 0.5, "carl": 0.5}
    assert rounds[-1].epsilon_max == 2.5
    assert rounds[1].delta_norm and rounds[1].delta_norm > 0
    assert rounds[2].accuracy is not None and 0 <= rounds[2].accuracy <= 1
    assert set(rounds[2].accuracy_by_hospital) == {"anna", "bert", "carl"}
    final = state_of(federation, checkpointer)
    assert final.round == 5
    assert not torch.equal(final.theta, build_model(federation).initial())
    assert (final.scale > 0).all()


def test_the_step_is_the_weighted_mean_of_the_deltas(checkpointer: Checkpointer) -> None:
    federation = a_federation(rounds=1, momentum=0.0, learning_rate=1.0)
    anna, bert = FakeHospital("anna", federation, declared=300), FakeHospital("bert", federation, declared=100)
    play(federation, FakeTransport(anna, bert), checkpointer)
    model = build_model(federation)
    deltas = []
    for hospital in (anna, bert):
        reply = hospital(hospital.seen[1])
        assert isinstance(reply, bytes)
        deltas.append(RoundReply.unpack(reply, run="spring", round=1, size=model.layout.size).answer)
    expected = model.initial().numpy() + 0.75 * deltas[0] + 0.25 * deltas[1]
    np.testing.assert_allclose(state_of(federation, checkpointer).theta.numpy(), expected, atol=1e-6)


EMPTY = np.zeros(0, np.float32)
REFUSAL = Refusal(error="PolicyRefusal", rule="policy.families", asked="conv4", allowed="logistic")
BAD: dict[str, tuple[Callable[[RoundRequest, RoundReply], Reply], str]] = {
    "nan": (poisoned(np.nan), "NaN"),
    "infinity": (poisoned(np.inf), "infinity"),
    "length": (poisoned(1e30), "length"),
    "shape": (lambda _, reply: RoundReply(reply.header, np.zeros(3, np.float32)).pack(), "float32"),
    "old round": (
        lambda _, reply: RoundReply(reply.header.model_copy(update={"round": 99}), reply.answer).pack(),
        "round 99",
    ),
    "another run": (
        lambda _, reply: RoundReply(reply.header.model_copy(update={"run": "autumn"}), reply.answer).pack(),
        "autumn",
    ),
    "another's name": (
        lambda _, reply: RoundReply(reply.header.model_copy(update={"hospital": "bert"}), reply.answer).pack(),
        "in the name of bert",
    ),
    "more patients": (
        lambda _, reply: RoundReply(reply.header.model_copy(update={"declared_patients": 9999}), reply.answer).pack(),
        "9999",
    ),
    "refusal": (
        lambda _, reply: RoundReply(
            reply.header.model_copy(update={"refusal": REFUSAL}), np.zeros(0, np.float32)
        ).pack(),
        "policy.families",
    ),
    "garbage": (lambda *_: b"", "not a ReplyHeader"),
    "failure": (lambda *_: FederationError("the node is gone"), "the node is gone"),
    "silence": (lambda *_: None, "no reply within 5 s"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_rejected_with_its_reason_and_the_round_goes_on(kind: str, checkpointer: Checkpointer) -> None:
    federation = a_federation()
    change, reason = BAD[kind]
    events = play(federation, FakeTransport(*three(federation, anna=change)), checkpointer)
    for event in rounds_of(events):
        assert event.replied == 2
        assert list(event.rejected) == ["anna"]
        assert reason in event.rejected["anna"]
    assert events[-1].event == "done"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_teaches_nothing(
    kind: str, checkpointer: Checkpointer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    federation = a_federation()
    play(federation, FakeTransport(*three(federation, anna=BAD[kind][0])), checkpointer)
    without = Checkpointer(tmp_path_factory.mktemp("without"))
    play(federation, FakeTransport(*three(federation)[1:]), without)
    assert same(state_of(federation, checkpointer), state_of(federation, without))


def test_a_second_reply_is_rejected_and_the_first_counts(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    events = play(federation, FakeTransport(*three(federation), twice=["anna"]), checkpointer)
    assert all(e.replied == 3 and "already" in e.rejected["anna"] for e in rounds_of(events))


def test_unregistered_hospitals_are_known_by_what_they_say_but_each_name_once(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    hospitals = three(federation, carl=BAD["another's name"][0])
    events = play(federation, FakeTransport(*hospitals, registered=False), checkpointer)
    assert rounds_of(events)[0].replied == 2
    assert list(rounds_of(events)[0].rejected) == ["bert"]


def test_a_missed_quorum_loses_nothing_and_the_run_goes_on_from_there(
    checkpointer: Checkpointer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    federation = a_federation(optimizer="adam")
    down = [FakeHospital(n, federation, change=lambda q, r: None if r.header.round == 2 else r.pack()) for n in "ab"]
    with pytest.raises(QuorumMissed, match="no reply within"):
        play(federation, FakeTransport(*down), checkpointer)
    assert state_of(federation, checkpointer).round == 2

    back = [FakeHospital(name, federation) for name in "ab"]
    events = play(federation, FakeTransport(*back), checkpointer, resume=True)
    assert isinstance(events[0], RunStarted) and events[0].from_round == 2
    assert back[0].seen[0] == down[0].seen[2], "the round is asked again with the same bytes"

    straight = Checkpointer(tmp_path_factory.mktemp("straight"))
    play(federation, FakeTransport(*(FakeHospital(name, federation) for name in "ab")), straight)
    assert same(state_of(federation, checkpointer), state_of(federation, straight))


def test_too_few_hospitals_are_said_so(checkpointer: Checkpointer) -> None:
    federation = a_federation(quorum=4)
    hospitals = three(federation)
    with pytest.raises(QuorumMissed, match="quorum of 4"):
        play(federation, FakeTransport(*hospitals), checkpointer)
    assert not any(hospital.seen for hospital in hospitals), "an answer would have cost privacy for nothing"


def test_a_run_that_exists_is_not_begun_again(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    play(federation, FakeTransport(*three(federation)), checkpointer)
    with pytest.raises(ConfigError, match="--resume"):
        play(federation, FakeTransport(*three(federation)), checkpointer)


def test_a_finished_run_is_resumed_to_nothing(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    play(federation, FakeTransport(*three(federation)), checkpointer)
    again = three(federation)
    assert [e.event for e in play(federation, FakeTransport(*again), checkpointer, resume=True)] == ["start", "done"]
    assert again[0].seen == []


def test_another_federation_cannot_take_over_a_run(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    play(federation, FakeTransport(*three(federation)), checkpointer)
    other = a_federation(rounds=9)
    with pytest.raises(ConfigError, match="belongs to"):
        play(other, FakeTransport(*three(other)), checkpointer, resume=True)


def test_a_run_cannot_go_on_twice_at_once(
    checkpointer: Checkpointer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardround_server.checkpoint.PATIENCE_S", 0.0)
    federation = a_federation()
    with checkpointer.held(), pytest.raises(FederationError, match="going on already"):
        play(federation, FakeTransport(*three(federation)), checkpointer)


def test_a_model_that_blows_up_ends_the_run_before_the_checkpoint(checkpointer: Checkpointer) -> None:
    federation = a_federation()
    past_bounds = federation.outer.optimizer.model_copy(update={"learning_rate": 1e39})
    outer = federation.outer.model_copy(update={"optimizer": past_bounds})
    federation = federation.model_copy(update={"outer": outer})
    with pytest.raises(FederationError, match="no longer finite"):
        play(federation, FakeTransport(*three(federation)), checkpointer)
    kept = state_of(federation, checkpointer)
    assert kept.theta.isfinite().all()
    assert replace(kept, round=0).round == 0
