"""One of a thing is told in the singular, whatever is counted."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.text import counted
from wardround_client.commands.ingest import print_summary
from wardround_client.intake.summary import IngestSummary

NUMBERS = [each.name for each in fields(IngestSummary) if each.type == "int"]
WORDS = "image|label|patient|PatientID|SOP Instance UID|line|row|issuer|round|file"


def wrong(text: str) -> list[str]:
    """Ones with a plural behind them, and others without."""
    one = rf"(?<![\d.,])1 (?:(?!of\b)[a-z]+ )?(?:{WORDS})s\b"
    return re.findall(rf"{one}|(?<!\d)(?:0|[2-9]|\d\d+) (?:(?!of\b)[a-z]+ )?(?:{WORDS})\b", text)


@given(counts=st.fixed_dictionaries({name: st.integers(0, 3) for name in NUMBERS}))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_summary_counts_in_english(counts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(IngestSummary(reasons={"not DICOM": 1}, **counts), Path("cohort"), dry_run=False, as_json=False)
    assert wrong(" ".join(capsys.readouterr().out.split())) == []


def test_the_singular_is_for_one_alone() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 1000)] == ["0 images", "1 image", "2 images", "1,000 images"]
    assert (counted(1, "study", "studies"), counted(2, "study", "studies")) == ("1 study", "2 studies")
    assert wrong("1 images") and wrong("2 stored image there") and not wrong("1 of 2 images, 1 stored image")
