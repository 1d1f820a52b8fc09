"""The report tells a run's story from its own files, and nothing in it can do harm."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import ConfigError, DataError, StorageError
from wardround.proportions import wilson
from wardround.web.charts import Bar, Curve, bar_chart, line_chart, nice_ticks, style_sheet
from wardround_server.events import RoundEnded, parsed
from wardround_server.report import write_report
from wardround_server.report.numbers import whole_percent

TOML = """
name = "spring"
[task]
label_column = "finding"
classes = ["normal", "nodule"]
[privacy]
epsilon = 8.0
[rounds]
rounds = 3
"""
NAMES = ("north", "south")


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "question": "gradient" if number else "statistics",
        "hospitals": 2,
        "replied": 2,
        "rejected": {},
        "declared_patients": dict.fromkeys(NAMES, 100),
        "epsilon": {"north": 2.0 + number, "south": 1.0 + number},
        "epsilon_max": 2.0 + number,
        "delta_norm": 0.5 / number if number else None,
        "accuracy": 0.5 + number / 10 if number else None,
        "accuracy_by_hospital": {"north": 0.6, "south": 0.7} if number else {},
        "seconds": 0.25,
    } | more


def make_run(folder: Path, events: list[dict[str, Any]] | None = None, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "federation.toml").write_text(TOML)
    lines = [*(event(i) for i in range(4)), {"event": "done"}] if events is None else events
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


COMPARISON = {
    "hospital": "newcomer",
    "repeats": 10,
    "chance": 0.5,
    "rows": [
        {"shots": 1, "fresh": {"mean": 0.52, "low": 0.5, "high": 0.54}, "meta": {"mean": 0.7, "low": 0.6, "high": 0.8}},
        {
            "shots": 5,
            "fresh": {"mean": 0.61, "low": 0.6, "high": 0.62},
            "meta": {"mean": 0.83, "low": 0.8, "high": 0.9},
        },
    ],
}
SIMULATION = {
    "synthetic": True,
    "seed": 3,
    "hospitals": [
        {"name": "north", "declared_patients": 100, "delta": 0.00099, "modality": "CT", "took_part": True},
        {"name": "south", "declared_patients": 80, "delta": 0.00124, "manufacturer": "B", "took_part": True},
        {"name": "newcomer", "declared_patients": 60, "delta": 0.0016, "modality": "CR", "took_part": False},
    ],
}


class Page(HTMLParser):
    """Tags, attributes and text; raises when tags do not nest."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_simulation_with_privacy_tells_what_was_gained_and_what_it_cost(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "r", comparison=COMPARISON, simulation=SIMULATION))
    assert "2 hospitals learned to tell normal and nodule apart together in 3 rounds." in page.text
    assert "With 5 labelled patients a class" in page.text
    assert "83 % balanced accuracy from the shared model, up from 61 % from a fresh one" in page.text
    assert "at most epsilon 5.00 about any one patient" in page.text
    assert "newcomer took no part" in page.text
    assert "at most 8 for the whole run" in page.text
    assert "9.9e-04 to 1.2e-03" in page.text  # the newcomer's delta is none of the run's
    assert "one patient, with all of that patient's images" in page.text
    assert "PRIVACY OFF" not in page.text
    assert "4 of 4" in page.text


def test_who_was_cut_and_who_lay_apart_is_named(tmp_path: Path) -> None:
    cuts = {"north": 0.25}
    events = [event(i, clipped=cuts if i else {}, apart={"north": 7.5, "south": 1.0}) for i in range(3)]
    page = read(make_run(tmp_path / "r", events))
    assert "2 times round 1: to 25 % round 2: to 25 %" in page.text
    assert "7.5" in page.text
    assert "round 0: to" not in page.text


@pytest.mark.parametrize("odd", [None, [], "x", {"north": "far"}, {"north": None}, {"nobody": 1.0}])
def test_odd_words_about_cuts_are_passed_over(tmp_path: Path, odd: object) -> None:
    page = read(make_run(tmp_path / "r", [event(1, clipped=odd, apart={"north": None})]))
    assert "to 25 %" not in page.text


def test_without_privacy_the_banner_is_the_first_thing_and_no_epsilon_is_claimed(tmp_path: Path) -> None:
    off = [event(i, privacy="OFF", epsilon={}, epsilon_max=None) for i in range(3)]
    page = read(make_run(tmp_path / "r", off, simulation=SIMULATION | {"privacy": "OFF"}))
    assert page.text.split(": wardround report", 1)[1].strip().startswith("PRIVACY OFF.")
    assert "No patient was protected." in page.text
    assert "at most epsilon" not in page.text
    assert "What was promised" not in page.text


