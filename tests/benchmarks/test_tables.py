"""What the benchmarks' tables have in common."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tables import RESULTS, Row, Store, curve_svg, estimate, hardware, markdown
from wardround.errors import StorageError
from wardround.web.charts import Curve

SVG = "{http://www.w3.org/2000/svg}"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_an_interval_is_that_of_student(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(math.fsum(values) / len(values))
    error = float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=error) if error else (found.mean,) * 2
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_an_estimate_is_written_in_percent() -> None:
    assert str(estimate([0.5, 0.75, 1.0])) == "75.00 ± 62.10"


def test_rows_stay_and_a_new_one_replaces_that_of_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert Store(folder).rows() == {}
    Store(folder).put("b", {"steps": 1})
    Store(folder).put("a", {"steps": 2})
    Store(folder).put("b", {"steps": 3})
    assert list(Store(folder).rows().items()) == [("a", {"steps": 2}), ("b", {"steps": 3})]


def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("no JSON")
    with pytest.raises(StorageError, match="cannot be read"):
        Store(tmp_path).put("a", {})
    assert (tmp_path / RESULTS).read_text() == "no JSON"


def test_a_table_has_its_columns_in_order_and_gaps_for_what_is_missing() -> None:
    rows: list[Row] = [{"steps": 5, "name": "maml", "hidden": 1}, {"name": "reptile"}]
    assert markdown(rows, {"name": "method", "steps": "steps"}) == (
        "| method | steps |\n|---|---|\n| maml | 5 |\n| reptile |  |\n"
    )


def test_a_curve_is_a_picture_of_its_own_that_shows_where_it_ends() -> None:
    line = Curve("maml", [(1.0, 0.4), (2.0, 0.9), (3.0, 0.95)])
    root = ElementTree.fromstring(curve_svg(line, title="a < b", x_label="minutes", aim=0.987))
    assert root.tag == f"{SVG}svg"
    (curve,) = root.iter(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in curve.attrib["points"].split()]
    assert len(places) == 2  # 0.4 lies below an axis that begins at 0.75
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert "published: 98.7 %" in {text.text for text in root.iter(f"{SVG}text")}
    assert ".curve" in (root.findtext(f"{SVG}style") or "")


def test_hardware_names_threads_and_torch() -> None:
    assert "1 used, torch 2" in hardware()
