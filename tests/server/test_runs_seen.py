"""What the coordinator shows of its runs: summed from their events, read on where it stopped, damaged ones left out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from wardround.metrics import text
from wardround_server.events import LATE, Event, RoundEnded, RoundMissed, RunEnded, RunStarted
from wardround_server.runs_seen import MOST_RUNS, RunsSeen, of_coordinator


def write(folder: Path, run: str, *events: Event) -> Path:
    (folder / run).mkdir(parents=True, exist_ok=True)
    with (folder / run / "events.jsonl").open("a") as file:
        file.writelines(event.line() + "\n" for event in events)
    return folder / run / "events.jsonl"


def read(runs: RunsSeen) -> dict[tuple[str, ...], float]:
    list(runs.news())
    written = text(of_coordinator(runs.progress(), {"coordinator's CA": datetime(2030, 1, 1, tzinfo=UTC)}))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(written)
        for sample in family.samples
    }


def ended(number: int, **more: object) -> RoundEnded:
    asked = {"round": number, "rounds": 5, "hospitals": 3, "replied": 2, "seconds": 2.0}
    return RoundEnded.model_validate(asked | {"epsilon": {"anna": 0.5 * number}} | more)


def test_the_numbers_of_a_run(tmp_path: Path) -> None:
    runs = RunsSeen(tmp_path)
    write(tmp_path, "spring", RunStarted(run="spring", rounds=5), ended(0, rejected={"bert": f"{LATE} 9 s"}))
    found = read(runs)
    assert found["wardround_run_rounds_done", "spring"] == 1
    assert found["wardround_run_going_on", "spring"] == 1
    write(tmp_path, "spring", ended(1, rejected={"bert": "refused: PolicyRefusal"}, accuracy=0.75, absent=("carl",)))
    write(tmp_path, "spring", RoundMissed(round=2, rejected={"bert": f"{LATE} 9 s"}), RunEnded(run="spring"))
    found = read(runs)
    of = {name[0].removeprefix("wardround_run_"): value for name, value in found.items() if name[-1] == "spring"}
    assert of == {
        "rounds": 5, "rounds_done": 2, "going_on": 0, "hospitals": 0, "replied": 0, "absent": 0, "late_total": 2,
        "missed_rounds_total": 1, "rejected_total": 1, "clipped_total": 0, "round_seconds_total": 4, "accuracy": 0.75,
    }  # fmt: skip
    assert found["wardround_run_epsilon", "spring", "anna"] == 0.5
    assert found["wardround_coordinator_certificate_ends_seconds", "coordinator's CA"] > 1.8e9


def test_nothing_is_read_twice_and_a_line_that_is_not_whole_waits(tmp_path: Path) -> None:
    runs = RunsSeen(tmp_path)
    file = write(tmp_path, "spring", ended(0))
    assert len(list(runs.news())) == 1
    line = ended(1).line()
    with file.open("a") as out:
        out.write(line[:20])
    assert list(runs.news()) == []
    with file.open("a") as out:
        out.write(line[20:] + "\n")
    assert [event.round for _, event in runs.news() if isinstance(event, RoundEnded)] == [1]


def test_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    write(tmp_path, "spring", ended(0))
    write(tmp_path, "autumn", ended(0)).write_text("[]\n")
    assert ("wardround_run_rounds_done", "spring") in read(RunsSeen(tmp_path))


def test_a_home_without_runs_and_one_with_many(tmp_path: Path) -> None:
    runs = RunsSeen(tmp_path)
    assert list(read(runs)) == [("wardround_coordinator_certificate_ends_seconds", "coordinator's CA")]
    for number in range(MOST_RUNS + 5):
        write(tmp_path, f"run-{number}", ended(0))
    assert len([name for name in read(runs) if name[0] == "wardround_run_rounds"]) == MOST_RUNS
