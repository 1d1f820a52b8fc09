"""A row can be given to anybody: it has no place for a text from outside, and comes back as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.experience.file import MOST_ROWS, append, ours, parsed, read
from wardround.experience.row import Described, Row, nested, settings_of
from wardround.task import Task

TASK = Task(label_column="ward", classes=("mr smith", "mrs smith", "nobody"))
words = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
numbers = st.floats(-1e6, 1e6).map(lambda each: round(each, 4))
described = st.builds(
    Described,
    kind=st.sampled_from(["image", "volume", "table", "inputs"]),
    labels=words,
    classes=st.integers(2, 256),
    image_size_px=st.integers(0, 1024),
    columns=st.integers(0, 4096),
    hospitals=st.lists(st.integers(1, 10**9), min_size=1, max_size=9),
    epsilon=st.none() | st.floats(1e-3, 1e6),
    encoder=st.sampled_from(["", "builtin", "0a" * 32]),
    balance=st.lists(st.floats(0, 1), max_size=5),
)
rows = st.builds(
    Row,
    task=described,
    settings=st.dictionaries(
        st.from_regex(r"(algorithm|outer)\.[a-z][a-z_]{0,9}", fullmatch=True), st.booleans() | numbers | words
    ),
    scores=st.dictionaries(st.integers(0, 1000), st.floats(0, 1), max_size=4),
    runs=st.integers(1, 99),
)


def a_row(**change: Any) -> Row:
    values = {"task": Described.of(TASK, [200, 30], 8.0), "settings": {"algorithm.name": "fedavg"}, "scores": {5: 0.7}}
    return Row.model_validate(values | change)


def texts(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Every place of a JSON schema where a text can stand."""
    found = [schema] if schema.get("type") == "string" else []
    for value in schema.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                found += texts(each)
    return found


def test_no_field_takes_a_text_from_outside() -> None:
    places = texts(Row.model_json_schema())
    assert len(places) > 5
    for place in places:
        assert "enum" in place or "const" in place or "pattern" in place, place
        assert " " not in place.get("pattern", "") or place["title"] == "Metric"
    # Keys of a dictionary are texts too.
    assert Row.model_json_schema()["properties"]["settings"].get("patternProperties")


def test_of_a_task_only_numbers_are_kept_and_of_hospitals_no_order() -> None:
    found = Described.of(TASK, [200, 30, 90], 8.0)
    assert found.hospitals == (30, 90, 200)
    assert "smith" not in found.model_dump_json() and "ward" not in found.model_dump_json()


@given(rows)
def test_a_row_comes_back_as_it_was_written(row: Row) -> None:
    assert Row.model_validate_json(row.line()) == row
    assert json.loads(row.line())["version"] == 1


@given(rows, st.dictionaries(words, st.integers() | st.text(), max_size=3))
def test_what_a_newer_version_adds_is_skipped(row: Row, more: dict[str, Any]) -> None:
    known = json.loads(row.line())
    newer = {**{f"new_{key}": value for key, value in more.items()}, **known, "version": 2}
    newer["task"] = {**known["task"], "new_sort_of_thing": more}
    found = Row.model_validate_json(json.dumps(newer))
    assert found.version == 2
    assert found.model_copy(update={"version": 1}) == row


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_settings_are_the_agreement_whatever_the_algorithm(name: str) -> None:
    model = {"embedding": 8} if "compares" in dir(ALGORITHMS[name]) and ALGORITHMS[name].compares else {}
    federation = Federation.model_validate({"name": "n", "task": TASK, "model": model, "algorithm": {"name": name}})
    settings = settings_of(federation)
    again = Federation.model_validate({"name": "n", "task": TASK, **nested(settings)})
    assert again == federation
    assert a_row(settings=settings).settings == settings


@given(st.lists(rows, max_size=5), st.binary(max_size=300))
def test_a_damaged_file_gives_the_rows_that_are_whole(given_rows: list[Row], rubbish: bytes) -> None:
    lines = [row.line().encode() for row in given_rows]
    found = parsed(b"\n".join([*lines, b"{" + rubbish.replace(b"\n", b""), b'{"version":1}', b"\xff\xfe", b""]))
    assert found.rows == given_rows
    assert "3 lines that are no row" in found.passed_over


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = a_row().line().encode()
    monkeypatch.setattr("wardround.experience.file.MOST_ROWS", 3)
    found = parsed(b"\n".join([a_row(runs=2).line().encode(), line, line, line]))
    assert [row.runs for row in found.rows] == [1, 1, 1] and "the last 3" in found.passed_over
    assert len(parsed(b'{"settings":' + b" " * (1 << 20) + b"}").rows) == 0
    monkeypatch.setattr("wardround.experience.file.EXPERIENCE_BYTES", 10)
    (tmp_path / "large").write_bytes(line)
    with pytest.raises(ConfigError, match="larger than"):
        read(tmp_path / "large")
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing")


def test_rows_are_appended_after_a_torn_line_and_not_twice(tmp_path: Path) -> None:
    path = tmp_path / "home" / "experience.jsonl"
    append(path, a_row())
    append(path, a_row())  # the same run, resumed at its end
    append(path, a_row(runs=2))
    append(path, a_row())
    assert [row.runs for row in read(path).rows] == [1, 2, 1]
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("ab") as file:
        file.write(b'{"version":1,"ta')
    append(path, a_row(runs=3))
    found = read(path)
    assert [row.runs for row in found.rows] == [1, 2, 1, 3]
    assert found.passed_over == "1 line that is no row"


def test_ours_are_means_over_public_data() -> None:
    found = ours()
    assert 0 < len(found) <= MOST_ROWS
    assert {row.algorithm for row in found} <= set(ALGORITHMS.built_in)
    for row in found:
        assert row.source and row.newcomer and {1, 5} <= set(row.scores)
        assert max(row.task.hospitals) <= 10_000
