"""How rarely an idle node asks, and how soon it hears of a message all the same."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wardround_client.flower.pace import (
    BEAT_S,
    LATER,
    SLOWEST_BEAT_S,
    SLOWEST_POLL_S,
    Pace,
)

steps = st.lists(st.booleans(), max_size=400)


@given(steps, st.floats(0.01, SLOWEST_POLL_S))
def test_a_message_is_heard_of_late_by_a_twentieth_of_the_wait_for_it_and_never_more_than_the_longest(
    works: list[bool], poll_s: float
) -> None:
    pace, idle_s = Pace(poll_s), 0.0
    for work in works:
        if work:
            pace.worked()
            idle_s = 0.0
        wait_s = pace.wait_s()
        assert 0.75 * poll_s <= wait_s <= min(poll_s + LATER * idle_s + 1e-9, SLOWEST_POLL_S)
        idle_s += wait_s


@given(steps)
def test_signs_of_life_are_never_rarer_than_the_slowest_and_never_quicker_than_the_first(works: list[bool]) -> None:
    pace = Pace()
    for work in works:
        if work:
            pace.worked()
        pace.wait_s()
        assert BEAT_S <= pace.beat_s() <= SLOWEST_BEAT_S
        assert pace.beat_s() == BEAT_S or not work


def test_two_hundred_idle_nodes_call_forty_times_a_second_and_not_in_step() -> None:
    calls, beats = Counter[int](), 0.0
    for _ in range(200):
        pace, now = Pace(), 0.0
        while now < 600:
            now += pace.wait_s()
            calls[int(now)] += 1
        beats += 1 / pace.beat_s()
    last = [calls[second] for second in range(300, 600)]
    assert sum(last) / len(last) + beats < 40  # with four polls and a sign of life in four seconds each it were 850
    assert max(last) < 60