def test_a_real_run_without_simulation_or_comparison_is_reported_too(tmp_path: Path) -> None:
    events = [event(i, accuracy_by_hospital=None, accuracy=None) for i in range(3)]
    accuracies = {"north": 0.6, "south": None}
    events.append({**event(3), "question": "confusion", "accuracy": 0.62, "accuracy_by_hospital": accuracies})
    page = read(make_run(tmp_path / "r", events))
    assert "Federation · spring" in page.text
    assert "noised counts that hospitals release" in page.text
    assert "took no part" not in page.text


@pytest.mark.parametrize("name", ["accuracy", "balanced accuracy", "Dice coefficient", "<b>of another package</b>"])
def test_curves_bear_the_name_of_what_was_measured(tmp_path: Path, name: str) -> None:
    said = {} if name == "accuracy" else {"score": name}  # events of earlier versions do not say
    text = read(make_run(tmp_path / "r", [event(i, **said) for i in range(3)])).text
    assert f"{name[:1].upper()}{name[1:]} by round" in text and f"{name}, 0 to 100 %" in text
    assert "ccuracy" not in text.replace(name[1:], "")


DEPLOYED = {
    "event": "start",
    "time": "2026-11-28T19:20:00+00:00",
    "run": "spring-2",
    "digest": "d" * 64,
    "rounds": 41,
    "hospitals": ["north", "south"],
    "registered": {"north": {"declared_patients": 100}, "south": {"declared_patients": 80}, "west": {}},
    "versions": {"wardround": "9.9"},
}


def deployed(number: int, **more: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"accuracy": None, "accuracy_by_hospital": {}, "absent": ["west"]}
    return event(number, **nothing, answers={"north": f"{number:064x}"}) | more


def test_a_deployed_run_claims_no_more_than_its_events_say(tmp_path: Path) -> None:
    refused = {"declared_patients": {"north": 100}, "replied": 1, "rejected": {"south": "PolicyRefusal"}}
    events = [DEPLOYED, *(deployed(number, **refused) for number in range(4))]
    page = read(make_run(tmp_path / "r", [*events, {"event": "done", "time": "2026-11-28T19:41:00+00:00"}]))
    assert "1 hospital trained a model together in 3 rounds." in page.text
    assert "How well it tells normal and nodule apart was not measured." in page.text
    assert "Never answered: south (0 of 4), west (0 of 4)." in page.text
    assert "1 of 3 hospitals answered at least once" in page.text
    assert "33 % of the questions were answered: 4 of 12" in page.text
    assert "rounds 0 to 3: PolicyRefusal" in page.text
    assert "rounds 0 to 3: not connected" in page.text
    assert "run spring-2 · 2026-11-28 19:20 to 19:41 UTC" in page.text
    assert "wardround 9.9" in page.text
    assert "d" * 64 in page.text
    assert f"{3:064x}"[:16] in page.text, "which the hospital finds in its ledger"
    assert "modality" not in page.text, "a column of which nothing is known"
    assert "Not compared with training at one hospital alone" in page.text
    assert "tossing a coin" in page.text, "what epsilon means"


def test_a_run_that_failed_says_so_first_and_why(tmp_path: Path) -> None:
    failed = {"event": "failed", "error": "QuorumMissed", "message": "round 2: only north <b>answered</b>."}
    missed = deployed(2, event="missed", declared_patients={"north": 100}, absent=["south", "west"])
    page = read(make_run(tmp_path / "r", [DEPLOYED, deployed(0), deployed(1), missed, failed]))
    first = page.text.split(": wardround report", 1)[1].strip()
    assert first.startswith("This run failed after 2 of 41 rounds. round 2: only north <b>answered</b>.")
    assert "5 of 9" in page.text
    assert "round 2: not connected" in page.text


def test_a_run_that_is_under_way_or_was_stopped_says_so(tmp_path: Path) -> None:
    text = read(make_run(tmp_path / "r", [DEPLOYED, deployed(0), deployed(1)])).text
    assert "This run is not finished: it is under way, or was stopped, after 2 of 41 rounds" in text


