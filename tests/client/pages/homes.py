"""Homes for the pages, filled by hand: what others wrote stands in every field that a page shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image
from tests.client.conftest import FEDERATION_TOML

from wardround_client.privacy.ledger import LEDGER, Ledger

ATOMS = (
    "<script>window.hit=1</script>", '"><img src=x onerror=window.hit=1>', "' onfocus='window.hit=1' autofocus='",
    "</textarea></table></main><h1>", "{{ 7 * 7 }}{% raw %}", "javascript:window.hit=1", "&lt;b&gt;&#60;",
    "<!--", "]]>",
    "\u202e\u2066abc\u2069", "\u200b\u00ad\ufeff", "\r\nSet-Cookie: a=b\r\n\r\n", "\x00\x07\x1b[2J",
    "\u2028\u2029\x85\x0b",
    "e" + "\u0301" * 40, "=cmd|' /C calc'!A0", "..%2f..%2f", "\U0001f600", "\u0645\u0631\u062d\u0628\u0627",
    "x" * 10_000,
    "w " * 5_000,
)  # fmt: skip
"""What strangers write into names: markup, marks that turn the reading direction, lines, controls, megabytes."""

hostile = st.lists(st.one_of(st.sampled_from(ATOMS), st.text(min_size=1, max_size=8)), min_size=1, max_size=3).map(
    lambda parts: "n" + "".join(parts)
)


def fill(home: Path, written: Callable[[str], str]) -> None:
    """Predictions with a picture, suggestions, quarantine and a last refusal. written: the name of a field -> what
    stands in it.
    """
    folder = home / "predictions" / "lungs-1"
    (folder / "heatmaps").mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    Image.new("L", (32, 32), 128).save(picture, "PNG")
    (folder / "heatmaps" / "1.png").write_bytes(picture.getvalue())
    row = {
        "file": written("file"),
        "number": 1,
        "patient": written("patient"),
        "learned_from": True,
        "predicted": written("predicted"),
        "probabilities": {written("class"): 0.75},
        "out_of_distribution": True,
        "unfamiliar": written("unfamiliar"),
        "heatmap": "heatmaps/1.png",
    }
    found = {
        "adapted": written("adapted"),
        "federation": written("federation"),
        "run": written("run"),
        "round": written("round"),
        "algorithm": written("algorithm"),
        "complete": False,
        "images": [row],
        "patients": [{**row, "images": 1}],
        "refused": [{"file": written("refused"), "reason": written("why"), "detail": written("detail")}],
    }
    (folder / "predictions.json").write_text(json.dumps(found))
    (home / "suggestions").mkdir(exist_ok=True)
    _csv(home / "suggestions" / "1.csv", [["why", written("column")], [written("said"), written("cell")]])
    reason = ["file", "reason", "detail"], [written("set aside"), written("reason"), written("because")]
    _csv(home / "cohort" / "quarantine.csv", list(reason))
    (home / "last-refusal").write_bytes(written("refusal").encode("utf-8", "surrogateescape")[:4000])


def _csv(file: Path, rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    file.write_bytes(text.getvalue().encode("utf-8", "replace"))


def propose(home: Path) -> None:
    """An agreement that waits, and a file that is none."""
    if not (home / LEDGER).exists():
        Ledger(home / LEDGER).close()
    (home / "proposed" / "lungs").mkdir(parents=True)
    (home / "proposed" / "lungs" / "federation.toml").write_text(FEDERATION_TOML)
    (home / "proposed" / "broken.toml").write_text("name = 3")
