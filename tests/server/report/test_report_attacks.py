"""The report says in plain words what an attacker gets, draws it to scale, and is silent where nothing was attacked."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from tests.server.report.test_report import make_run

from wardround.web.charts import Curve, roc_chart
from wardround_server.report import write_report


def point(asked: float, tpr: float, passes: bool = False) -> dict[str, Any]:
    return {
        "fpr_asked": asked,
        "resolved": True,
        "false_positives": 1,
        "fpr": asked,
        "fpr_low": asked / 2,
        "fpr_high": asked * 2,
        "tpr": tpr,
        "tpr_low": tpr / 2,
        "tpr_high": min(1.0, tpr * 2),
        "passes_the_promise": passes,
    }


def attack(label: str, tpr: float, passes: bool = False) -> dict[str, Any]:
    return {
        "name": label,
        "label": label,
        "adversary": f"knows {label}",
        "auc": 0.5 + tpr,
        "auc_standard_error": 0.01,
        "points": [point(0.001, tpr, passes), point(0.01, 2 * tpr)],
        "roc": [[0.001, tpr], [0.01, 2 * tpr], [1.0, 1.0]],
    }


MEMBERSHIP: dict[str, Any] = {
    "members": 1234,
    "non_members": 1000,
    "resolution": 0.001,
    "confidence": 0.95,
    "shadow_runs": 16,
    "rounds_used": 3,
    "rounds": 40,
    "ceiling": {
        "mu": 2.0,
        "tpr": [[0.001, 0.1378], [0.01, 0.372]],
        "curve": [[1e-4, 0.043], [0.01, 0.372], [1.0, 1.0]],
    },
    "attacks": [attack("the loss", 0.0013), attack("all deltas", 0.0456)],
    "left_out": {"shadow models": "too slow"},
    "seconds": 1.0,
}
AUDIT: dict[str, Any] = {
    "claimed_epsilon": 8.0,
    "lower_bound_epsilon": 7.1,
    "delta": 1e-3,
    "confidence": 0.95,
    "holds": True,
    "refuted": [],
    "headline": "Whole run: claimed epsilon 8.00; the audit shows at least 7.10.",
    "experiments": [
        {
            "name": "images",
            "tests": "each image is clipped, and not the patient",
            "claimed_epsilon": 7.26,
            "lower_bound_epsilon": 5.93,
            "guesses": 1334,
            "answers": 2000,
            "holds": True,
        }
    ],
    "seconds": 1.0,
}


def report(folder: Path, **files: Any) -> str:
    return write_report(make_run(folder, **files)).read_text(encoding="utf-8")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("\u202f", " ").split())


def test_without_an_attack_there_is_no_section(tmp_path: Path) -> None:
    assert "What an attacker gets" not in report(tmp_path)


def test_the_section_says_who_finds_how_many_and_what_the_promise_allows(tmp_path: Path) -> None:
    text = words(report(tmp_path, membership=MEMBERSHIP, audit=AUDIT))
    assert "1,234 patients took part, 1,000 of the same kind did not" in text
    assert "One who knows the loss finds 0.13 % of those who took part; one who knows all deltas finds 4.56 %" in text
    assert "No attack whatever can be expected to find more than 13.8 %" in text
    assert "4.56 % 2.28 to 9.12 %" in text  # with its interval
    assert "0.546 \u00b1 0.020" in text
    assert "One of 1,000 is 0.1 %: below that FPR nothing can be told apart" in text
    assert "Deltas of 3 of 40 rounds were used." in text
    assert "Left out: shadow models (too slow)." in text
    assert AUDIT["headline"] in text
    assert "images each image is clipped, and not the patient 7.26 5.93 1,334 holds" in text
    assert "refuted" not in text and "above the promise" not in text


def test_each_finding_stands_alone(tmp_path: Path) -> None:
    assert "Audit with canaries" not in report(tmp_path / "a", membership=MEMBERSHIP)
    assert "ROC curves" not in report(tmp_path / "b", audit=AUDIT)
    skipped = words(report(tmp_path / "c", membership={"skipped": "no strangers"}, audit={"skipped": "no claim"}))
    assert "no strangers" in skipped and "no claim" in skipped


def test_without_privacy_no_limit_is_drawn(tmp_path: Path) -> None:
    html = report(tmp_path, membership=MEMBERSHIP | {"ceiling": None, "privacy": "OFF"})
    assert "Privacy was OFF, so nothing limits what an attack may find" in words(html)
    assert 'class="curve limit"' not in html and "the most that the promise allows" not in html


def test_a_broken_promise_is_an_alarm(tmp_path: Path) -> None:
    found = MEMBERSHIP | {"attacks": [attack("the loss", 0.001), attack("all deltas", 0.4, passes=True)]}
    rows = copy.deepcopy(AUDIT["experiments"])
    rows[0] |= {"holds": False, "lower_bound_epsilon": 12.0}
    html = report(tmp_path, membership=found, audit=AUDIT | {"holds": False, "experiments": rows})
    text = words(html)
    assert html.count('class="banner" role="alert"') == 2
    assert "all deltas: more is found than the promise allows" in text and "above the promise" in text
    assert "The audit refutes what is claimed of epsilon" in text and "12.00 1,334 refuted" in text


def test_no_text_of_a_file_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    found = MEMBERSHIP | {"attacks": [attack(evil, 0.1)], "left_out": {evil: evil}}
    rows = [AUDIT["experiments"][0] | {"name": evil, "tests": evil}]
    html = report(tmp_path, membership=found, audit=AUDIT | {"headline": evil, "experiments": rows})
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize("tpr", [0.0, 1e-9, 0.3, 1.0])
def test_a_curve_is_drawn_as_steps_inside_its_frame(tpr: float) -> None:
    svg = roc_chart([Curve("a", [(0.01, tpr), (0.1, 1.0), (1.0, 1.0)])], title="t", resolution=0.01)
    (points,) = re.findall(r'<polyline class="curve main" points="([^"]+)"', svg)
    corners = [tuple(map(float, corner.split(","))) for corner in points.split(" ")]
    assert len(corners) == 5
    assert corners[0][1] == corners[1][1] and corners[1][0] == corners[2][0]  # level, then up
    assert all(58 <= x <= 506 and 26 <= y <= 386 for x, y in corners)
    (left, width) = map(float, re.findall(r'class="unresolved" x="([\d.]+)" [^>]* width="([\d.]+)"', svg)[0])
    assert left + width == pytest.approx(corners[0][0], abs=0.2)  # shaded up to where the curve begins
