"""The new-hospital card: before and after side by side, and honest about what was not judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.server.report.test_report import COMPARISON, SIMULATION, make_run, read

from wardround_server.report.card import METRICS


def judged(value: float, *, missing: str = "") -> dict[str, Any]:
    """A report in which every metric has this value."""
    metrics = {
        metric.name: None if metric.name == missing else {"value": value, "low": value - 0.1, "high": value + 0.1}
        for metric in METRICS
    }
    return {"patients": 31, "predictions": 31, "classes": [0, 1], "specificity": 0.9, "metrics": metrics}


def card(before: float, after: float, *, missing: str = "", makers: tuple[str, ...] = ()) -> dict[str, Any]:
    reports = {}
    for when, value in (("before", before), ("after", after)):
        reports[when] = judged(value, missing=missing) | {"manufacturers": {m: judged(value) for m in makers}}
    return {
        "shots": 5,
        "classes": ["normal", "nodule"],
        "support_patients": 9,
        "support_by_class": {"normal": 5, "nodule": 4},
        "support_images": 20,
        **reports,
    }


def text_of(folder: Path, found: dict[str, Any]) -> str:
    return read(make_run(folder, comparison=COMPARISON | {"card": found}, simulation=SIMULATION)).text


def test_before_and_after_stand_side_by_side_with_their_intervals(tmp_path: Path) -> None:
    text = text_of(tmp_path / "r", card(0.52, 0.71))
    assert "New-hospital card: newcomer" in text
    assert "learned from 9 labelled patients of this hospital (5 normal, 4 nodule)" in text
    assert "31 other patients of it judge it, before and after." in text
    assert "The macro AUROC rose from 0.520 to 0.710." in text
    assert "0.520 0.420 to 0.620 0.710 0.610 to 0.810" in text
    assert "recall at 90 % specificity" in text
    assert text.count("lower is better") == 2


@pytest.mark.parametrize(("before", "after", "went"), [(0.7, 0.6, "fell"), (0.7, 0.7, "stayed")])
def test_a_loss_is_told_as_one(tmp_path: Path, before: float, after: float, went: str) -> None:
    assert f"The macro AUROC {went} from 0.700" in text_of(tmp_path / "r", card(before, after))


def test_manufacturers_are_compared_where_there_are_several(tmp_path: Path) -> None:
    assert "scanner's manufacturer" not in text_of(tmp_path / "a", card(0.5, 0.6, makers=("aurelia",)))
    text = text_of(tmp_path / "b", card(0.5, 0.6, makers=("aurelia", "<b>eikon</b>")))
    assert "scanner's manufacturer" in text
    assert "<b>eikon</b>" in text, "escaped"


def test_a_table_by_manufacturer_bears_the_name_of_its_number(tmp_path: Path) -> None:
    found = card(0.5, 0.6, makers=("aurelia", "eikon"))
    for each in (found["before"], found["after"]):
        dice = {"dice": {"value": 0.4321, "low": 0.4, "high": 0.5}}
        each |= {"metrics": dice, "manufacturers": {m: {"patients": 4, "metrics": dice} for m in ("aurelia", "eikon")}}
    text = text_of(tmp_path / "r", found)
    assert "Dice coefficient by the scanner's manufacturer" in text and text.count("0.432 0.400 to 0.500") == 6
    assert "alanced accuracy by the scanner" not in text


def test_what_could_not_be_judged_is_left_out_and_named(tmp_path: Path) -> None:
    found = card(0.5, 0.6, missing="macro_auroc")
    found["after"]["classes"] = [0]
    text = text_of(tmp_path / "r", found)
    assert "Not judged, for lack of patients: nodule." in text
    assert "macro AUROC" not in text


def test_one_report_says_one_balanced_accuracy_of_a_hospital(tmp_path: Path) -> None:
    found = card(0.6, 0.7)
    for when, value in (("before", 0.34), ("after", 0.39)):
        found[when]["metrics"]["balanced_accuracy"] = {"value": value, "low": value, "high": value}
    text = text_of(tmp_path / "r", found)
    assert "83 % balanced accuracy" in text, "of many draws of the labelled patients"
    assert not any(number in text for number in ("34 %", "34.0", "39 %", "39.0")), "of the card's one draw"


def test_an_interval_is_never_narrower_than_two_patients_allow(tmp_path: Path) -> None:
    found = card(1.0, 1.0)
    for when in ("before", "after"):
        found[when]["patients"] = 2
        found[when]["metrics"]["recall_at_specificity"] |= {"low": 1.0, "high": 1.0}
    assert "100.0 % 34.2 to 100.0" in text_of(tmp_path / "r", found)


def test_a_simulation_that_could_not_judge_says_why_and_an_older_run_has_no_card(tmp_path: Path) -> None:
    assert "every example is of one class" in text_of(tmp_path / "a", {"skipped": "every example is of one class"})
    older = read(make_run(tmp_path / "b", comparison=COMPARISON, simulation=SIMULATION)).text
    assert "New-hospital card" not in older


def test_a_row_without_shots_is_the_model_as_it_is(tmp_path: Path) -> None:
    value = {"mean": 0.55, "low": 0.55, "high": 0.55}
    rows = [{"shots": 0, "fresh": value, "meta": value}, *COMPARISON["rows"]]  # type: ignore[misc]
    text = read(make_run(tmp_path / "r", comparison=COMPARISON | {"rows": rows}, simulation=SIMULATION)).text
    assert "not adapted 55.0 % 55.0 % +0.0" in text
