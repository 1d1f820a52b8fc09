"""Tables and lists at 80 columns: what is compared or copied is there whole, however long the rest is."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import RenderableType

from wardround.screen import Screen
from wardround.terminal import Fields, Table
from wardround_client.commands import _at_home, _status, audit, ledger
from wardround_simulation import tables, watch

WORD = st.text(st.characters(categories=("Lu", "Ll", "Nd"), include_characters=".:-/_"), min_size=1, max_size=90)
CELL = st.lists(WORD, min_size=1, max_size=8).map(" ".join)
TIME, DIGEST, NAME = "2026-11-28 20:15:10", "5e41c07a" * 8, "a-hospital-with-a-name-as-long-as-may-be-" + "x" * 22


def drawn(what: RenderableType | Callable[[Screen], None], width: int = 80) -> str:
    out = io.StringIO()
    screen = Screen(file=out, width=width)
    what(screen) if callable(what) else screen.print(what, crop=False)
    return out.getvalue()


def whole(text: str, values: list[str]) -> None:
    """Every word of every value stands in the text, unbroken; and so does a value of one word or a short one."""
    for value in values:
        assert all(word in text for word in value.split(" ")), (value, text)
        assert value in text or len(value) > 26, (value, text)
    longest = max((cell_len(word) for value in values for word in value.split(" ")), default=0)
    assert all(cell_len(line.rstrip()) <= max(80, longest + 4) for line in text.splitlines())


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.lists(CELL, min_size=n, max_size=n)))))
def test_no_table_cuts_a_word_or_breaks_a_short_value(given: tuple[int, list[list[str]]]) -> None:
    count, rows = given
    names = tuple(f"{'>' * (i % 2)}column {i}" for i in range(count))
    whole(drawn(Table(names, rows)), [cell for row in rows for cell in row])


@given(st.dictionaries(WORD.filter(lambda name: len(name) < 30), CELL, min_size=1))
def test_no_list_cuts_a_word_or_breaks_a_short_value(values: Mapping[str, str]) -> None:
    whole(drawn(Fields(values)), [*values, *values.values()])


def test_what_fits_stands_side_by_side() -> None:
    text = drawn(Table(("run", ">round"), [("spring", "3")], "Runs"))
    assert [line.rstrip() for line in text.splitlines()] == ["Runs", "run     round", "spring      3"]


ESTIMATE = {"value": 0.123, "low": 0.1, "high": 0.2}
JUDGED: dict[str, Any] = {
    "patients": 7,
    "specificity": 0.9,
    "metrics": dict.fromkeys(_at_home._METRICS, ESTIMATE),
    "manufacturers": {NAME: {"patients": 1, "metrics": {"balanced_accuracy": ESTIMATE}}},
}
ENTRY: Any = SimpleNamespace(
    seq=1234567,
    time="2026-11-28T20:15:10+00:00",
    kind="released",
    run=NAME,
    round=9999,
    body={"coordinator": NAME, "epsilon_after": 12.345678, "bytes": 33_554_432, "sha256": DIGEST},
)
STATUS: dict[str, Any] = {
    "name": NAME,
    "coordinator": f"{NAME}:9092",
    "link": "down",
    "link_detail": "nobody answers",
    "paused": False,
    "run": NAME,
    "round": 3,
    "answered": 4,
    "epsilon_spent": 1.0,
    "epsilon_budget": 10.0,
    "delta": 1e-4,
    "last_error": DIGEST,
    "approved": [DIGEST],
    "stopped": f"run {NAME}, round 3",
    "withdrawn": 2,
}
AUDITED: Any = SimpleNamespace(
    rows=[
        SimpleNamespace(name="canaries", tests="a " * 40, claimed_epsilon=123.4, lower_bound_epsilon=200.0, holds=False)
    ],
    confidence=0.95,
    delta=1e-4,
)
POINT = {"fpr_asked": 0.001, "tpr": 0.5, "tpr_low": 0.1234, "tpr_high": 0.9876}
MEMBERSHIP = {
    "members": 1000,
    "non_members": 1000,
    "confidence": 0.95,
    "attacks": [{"label": "loss of the released model", "points": [POINT] * 3, "auc": 0.5}],
    "ceiling": {"tpr": [(0.001, 0.5)] * 3},
    "left_out": {},
}
MEAN = {"mean": 0.5, "low": 0.1, "high": 0.9}
COMPARISON = {"hospital": NAME, "repeats": 9, "chance": 0.5, "rows": [{"shots": 5, "fresh": MEAN, "meta": MEAN}]}


@pytest.mark.parametrize(
    ("what", "values"),
    [
        (next(ledger._tables([ENTRY])), [TIME, "1234567", "released", "9999", "33554432", DIGEST[:12], NAME]),
        (_status.status_fields(STATUS), [DIGEST, DIGEST[:12], f"{NAME}:9092"]),
        (_at_home.scores({"before": JUDGED, "after": JUDGED}, NAME), [NAME, "12.3 % (10.0 to 20.0)"]),
        (audit.table(AUDITED, NAME), [NAME, "123.40", "200.00", "REFUTED"]),
        (
            lambda screen: tables.show_membership(screen, MEMBERSHIP),
            ["50.00 % (12.34 to 98.76)", "at most, by the promise"],
        ),
        (lambda screen: watch.show_comparison(screen, COMPARISON), [NAME, "50.0 % (10.0 to 90.0)"]),
    ],
    ids=["ledger", "status", "scores", "audit", "membership", "comparison"],
)
def test_our_tables_show_each_value_whole(what: Any, values: list[str]) -> None:
    text = drawn(what)
    for value in values:
        assert value in text, text
    assert max(map(len, text.splitlines())) <= 80, text
