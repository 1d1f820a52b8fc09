"""Faults at any requests of a pull: what is stored is true, sums are right, and a second pull completes it.

An hour that ends in the middle is one of them. For single images, for volumes and for labels out of reports, where
files of a study, or of a patient, belong together.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.intake.dicom_files import KEY
from tests.client.intake.test_pull_lies import IN_QIDO, IN_WADO, Inline, edited, rows
from tests.client.intake.test_pull_together import REPORTED, VOLUMES, reported, slices
from tests.liar import Exchange, Liar, lying, told
from tests.pacs import named_by, phantoms

from wardround.errors import WardroundError
from wardround.task import Task
from wardround_client.config import Pacs
from wardround_client.intake.gather import lookers
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.pacs.line import Throttle
from wardround_client.intake.recipe import ImageRecipe, recipe_of
from wardround_client.intake.reported import From
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.sources.dicomweb import DicomWebSource


class Case(NamedTuple):
    store: Path
    liar: Liar
    task: Task | None
    labels_from: From | None
    honest: Path

    @property
    def recipe(self) -> Any:
        return recipe_of(self.task) if self.task else ImageRecipe(16, 1)


@pytest.fixture(scope="module", params=["images", "volumes", "reports"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp(request.param)
    made: dict[str, tuple[Any, Task | None, From | None]] = {
        "images": (lambda into: phantoms(into, patients=1, series=3), None, None),
        "volumes": (lambda into: slices(into, patients=1, series=3), VOLUMES, None),
        "reports": (reported, REPORTED, "sr"),
    }
    write, task, labels_from = made[request.param]
    store = write(folder / "studies")
    named_by(store / "labels.csv", store, folder / "named")
    labels = None if labels_from else store / "labels.csv"
    source = DicomFolder(Asked(str(folder / "named"), labels, task=task), DicomFolder.Settings(labels_from=labels_from))
    with lying(store) as liar:
        found = Case(store, liar, task, labels_from, folder / "cohort")
        ingest(source, found.honest, found.recipe, key=KEY, workers=0)
        yield found


@pytest.fixture(scope="module", autouse=True)
def _inline() -> Iterator[None]:
    """No process for the PACS and none for looking: a fault costs milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacs_source, "Line", Inline)
        patch.setattr(pacs_source, "pause", lambda seconds: None)
        patch.setattr(pacs_source, "lookers", lambda: lookers(0))
        yield


def pull(case: Case, home: Path, **more: Any) -> Any:
    """The summary, or the error."""
    asked = Asked(case.liar.url, case.store / "labels.csv", task=case.task, home=home)
    pacs = Pacs(**{"url": case.liar.url, "attempts": 1, **more})
    with closing(DicomWebSource(asked, pacs, case.labels_from)) as source:
        try:
            summary = ingest(source, home / "cohort", case.recipe, key=KEY, workers=0)
            assert summary.read == summary.used + summary.quarantined
            source.ended()
            result: Any = summary
        except WardroundError as error:
            result = error
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    return result


FAULTS = st.dictionaries(st.integers(0, 14), st.integers(0, 30), max_size=4)


@settings(max_examples=12)
@given(faults=FAULTS, hours=st.none() | st.integers(0, 8))
def test_what_is_stored_beside_faults_is_true_and_nothing_is_lost(
    case: Case, faults: dict[int, int], hours: int | None
) -> None:
    """faults: by the number of the request, which lie. hours: so many looks at the clock, and they are over."""
    count = iter(range(1000))
    looks = iter([dt.time(5)] * hours if hours is not None else [])

    def lie(exchange: Exchange) -> bool:
        number = next(count)
        lies = IN_WADO if exchange.found is None else IN_QIDO
        return number in faults and bool(lies[faults[number] % len(lies)](exchange))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        patch.setattr(pacs_source, "clock", lambda: next(looks, dt.time(5 if hours is None else 7)))
        case.liar.lies = [lie]
        pull(case, home, hours="22:00-06:00")
        stored, honest = (rows(cohort, case.recipe) for cohort in (home / "cohort", case.honest))
        assert stored.items() <= honest.items()
        case.liar.lies = []
        patch.setattr(pacs_source, "clock", lambda: dt.time(23))
        completed = pull(case, home, hours="22:00-06:00")
        assert not isinstance(completed, WardroundError)
        assert rows(home / "cohort", case.recipe) == honest
        assert labels_of(home / "cohort") == labels_of(case.honest)


def labels_of(cohort: Path) -> list[tuple[object, ...]]:
    """Of patients by their pseudonyms."""
    with closing(sqlite3.connect(cohort / "index.sqlite")) as index:
        asked = """SELECT pseudonym, subject, name, value FROM labels JOIN patients ON id = patient
        JOIN label_columns ON position = column ORDER BY 1, 2, 3"""
        return index.execute(asked).fetchall()


@settings(max_examples=6)
@given(st.sampled_from(["InstanceCreationTime", "StudyUpdateDateTime"]), st.integers(0, 5))
def test_what_was_changed_in_place_is_fetched_again_where_the_pacs_tells(case: Case, by: str, number: int) -> None:
    """And nothing else is."""
    named = [place for place, (tags, _) in enumerate(case.liar.objects) if tags["PatientID"] == "PAT-0"]
    place, before = named[number % len(named)], list(case.liar.objects)
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(before[place][1]))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        case.liar.lies = []
        pull(case, home)
        try:
            for at, (tags, file) in enumerate(before):
                same = tags["StudyInstanceUID"] == before[place][0]["StudyInstanceUID"]
                if at == place or (same and by == "StudyUpdateDateTime"):
                    new: dict[str, Any] = {by: "20300101120000" if by.startswith("Study") else "120000"}
                    changed = edited(file, **new)
                    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(changed))
                    case.liar.objects[at] = (told(data), changed)
            asked = len(case.liar.asked)
            pull(case, home)
            fetched = [path for path in case.liar.asked[asked:] if "includefield" not in path]
            assert fetched
            if case.task is None:
                assert all(data.StudyInstanceUID in path for path in fetched)
            asked = len(case.liar.asked)
            pull(case, home)
            assert all("includefield" in path for path in case.liar.asked[asked:]), "once"
        finally:
            case.liar.objects = before


@given(st.floats(1e3, 1e9), st.lists(st.integers(0, 1 << 17), max_size=60), st.lists(st.floats(0, 0.2), min_size=60))
def test_a_bandwidth_is_kept_on_average(bytes_per_s: float, sizes: list[int], late: list[float]) -> None:
    """Whatever each sleep takes beyond what was asked: by an injected clock."""
    now = [0.0]
    lateness = iter(late)

    def sleep(seconds: float) -> None:
        now[0] += seconds + next(lateness)

    throttle = Throttle(bytes_per_s, sleep, lambda: now[0])
    for size in sizes:
        if throttle.owes(size):
            throttle.pay()
    assert now[0] >= sum(sizes) / bytes_per_s - 0.05 - 1e-6
    assert now[0] <= sum(sizes) / bytes_per_s + sum(late) + 1e-6
