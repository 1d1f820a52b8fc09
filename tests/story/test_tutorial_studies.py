"""docs/tutorial-studies.md, typed: segmentations out of a PACS, a federation that learns from them, masks at home."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pacs import running_orthanc
from tests.story.pages import typing
from tests.story.processes import typed

pytestmark = pytest.mark.story

ROUNDS = 2


def test_outlines_out_of_a_pacs_are_learned_from_and_drawn_at_a_hospital_that_took_no_part(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        instead = {
            "http://127.0.0.1:8042": orthanc.rest,
            "--patients 60-90": "--patients 20-22",
            "--patients 80": "--patients 20",
            "rounds = 20": f"rounds = {ROUNDS}",
        }
        with typing("tutorial-studies.md", home, "outlines", instead) as page:
            assert "The PACS answers" in page.after("pull st-anna --check")
            assert "'background' 22, 'disease' 18" in page.after("pull st-anna --check")
            assert page.after("hospital approve").count("Approved for 1 run") == 3
            assert (page.folder / "coordinator" / "runs" / "spring" / "report.html").is_file()
            at_home = page.after("hospital adapt")
            assert "Dice coefficient" in at_home and "balanced accuracy" not in at_home
            answers = page.folder / "answers"
            assert list(answers.rglob("*.png")) and list(answers.rglob("*.dcm"))
            assert '"entries": 0' in typed("hospital", "ledger", page.folder / "harbour", "--json")
