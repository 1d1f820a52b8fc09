"""An archive changes: images come, go, move, are corrected, change their patient; labels too. A later ingest follows.

Same as a clean ingest of the archive as it is now, or else the summary says what is not.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.intake.dicom_files import KEY, ingest_folder, write_dicom, write_patients
from tests.intake import ingest_dicom, ingest_table

from wardround.errors import DataError, StorageError
from wardround_client.cohort.erasure import erase
from wardround_client.cohort.index import INDEX, INPUTS
from wardround_client.cohort.store import CohortStore
from wardround_client.cohort.writer import CohortWriter
from wardround_client.config import Select
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rules
from wardround_client.intake.summary import IngestSummary

WHO = Pseudonyms(KEY)
EVERY = 1 << 20


@dataclass(frozen=True)
class Image:
    """What one file says."""

    patient: str = "A"
    uid: int = 0
    study: int = 0
    order: int = 0
    shade: int = 0
    modality: str = "CT"

    def write(self, path: Path) -> None:
        pixels = np.full((8, 8), self.shade, np.uint8)
        pixels[0, 0] = 255
        write_dicom(
            path, pixels, PatientID=self.patient, SOPInstanceUID=f"1.8.{self.uid}",
            StudyInstanceUID=f"1.9.{self.study}", SeriesInstanceUID=f"1.7.{self.study}",
            AccessionNumber=f"ACC{self.order}", Modality=self.modality,
        )  # fmt: skip


KEYS = {
    "PatientID": ("A", "B", "C"),
    "AccessionNumber": ("ACC0", "ACC1"),
    "StudyInstanceUID": ("1.9.0", "1.9.1"),
    "SeriesInstanceUID": ("1.7.0", "1.7.1"),
    "SOPInstanceUID": ("1.8.0", "1.8.1", "1.8.2"),
}


@dataclass
class Archive:
    """A folder of files, and its labels.csv. A UID names one content, as the standard demands."""

    folder: Path
    files: dict[str, Image] = field(default_factory=dict)
    key: str = "PatientID"
    lines: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, image: Image) -> None:
        for other, theirs in list(self.files.items()):
            if theirs.uid == image.uid:
                self.drop(other)
        self.files[name] = image
        image.write(self.folder / name)

    def drop(self, name: str) -> None:
        if self.files.pop(name, None):
            (self.folder / name).unlink()

    def move(self, name: str, to: str) -> None:
        if name in self.files and name != to:
            self.drop(to)
            self.files[to] = self.files.pop(name)
            (self.folder / name).rename(self.folder / to)

    def write_labels(self) -> None:
        with (self.folder / "labels.csv").open("w", newline="") as out:
            csv.writer(out).writerows([(self.key, "finding"), *self.lines.items(), ("nobody", "x")])


def rows_of(cohort: Path) -> dict[bytes, list[tuple[bytes, str | None, str]]]:
    store = CohortStore.open(cohort, withdrawn=())
    labels = store.labels("finding") if "finding" in store.label_columns else [None] * len(store)
    found: dict[bytes, list[tuple[bytes, str | None, str]]] = {}
    for patient, row, label, modality in zip(
        store.patients.tolist(), store.inputs[:], labels, store.modalities, strict=True
    ):
        found.setdefault(store.pseudonyms[patient], []).append((row.tobytes(), label, modality))
    return {who: sorted(rows, key=repr) for who, rows in found.items()}


class Crash(BaseException):
    """As if the power went."""


@contextmanager
def crashing(at: int, after: bool) -> Iterator[None]:
    """The n-th commit does not come, or is the last thing that happens."""
    commits, real = 0, CohortWriter._commit

    def commit(self: CohortWriter) -> None:
        nonlocal commits
        commits += 1
        if commits == at and not after:
            raise Crash
        real(self)
        if commits == at:
            raise Crash

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CohortWriter, "_commit", commit)
        with suppress(Crash):
            yield


def take_in(archive: Archive, cohort: Path, **more: Any) -> IngestSummary | None:
    """None: the CSV names nobody, and was refused."""
    archive.write_labels()
    try:
        return ingest_dicom(archive.folder, cohort, key=KEY, **more)
    except DataError as error:
        assert "is in the cohort" in str(error) or "holds no files" in str(error)
        return None


images = st.builds(
    Image, st.sampled_from("ABC"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 1), st.integers(0, 3),
    st.sampled_from(["CT", "MR"]),
)  # fmt: skip
names = st.sampled_from(["a.dcm", "b.dcm", "c.dcm", "d.dcm"])
keys = st.sampled_from([*KEYS]).flatmap(
    lambda key: st.tuples(
        st.just(key), st.dictionaries(st.sampled_from(KEYS[key]), st.sampled_from(["yes", "no", ""]), max_size=3)
    )
)
steps = st.one_of(
    st.tuples(st.just("put"), names, images),
    st.tuples(st.just("drop"), names),
    st.tuples(st.just("move"), names, names),
    st.tuples(st.just("label"), keys),
    st.tuples(st.just("crash"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("ingest"), st.sampled_from([0, EVERY])),
)


def follow(archive: Archive, cohort: Path, step: tuple[Any, ...]) -> IngestSummary | None:
    match step:
        case "put", name, image:
            archive.put(name, image)
        case "drop", name:
            archive.drop(name)
        case "move", name, to:
            archive.move(name, to)
        case "label", (key, lines):
            archive.key, archive.lines = key, lines
        case "crash", at, after:
            with crashing(at, after):
                take_in(archive, cohort)
        case "ingest", most:
            return take_in(archive, cohort, remove_missing=most)
    return None


@settings(max_examples=40)
@given(first=st.lists(st.tuples(names, images), min_size=1, max_size=4), told=keys, then=st.lists(steps, max_size=10))
def test_an_ingest_of_a_changed_archive_is_a_clean_one_or_says_what_is_not(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, Image]],
    told: tuple[str, dict[str, str]],
    then: list[tuple[Any, ...]],
) -> None:
    at = tmp_path_factory.mktemp("archive")
    archive = Archive(at / "dicom", key=told[0], lines=told[1])
    archive.folder.mkdir()
    for name, image in first:
        archive.put(name, image)
    for number, step in enumerate([("ingest", 0), *then, ("ingest", 0), ("ingest", EVERY)]):
        summary = follow(archive, at / "c", step)
        if summary is None:
            continue
        clean = take_in(archive, at / f"clean{number}")
        if clean is None:  # only who is missing is named by the CSV
            assert summary.missing
            continue
        assert summary.read == summary.used + summary.quarantined
        found, expected = rows_of(at / "c"), rows_of(at / f"clean{number}")
        if not (summary.missing or summary.labels_stale):
            assert found == expected
        assert all({row[0] for row in rows} <= {row[0] for row in found[who]} for who, rows in expected.items())
        assert sum(map(len, found.values())) == sum(map(len, expected.values())) + summary.missing


# One by one, in an administrator's words


def make(folder: Path, *patients: str) -> Path:
    for number, patient in enumerate(patients):
        Image(patient, number, number, number, 40 * number + 1).write(folder / f"{number}.dcm")
    (folder / "labels.csv").write_text("PatientID,finding\n" + "".join(f"{p},{p.lower()}\n" for p in patients))
    return folder


def bytes_of(cohort: Path) -> bytes:
    return (cohort / INPUTS).read_bytes()


def test_a_deleted_file_is_named_and_goes_when_a_person_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B", "C")
    ingest_folder(folder, tmp_path / "c")
    row = rows_of(tmp_path / "c")[WHO.patient("C")][0][0]
    (folder / "2.dcm").unlink()
    (folder / "labels.csv").write_text("PatientID,finding\nA,a\nB,b\nC,c\n")
    first = ingest_folder(folder, tmp_path / "c")
    assert (first.missing, first.removed, first.patients, first.images) == (1, 0, 3, 3)
    assert ingest_folder(folder, tmp_path / "c", dry_run=True, remove_missing=1).removed == 1
    assert row in bytes_of(tmp_path / "c")
    (tmp_path / "c" / "features").mkdir()
    (tmp_path / "c" / "features" / "encoder.sqlite").write_bytes(b"what an encoder saw")
    second = ingest_folder(folder, tmp_path / "c", remove_missing=1)
    assert not list((tmp_path / "c" / "features").glob("*.sqlite")), "and what was made of them"
    assert (second.missing, second.removed, second.patients, second.images, second.unmatched) == (0, 1, 2, 2, 1)
    assert row not in bytes_of(tmp_path / "c"), "bytes are erased"
    third = ingest_folder(folder, tmp_path / "c", remove_missing=1)
    assert (third.missing, third.removed, third.already) == (0, 0, 2)


def test_a_share_that_is_not_mounted_takes_nobody_away(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom")
    ingest_folder(folder, tmp_path / "c")
    before = rows_of(tmp_path / "c")
    for patient in ("p1", "p2", "p3"):
        (folder / patient).rename(tmp_path / patient)
    summary = ingest_folder(folder, tmp_path / "c", remove_missing=5)  # what the job of every night says
    assert (summary.missing, summary.removed) == (9, 0) and rows_of(tmp_path / "c") == before
    (folder / "p0").rename(tmp_path / "p0")
    with pytest.raises(DataError, match="holds no files"):
        ingest_folder(folder, tmp_path / "c", tmp_path / "dicom" / "labels.csv", remove_missing=5)
    assert rows_of(tmp_path / "c") == before


def test_a_folder_says_nothing_of_what_came_from_another(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "A", "B"), write_patients(tmp_path / "two", patients=2)
    ingest_folder(one, tmp_path / "c")
    summary = ingest_folder(two, tmp_path / "c", remove_missing=EVERY)
    assert (summary.missing, summary.removed, summary.patients, summary.labels_removed) == (0, 0, 4, 0)
    part = ingest_folder(two / "p0", tmp_path / "c", two / "labels.csv", remove_missing=EVERY)
    assert (part.removed, part.patients) == (0, 4)


def test_a_merged_patient_moves_and_a_corrected_file_takes_the_old_one_away(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    Image("B", 0, 0, 0, 1).write(folder / "B-0.dcm")  # the archive merged A into B, and sorts by patient
    (folder / "0.dcm").unlink()
    (folder / "labels.csv").write_text("PatientID,finding\nB,b\n")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.corrected, summary.missing, summary.patients, summary.images) == (1, 0, 1, 2)
    assert {label for rows in rows_of(tmp_path / "c").values() for _, label, _ in rows} == {"b"}
    Image("B", 7, 1, 1, 99).write(folder / "1.dcm")  # another image under the old name
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.corrected, summary.missing, summary.images) == (1, 0, 2)


def test_what_cannot_be_read_today_stays(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    (folder / "1.dcm").write_bytes(b"half of a copy")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.corrected, summary.missing, summary.patients) == (0, 1, 2)


def test_what_the_hospital_no_longer_selects_goes_at_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    Image("B", 1, 1, 1, 41, "MR").write(folder / "1.dcm")
    ingest_folder(folder, tmp_path / "c")
    summary = ingest_folder(folder, tmp_path / "c", rules=Rules(Select(modalities=("CT",))))
    assert (summary.corrected, summary.patients) == (1, 1)
    assert summary.reasons == {"[select] leaves out: not in modalities": 1} and summary.modalities == {"CT": 1}
    assert ingest_folder(folder, tmp_path / "c").patients == 2


def test_who_withdrew_does_not_come_back_by_a_correction(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    gone = {WHO.patient("A")}
    Image("A", 1, 1, 1, 41).write(folder / "1.dcm")  # what was B's is A's in truth
    summary = ingest_folder(folder, tmp_path / "c", withdrawn=gone)
    assert (summary.corrected, summary.patients, summary.images) == (1, 0, 0)
    assert rows_of(tmp_path / "c").keys() == gone  # kept, and no reader who knows the register sees them
    assert not len(CohortStore.open(tmp_path / "c", withdrawn=gone))
    erase(tmp_path / "c", gone)
    assert not any(bytes_of(tmp_path / "c"))
    (folder / "0.dcm").unlink()
    assert ingest_folder(folder, tmp_path / "c", withdrawn=gone, remove_missing=EVERY).removed == 0


@pytest.mark.parametrize("later", ["l2.csv", "labels.csv"])
def test_a_line_that_was_taken_out_is_named_and_goes_when_a_person_says_so(tmp_path: Path, later: str) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    (tmp_path / later).write_text("PatientID,finding\nB,b\n")
    summary = ingest_folder(folder, tmp_path / "c", tmp_path / later)
    assert (summary.labels_stale, summary.unlabelled) == (1, 0)
    summary = ingest_folder(folder, tmp_path / "c", tmp_path / later, remove_missing=1)
    assert (summary.labels_removed, summary.unlabelled) == (1, 1)


def test_a_label_of_a_patient_goes_before_an_older_one_of_the_study(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    (folder / "labels.csv").write_text("StudyInstanceUID,finding\n1.9.0,old\n1.9.1,old\n")
    ingest_folder(folder, tmp_path / "c")
    (folder / "labels.csv").write_text("PatientID,finding\nA,new\n")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.labels_replaced, summary.labels_stale) == (1, 1)
    assert [label for rows in rows_of(tmp_path / "c").values() for _, label, _ in rows] == ["new", "old"]


def test_a_column_that_the_csv_has_no_more_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    (folder / "labels.csv").write_text("PatientID,grade\nA,1\n")
    assert ingest_folder(folder, tmp_path / "c").other_columns == ("finding",)


def test_a_row_of_a_table_that_was_corrected_is_two_until_a_person_says_so(tmp_path: Path) -> None:
    table = tmp_path / "heart.csv"
    asked: dict[str, Any] = {"key": KEY, "features": ["age"], "labels": ["sick"], "patient_column": "id"}
    table.write_text("id,age,sick\nA,50,0\nB,60,1\n")
    ingest_table(table, tmp_path / "c", **asked)
    table.write_text("id,age,sick\nA,51,0\nB,60,1\n")
    summary = ingest_table(table, tmp_path / "c", **asked)
    assert (summary.added, summary.missing, summary.images) == (1, 1, 3)
    summary = ingest_table(table, tmp_path / "c", **asked, remove_missing=1)
    assert (summary.removed, summary.images) == (1, 2)


def everything(cohort: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(cohort.iterdir())}


REFUSED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "": lambda at: {},
    "no rows": lambda at: {"text": "PatientID,finding\n"},
    "nobody": lambda at: {"text": "PatientID,finding\nsomebody,x\n"},
    "nobody, in another column": lambda at: {"text": "PatientID,grade\nsomebody,x\n"},
    "no key in any line": lambda at: {"text": "PatientID,finding\n,normal\n,nodule\n"},
    "contradiction about nobody": lambda at: {"text": "PatientID,finding\nP,normal\nP,nodule\n"},
    "no key column": lambda at: {"text": "Patient,finding\nA,x\n"},
    "open quote": lambda at: {"text": 'PatientID,finding\nA,"x\n'},
    "a name": lambda at: {"text": "PatientID,PatientName\nA,Doe\n"},
    "two encodings": lambda at: {"text": "PatientID,finding\nA,\xe4\nB,\xc3\xa4\n"},
    "another size": lambda at: {"size": 16},
    "another key": lambda at: {"key": bytes(32)},
    "an absent column": lambda at: {"columns": ("grade",)},
    "an absent CSV": lambda at: {"labels": at / "absent.csv"},
}


@pytest.mark.parametrize("how", [name for name in REFUSED if name])
def test_what_is_refused_leaves_a_finished_cohort_byte_for_byte_as_it_was(tmp_path: Path, how: str) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    before = everything(tmp_path / "c")
    more = {"key": KEY, **REFUSED[how](tmp_path)}
    text = more.pop("text", None)
    if text is not None:
        (folder / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        ingest_dicom(folder, tmp_path / "c", **more)
    assert everything(tmp_path / "c") == before


@settings(max_examples=40)
@given(
    text=st.lists(
        st.sampled_from(["PatientID", "finding", "A", "P", ",", ";", "\n", '"', "\xe4", "x", ""]), max_size=16
    )
)
def test_whatever_csv_is_refused_leaves_a_finished_cohort_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, text: list[str]
) -> None:
    at = tmp_path_factory.mktemp("refused")
    folder = make(at / "dicom", "A")
    ingest_folder(folder, at / "c")
    before = everything(at / "c")
    (folder / "labels.csv").write_bytes("".join(["PatientID,finding\n", *text]).encode("latin-1"))
    try:
        ingest_folder(folder, at / "c")
    except DataError:
        assert everything(at / "c") == before
    assert len(CohortStore.open(at / "c", withdrawn=())) == 1


def test_a_disk_that_fills_up_while_a_correction_is_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "dicom", "A", "B")
    ingest_folder(folder, tmp_path / "c")
    row = rows_of(tmp_path / "c")[WHO.patient("B")][0][0]
    (folder / "1.dcm").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("wardround_client.cohort.writer.zero", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(StorageError):
            ingest_folder(folder, tmp_path / "c", remove_missing=1)
    assert row in bytes_of(tmp_path / "c") and len(CohortStore.open(tmp_path / "c", withdrawn=())) == 1
    ingest_folder(folder, tmp_path / "c")
    assert row not in bytes_of(tmp_path / "c"), "the next one overwrites it"
    assert WHO.patient("B") in (tmp_path / "c" / INDEX).read_bytes(), "that it was there can still be told"


def test_a_file_that_never_keeps_still_is_named(tmp_path: Path) -> None:
    from wardround_client.intake.sources.dicom_folder import DicomFile
    from wardround_client.intake.workers import UNSTEADY, _read

    @dataclass(frozen=True)
    class Restless(DicomFile):
        def fingerprint(self) -> str:
            return f"{super().fingerprint()} {next(marks)}"

    marks = itertools.count()
    Image().write(tmp_path / "a.dcm")
    from wardround_client.intake.recipe import ImageRecipe

    assert _read(Restless(tmp_path / "a.dcm"), ImageRecipe(8, 1), WHO) == UNSTEADY
    assert replace(UNSTEADY, detail="").passing
