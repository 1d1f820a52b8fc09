"""Liars in the coordinator's own rounds: cut, named, outvoted; and what they say of scaling and classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.chosen import outer
from tests.questions import agreement_of
from tests.server.conftest import FakeHospital, FakeTransport, Reply, a_federation
from torch import Tensor

from wardround.config import Federation
from wardround.labels import LABEL_KINDS
from wardround.models import build_model
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround.questions import Learned, Pool
from wardround.questions.class_means import question as class_means
from wardround.rules import RULES
from wardround.schedule import QUESTIONS, Schedule
from wardround.wire import RoundReply, RoundRequest, Vector
from wardround_server.bounds import Bounds
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import Event, RoundEnded, RunStarted
from wardround_server.report.data import _hospitals
from wardround_server.rounds import run

ROBUST = [rule for rule in RULES.built_in if rule != "mean"]
Lie = Callable[[RoundRequest, RoundReply], Reply]
TRUTH = 0.2


def telling(value: float) -> Lie:
    """Says the same number everywhere, round after round."""

    def change(_: RoundRequest, reply: RoundReply) -> bytes:
        answer: Vector = np.full_like(reply.answer, value)
        return RoundReply(reply.header, answer).pack()

    return change


def stretched(federation: Federation, times: float) -> Lie:
    """So many times as long as an honest reply can be, backwards."""
    schedule, model = Schedule.of(federation), build_model(federation)
    bounds = Bounds(federation, schedule, model)

    def change(_: RoundRequest, reply: RoundReply) -> bytes:
        header = reply.header
        parts = bounds.parts(schedule[header.round], header.hospital, header.declared_patients)
        lie = np.concatenate([np.full(size, -times * longest / size**0.5) for size, longest in parts])
        return RoundReply(header, lie.astype(np.float32)).pack()

    return change


def play(federation: Federation, checkpointer: Checkpointer, *changes: Lie) -> tuple[list[Event], Tensor]:
    hospitals = [FakeHospital(f"h{number}", federation, change=change) for number, change in enumerate(changes)]
    model = build_model(federation)
    transport = FakeTransport(*hospitals)
    events = list(run(federation, model, transport, checkpointer, run_name="spring", reconnect_s=0.0))
    state = checkpointer.load(run="spring", federation=federation.digest)
    assert state is not None
    return events, state.theta - model.initial()


@pytest.mark.parametrize("rule", RULES.built_in)
def test_two_of_eight_liars_cannot_turn_the_model_round(rule: str, checkpointer: Checkpointer) -> None:
    federation = a_federation(rounds=3, rule=rule, momentum=0.0)
    lies = [stretched(federation, 5.0)] * 2
    events, moved = play(federation, checkpointer, *lies, *[telling(TRUTH)] * 6)
    rounds = [event for event in events if isinstance(event, RoundEnded)]
    trained = [event for event in rounds if event.trains]
    if rule == "mean":
        assert (moved < 3 * TRUTH - 0.1).all(), "the mean is dragged, as far as the bound allows"
    else:
        torch.testing.assert_close(moved, torch.full_like(moved, 3 * TRUTH), rtol=0.35, atol=0)
        assert all(event.apart["h0"] > 2 * event.apart["h7"] for event in trained if event.apart)
    for event in rounds:
        assert event.clipped == {"h0": pytest.approx(0.2, rel=1e-3), "h1": pytest.approx(0.2, rel=1e-3)}
    table = {row.name: row for row in _hospitals(rounds, RunStarted(), [])}
    assert len(table["h0"].cuts) == 4
    assert "to 20 %" in table["h0"].cuts[0]
    assert table["h7"].cuts == ()


def test_what_is_far_too_long_is_refused_and_named(checkpointer: Checkpointer) -> None:
    federation = a_federation(rounds=1)
    events, _ = play(federation, checkpointer, stretched(federation, 11.0), telling(TRUTH), telling(TRUTH))
    assert all("length" in event.rejected["h0"] for event in events if isinstance(event, RoundEnded))


@pytest.mark.parametrize("rule", ROBUST)
def test_the_start_says_how_many_liars_are_borne(rule: str, checkpointer: Checkpointer) -> None:
    events, _ = play(a_federation(rounds=1, rule=rule), checkpointer, telling(TRUTH), telling(TRUTH))
    assert isinstance(events[0], RunStarted) and (events[0].rule, events[0].liars_borne) == (rule, 0)


@pytest.mark.parametrize("rule", RULES.built_in)
@pytest.mark.parametrize("hospitals", [2, 3, 4, 5])
def test_few_hospitals_that_agree_are_believed(rule: str, hospitals: int, checkpointer: Checkpointer) -> None:
    federation = a_federation(rounds=1, rule=rule, momentum=0.0)
    _, moved = play(federation, checkpointer, *[telling(TRUTH)] * hospitals)
    torch.testing.assert_close(moved, torch.full_like(moved, TRUTH), rtol=1e-4, atol=1e-5)


def statistics(shift: float, patients: int, features: int = 4) -> Tensor:
    z = torch.full((features,), shift * patients)
    return torch.cat([torch.tensor([0.5, 0.5]) * patients, z, (1 + shift**2) * patients * torch.ones(features)])


LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": lambda true: -true,
    "counts alone": lambda true: torch.cat([true[:2] * 1e6, true[2:]]),
    "no counts": lambda true: torch.cat([true[:2] * 0, true[2:]]),
    "features alone": lambda true: torch.cat([true[:2], true[2:6] + 1e5, true[6:]]),
    "squares alone": lambda true: torch.cat([true[:6], -1e7 * true[6:]]),
    "nothing": lambda true: true * 0,
}


def pool(answers: Tensor, declared: Tensor, rule: str) -> Pool:
    names = [f"hospital {number}" for number in range(len(answers))]
    return Pool(answers, names, declared, declared, outer(rule=rule).rule)


def scaling(answers: Tensor, declared: Tensor, rule: str, labels: str = "one") -> tuple[Tensor, Tensor]:
    model = Tabular.logistic(4, 2)
    chosen = outer(rule=rule)
    federation = agreement_of(model, LABEL_KINDS[labels]).model_copy(update={"outer": chosen})
    before = Learned(model.initial(), *no_scaling(4), {})
    after, _ = QUESTIONS["statistics"].learn(pool(answers, declared, rule), before, federation, model)
    return after.shift, after.scale


@given(rule=st.sampled_from(ROBUST), lie=st.sampled_from(sorted(LIES)), who=st.integers(0, 4))
def test_a_lie_about_statistics_does_not_move_the_scaling_past_the_honest(rule: str, lie: str, who: int) -> None:
    answers = torch.stack([statistics(shift, 200) for shift in (0.2, 0.25, 0.3, 0.35, 0.4)])
    answers[who] = LIES[lie](answers[who])
    shift, scale = scaling(answers, torch.full((5,), 200.0), rule)
    assert (shift > 0.1).all()
    assert (shift < 0.5).all()
    assert (scale > 0.85).all()
    assert (scale < 1.15).all()


@pytest.mark.parametrize("labels", ["one", "several"])
@pytest.mark.parametrize("rule", RULES.built_in)
def test_honest_statistics_pool_as_ever(rule: str, labels: str) -> None:
    answers = torch.stack([statistics(0.3, patients) for patients in (80, 120, 100)])
    declared = torch.tensor([80.0, 120.0, 100.0])
    found, expected = (scaling(answers, declared, each, labels) for each in (rule, "mean"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ROBUST)
def test_a_class_that_one_hospital_alone_has_keeps_its_mean(rule: str) -> None:
    def means(counts: list[float], at: list[float]) -> Tensor:
        sums = torch.tensor(counts).unsqueeze(1) * torch.tensor(at).unsqueeze(1).expand(-1, 3)
        return torch.cat([torch.tensor(counts), sums.flatten()])

    common = [means([100.0, -2.0], [1.0, 0.0]) for _ in range(4)]
    answers = torch.stack([*common, means([50.0, 50.0], [1.0, 7.0]), means([100.0, 0.0], [-90.0, 0.0])])
    model = Tabular.logistic(3, 2)
    federation = agreement_of(model).model_copy(update={"outer": outer(rule=rule)})
    found = class_means.pooled(pool(answers, torch.full((6,), 100.0), rule), federation, model)
    torch.testing.assert_close(found.means()[0], torch.ones(3), rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.means()[1], torch.full((3,), 7.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["Mean", "krum", "", 3])
def test_an_unknown_rule_is_no_agreement(rule: object) -> None:
    with pytest.raises(ValueError, match="trimmed-mean"):
        outer(rule=rule)


@pytest.mark.parametrize("liars", [0.0, 0.5, 1.0, -0.1, float("nan")])
def test_half_of_the_hospitals_cannot_be_borne(liars: float) -> None:
    with pytest.raises(ValueError, match="liars"):
        outer(liars=liars)