@pytest.mark.parametrize(("answers", "said"), [((200, 200), "100"), ((199, 200), "99"), ((1, 900), "1"), ((0, 9), "0")])
def test_a_share_is_100_per_cent_only_of_all(answers: tuple[int, int], said: str) -> None:
    assert whole_percent(*answers) == f"{said}\u202f%"


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilsons_interval_holds_the_share_and_is_never_a_point(share: float, count: int) -> None:
    low, high = wilson(share, count)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
    assert high - low > 1e-4


ODD = st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())


@given(st.dictionaries(st.sampled_from(sorted(RoundEnded.model_fields)), ODD))
def test_a_line_with_odd_values_is_an_event_all_the_same(fields: dict[str, Any]) -> None:
    event = parsed(fields | {"event": "round"})
    assert isinstance(event, RoundEnded)
    assert parsed(json.loads(event.line())) == event


def test_grey_bars_can_be_told_from_the_paper_in_both_lights() -> None:
    style = style_sheet()
    for colours in style.split("prefers-color-scheme: dark")[:2]:
        found = dict(re.findall(r"--(\w+): #([0-9a-f]{6})", colours))
        light = {name: luminance(found[name]) for name in ("faint", "main", "second", "third", "fourth", "card")}
        paper = light.pop("card")
        assert all((max(paper, each) + 0.05) / (min(paper, each) + 0.05) >= 3 for each in light.values())


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_file_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "r", comparison=COMPARISON, simulation=SIMULATION)).read_text()
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    assert {tag for tag, _ in Page(html).tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_every_drawing_has_a_name_for_those_who_cannot_see_it(tmp_path: Path) -> None:
    page = read(make_run(tmp_path / "r", comparison=COMPARISON, simulation=SIMULATION))
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 3 + 2 * len(NAMES)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30))
def test_no_string_of_a_run_becomes_markup(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    evil = f'"><script>alert(1)</script><b onload=x>{text}'
    described = [{"name": evil, "modality": evil, "manufacturer": evil, "took_part": True}]
    one = event(
        1, epsilon={evil: 1.0}, rejected={evil: evil}, accuracy_by_hospital={evil: 0.5}, declared_patients={evil: 3}
    )
    events = [one, {"event": "done", "versions": {evil: evil}}]
    run = make_run(
        tmp_path_factory.mktemp("evil") / "r",
        events,
        simulation={"hospitals": described},
        comparison=COMPARISON | {"hospital": evil},
    )
    page = read(run)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b onload"})
    assert not [attrs for _, attrs in page.tags if "onload" in attrs]


def test_rejections_stand_in_the_table_with_their_round(tmp_path: Path) -> None:
    events = [event(0), event(1, rejected={"south": "holds NaN"}, declared_patients={"north": 100}), event(2)]
    page = read(make_run(tmp_path / "r", events))
    assert "round 1: holds NaN" in page.text
    assert "2 of 3" in page.text


def test_a_resumed_run_counts_a_round_once(tmp_path: Path) -> None:
    events = [event(0), event(1), event(2), event(1, replied=1), event(2), event(3)]
    page = read(make_run(tmp_path / "r", events))
    assert "in 3 rounds" in page.text


def test_a_line_that_was_cut_off_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "rou')
    assert "in 3 rounds" in read(run).text


def test_damage_within_the_events_is_named_by_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join([lines[0], "{oops", *lines[1:]]))
    with pytest.raises(DataError, match="line 2 is not JSON"):
        write_report(run)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        write_report(tmp_path)


def test_a_broken_agreement_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    (run / "federation.toml").write_text("name = 3")
    with pytest.raises(ConfigError, match=r"federation\.toml"):
        write_report(run)


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    (run / "report.html").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(run)


def test_a_run_with_no_finished_round_is_still_a_page(tmp_path: Path) -> None:
    assert "nothing was measured" in read(make_run(tmp_path / "r", [{"event": "start"}])).text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_in_even_steps(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else span
    assert 1 <= len(ticks) <= 9
    assert ticks[0] <= low + 1e-6 * step + 1e-9
    assert ticks[-1] >= low + span - 1e-6 * step - 1e-9


def test_charts_of_one_point_and_of_equal_values_are_drawn() -> None:
    assert "circle" in line_chart([Curve("a", [(1, 0.5)])], title="t", x_label="x", y_label="y")
    assert "polyline" in line_chart([Curve("a", [(1, 0.0), (2, 0.0)])], title="t", x_label="x", y_label="y")
    assert "nan" not in bar_chart([("g", [Bar(0.0, 0.0, 0.0, "main", "b")])], title="t", chance=None, y_label="y")
