"""Items are read in processes of their own: one that crashes, loops or eats memory costs itself and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.intake.misbehaving import Made

from wardround_client.cohort.store import CohortStore
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection, Source
from wardround_client.intake.summary import IngestSummary
from wardround_client.intake.workers import CRASHED, NO_MEMORY, TOO_SLOW, Outcome, outcomes

KEY = bytes(range(32))
RECIPE = ImageRecipe(8, 1)


class Archive(Source):
    """A source in memory."""

    kind = "image"
    identity = "number"

    def __init__(self, made: list[Made]) -> None:
        self.name, self.label_columns, self._made = "archive", (), made

    def items(self) -> Iterator[Made]:
        return iter(self._made)


def read(items: list[Made], workers: int, patience_s: float = 60.0) -> list[tuple[Made, Outcome]]:
    return list(outcomes(iter(items), RECIPE, Pseudonyms(KEY), workers, patience_s=patience_s))


@pytest.mark.parametrize(
    ("way", "outcome"),
    [("hangs", TOO_SLOW), ("dies", CRASHED), ("eats", NO_MEMORY)],
)
def test_an_item_that_fails_costs_itself_only(way: str, outcome: Rejection) -> None:
    patience_s = 1.0 if way == "hangs" else 60.0
    items = [Made(number, way if number == 5 else "fine") for number in range(12)]
    found = read(items, 2, patience_s)
    assert [item.number for item, _ in found] == list(range(12))
    assert found[5][1] == outcome
    assert all(isinstance(each, Instance) for item, each in found if item.number != 5)


def test_an_item_that_failed_for_the_sake_of_others_is_read_again(tmp_path: Path) -> None:
    """The system kills whom it likes when memory is short."""
    items = [Made(number, "dies once" if number % 4 == 1 else "fine", tmp_path / f"{number}") for number in range(8)]
    assert all(isinstance(outcome, Instance) for _, outcome in read(items, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_an_item_raises_is_its_rejection_and_quotes_nothing_in_the_reason(workers: int) -> None:
    ways = {
        "raises": "damaged",
        "panics": "damaged",
        "exits": "damaged",
        "unreadable": "cannot be read",
        "refuses": "no",
    }
    found = read([Made(number, way) for number, way in enumerate(ways)], workers)
    assert [each.reason for _, each in found if isinstance(each, Rejection)] == [*ways.values()]


def test_no_item_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround_client.intake.workers.ProcessPool", None)
    assert read([], 2) == []


def take_in(items: list[Made], cohort: Path, workers: int) -> IngestSummary:
    return ingest(Archive(items), cohort, RECIPE, key=KEY, workers=workers)


@pytest.mark.parametrize("seed", range(2))
def test_the_cohort_is_the_same_whatever_the_number_of_workers_and_whichever_item_died(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    fine = [Made(number) for number in range(40)]
    wrong = {number: chance.choice(["dies", "eats", "other shape"]) for number in chance.sample(range(40), 3)}
    take_in([item for item in fine if item.number not in wrong], tmp_path / "without", 0)
    inputs = (tmp_path / "without" / "inputs.bin").read_bytes()
    for workers in (1, 3):
        cohort = tmp_path / f"{workers}"
        summary = take_in([Made(item.number, wrong.get(item.number, "fine")) for item in fine], cohort, workers)
        assert (summary.used, summary.quarantined) == (37, 3)
        assert (cohort / "inputs.bin").read_bytes() == inputs
        a, b = (CohortStore.open(path, withdrawn=()) for path in (cohort, tmp_path / "without"))
        assert a.pseudonyms == b.pseudonyms and a.patients.tolist() == b.patients.tolist()


def test_what_a_reader_imports_is_no_torch() -> None:
    """It costs two seconds and 200 MB of each process; these modules hold every item that is read in one."""
    held = "pacs.items", "sources.dicom_folder", "sources.image_folder", "sources.npz"
    names = [f"wardround_client.intake.{name}" for name in held] + ["wardround_client.personal.new_file"]
    code = f"import sys, {', '.join(names)}, tests.client.intake.misbehaving; sys.exit('torch' in sys.modules)"
    folder = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
