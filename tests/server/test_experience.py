"""A run's row holds public or noised numbers, whatever its events say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.conftest import a_federation

from wardround.experience.file import FILE, read
from wardround_server.events import Event, RoundEnded, RoundMissed, RunEnded, RunStarted, Waiting, parsed
from wardround_server.experience import keep, row_of

FEDERATION = a_federation(rounds=2, every=1)
SECRET = "smith-19620315"
NUMBER = 0.1234567
# What a coordinator may know, but nobody outside: names, texts and exact numbers, in every field that takes them.
secrets: dict[str, Any] = {
    "run": SECRET,
    "federation": SECRET,
    "digest": SECRET,
    "hospitals": 77_777,
    "absent": [SECRET],
    "missing": [SECRET],
    "rejected": {SECRET: f"no file {SECRET}"},
    "clipped": {SECRET: NUMBER},
    "accuracy_by_hospital": {SECRET: NUMBER},
    "apart": {SECRET: NUMBER},
    "answers": {SECRET: SECRET},
    "epsilon": {SECRET: NUMBER},
    "epsilon_max": NUMBER,
    "delta_norm": NUMBER,
    "seconds": NUMBER,
    "score": SECRET,
    "message": SECRET,
    "error": SECRET,
    "checkpoint": SECRET,
    "report": SECRET,
    "versions": {"wardround": SECRET},
    "comparison": {"hospital": SECRET, "rows": [{"shots": 5, "meta": {"mean": NUMBER}}]},
    "patients": [SECRET],  # a field that nobody declared is kept by an event
    "labels": {SECRET: NUMBER},
}
public = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["start", "waiting", "round", "missed", "failed", "done", "odd"]),
        "question": st.sampled_from(["statistics", "gradient", "confusion", SECRET]),
        "privacy": st.sampled_from(["ON", "OFF"]),
        "declared_patients": st.dictionaries(st.sampled_from([SECRET, "b", "c"]), st.integers(1, 500)),
    },
    optional={
        "balance": st.lists(st.floats(-1, 2), max_size=4),
        "accuracy": st.floats(allow_nan=True, allow_infinity=True) | st.none(),
        "balanced_accuracy": st.floats(-1, 2) | st.none(),
        "training_round": st.integers(0, 9),
    },
)


def round_ended(**values: Any) -> RoundEnded:
    return RoundEnded.model_validate({"declared_patients": {"anna": 200, "bert": 90}, **values})


@given(st.lists(st.tuples(public, st.sets(st.sampled_from(sorted(secrets)))), max_size=6))
def test_a_row_is_made_of_the_agreement_and_of_public_numbers_alone(
    drawn: list[tuple[dict[str, Any], set[str]]],
) -> None:
    hostile = [parsed({**line, **{key: secrets[key] for key in keys}}) for line, keys in drawn]
    clean = [parsed(line) for line, _ in drawn]
    row = row_of(FEDERATION, hostile)
    assert row == row_of(FEDERATION, clean)
    if row is not None:
        assert SECRET not in row.line() and str(NUMBER)[:6] not in row.line() and "77777" not in row.line()
        assert FEDERATION.name not in row.line() and not any(each in row.line() for each in FEDERATION.task.classes)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 1))
def test_what_was_measured_exactly_is_no_score(exact: list[float], noised: float) -> None:
    """A simulation writes exact scores into its events, and whoever switched privacy off has no noise."""
    events: list[Event] = [round_ended(question="confusion", balanced_accuracy=noised)]
    for number, each in enumerate(exact):
        events.append(round_ended(question="gradient", accuracy=each, balanced_accuracy=each))
        events.append(round_ended(question="confusion", balanced_accuracy=each, training_round=number))
    row = row_of(FEDERATION, events)
    assert row is not None and row.scores == {0: round(noised, 4)} and not row.newcomer
    off = row_of(
        FEDERATION, [round_ended(question="confusion", balanced_accuracy=noised, privacy="OFF", balance=[1.0])]
    )
    assert off is not None and off.scores == {} and off.task.epsilon is None and off.task.balance == ()


def test_the_last_evaluation_counts_and_noise_is_cut_to_what_can_be() -> None:
    first = round_ended(question="confusion", balanced_accuracy=0.5, accuracy=0.9)
    last = round_ended(question="confusion", balanced_accuracy=1.02, accuracy=0.9)
    row = row_of(FEDERATION, [first, last, RunEnded()])
    assert row is not None and row.scores == {0: 1.0} and row.metric == "balanced accuracy"
    assert row.task.hospitals == (90, 200) and row.task.epsilon == FEDERATION.privacy.epsilon


def test_nobody_answered_so_there_is_no_row() -> None:
    assert row_of(FEDERATION, [RunStarted(), Waiting(), RoundMissed(), RunEnded()]) is None


def test_a_simulation_of_nobody_gives_scores_by_shots() -> None:
    comparison = {"rows": [{"shots": 0, "meta": {"mean": 0.4}}, {"shots": 5, "meta": {"mean": 0.61}, "fresh": {}}]}
    row = row_of(FEDERATION, [round_ended()], comparison)
    assert row is not None and row.newcomer and row.scores == {0: 0.4, 5: 0.61}


def test_a_row_is_kept_and_a_disk_that_is_full_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "runs" / "spring"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(round_ended(question="confusion", balanced_accuracy=0.5).line() + "\n")
    keep(folder, FEDERATION, tmp_path)
    assert [row.scores for row in read(tmp_path / FILE).rows] == [{0: 0.5}]
    (tmp_path / "file").write_text("")
    keep(folder, FEDERATION, tmp_path / "file")
    assert "no row of experience was kept" in caplog.text
    (folder / "events.jsonl").write_text("rubbish\n")
    keep(folder, FEDERATION, tmp_path)
    assert len(read(tmp_path / FILE).rows) == 1
