"""What is stored of a patient follows from that patient alone: whoever comes or goes, the others stay as they are.

Archives are generated so that patients get in each other's way: the same SOP Instance and study UIDs, names that sort
between each other's, damaged files, links, lines of the CSV that contradict each other, several calls.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.client.intake.dicom_files import KEY, ingest_folder, write_dicom
from tests.intake import ingest_dicom, ingest_table

from wardround.errors import DataError
from wardround_client.cohort.erasure import erase
from wardround_client.cohort.store import CohortStore
from wardround_client.intake.dicom.pixels import LUMINANCE, fit
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.sources.dicom_folder import DicomFile

WHO = Pseudonyms(KEY)
COLUMNS = ("finding", "side")
Line = tuple[str, ...]
ODD = ("damaged", "empty", "text", "loop", "nowhere", "pipe")
Stored = dict[bytes, list[tuple[bytes, tuple[str | None, ...], str]]]
"""By pseudonym: of each row, in order, its bytes, its labels and its manufacturer."""


def stored(cohort: Path, withdrawn: Iterable[bytes] = (), always: Sequence[str] = ()) -> Stored:
    store = CohortStore.open(cohort, withdrawn=set(withdrawn))
    columns = {column: store.labels(column) for column in store.label_columns}
    labels = zip(
        *(columns.get(each, [None] * len(store)) for each in {**columns, **dict.fromkeys(always)}), strict=True
    )
    found: Stored = {pseudonym: [] for pseudonym in store.pseudonyms}
    rows = zip(store.patients.tolist(), store.inputs[:], labels, store.manufacturers, strict=True)
    for patient, row, said, maker in rows:
        found[store.pseudonyms[patient]].append((row.tobytes(), said, maker))
    return found


@cache
def dicom(patient: str, uid: int, study: int, shade: int, maker: str, scratch: Path) -> bytes:
    pixels = np.full((8, 8), shade, np.uint8)
    pixels[0, 0] = 255
    path = scratch / "one.dcm"
    write_dicom(
        path, pixels, PatientID=patient, SOPInstanceUID=f"1.8.{uid}", StudyInstanceUID=f"1.9.{study}",
        Manufacturer=maker,
    )  # fmt: skip
    return path.read_bytes()


@dataclass(frozen=True)
class File:
    """step: of the intake in which it appears. odd: one of ODD, instead of a DICOM file."""

    patient: str
    name: str
    step: int
    uid: int
    study: int
    shade: int
    maker: str
    odd: str = ""

    def write(self, folder: Path, scratch: Path) -> None:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        good = dicom(self.patient, self.uid, self.study, self.shade, self.maker, scratch)
        match self.odd:
            case "loop":
                path.symlink_to(path.name)
            case "nowhere":
                path.symlink_to("nowhere")
            case "pipe":
                os.mkfifo(path)
            case _:
                path.write_bytes({"": good, "damaged": good[:400], "empty": b"", "text": b"PatientID"}[self.odd])

    def names(self) -> set[str]:
        return set() if self.odd else {self.patient, f"1.8.{self.uid}", f"1.9.{self.study}"}


@dataclass(frozen=True)
class Archive:
    """key: the first column of the labels CSVs. lines: of which step's CSV, and its cells (key, finding, side)."""

    files: tuple[File, ...]
    key: str
    lines: tuple[tuple[int, Line], ...]
    steps: int
    patients: tuple[str, ...] = field(default=("A", "B", "C"))

    def without(self, patient: str) -> Archive:
        """Without the files of a patient, and without the lines that are about nothing but them."""
        left = tuple(file for file in self.files if file.patient != patient)
        others = {key for file in left for key in file.names()}
        gone = {key for file in self.files for key in file.names()} | {patient}
        lines = tuple(line for line in self.lines if line[1][0] in others or line[1][0] not in gone)
        return Archive(left, self.key, lines, self.steps, tuple(p for p in self.patients if p != patient))

    def take_in(self, at: Path, scratch: Path, workers: int = 0) -> Stored:
        folder, labels = at / "dicom", at / "labels.csv"
        (folder / "m").mkdir(parents=True)
        (folder / "m" / "note.txt").write_text("somebody's note")
        for step in range(self.steps):
            for file in self.files:
                if file.step == step:
                    file.write(folder, scratch)
            with labels.open("w", newline="") as out:
                part = [line for at_step, line in self.lines if at_step == step]
                csv.writer(out).writerows([(self.key, *COLUMNS), *part, ("nobody", "x", "")])
            try:
                ingest_dicom(folder, at / "c", key=KEY, labels=labels, workers=workers)
            except DataError as error:
                assert "is in the cohort" in str(error)  # a CSV about nobody; the images are stored
        return stored(at / "c", always=COLUMNS)


NAMES = ("a.dcm", "m/m.dcm", "z.dcm", "é.dcm", unicodedata.normalize("NFD", "é.dcm"), "z/z/z.dcm")


@st.composite
def archives(draw: st.DrawFn, odd: Sequence[str] = ODD) -> Archive:
    steps = draw(st.integers(1, 3))
    files: dict[str, File] = {}
    for number in range(draw(st.integers(3, 12))):
        patient = draw(st.sampled_from("ABC"))
        name = f"{draw(st.sampled_from(['', patient, 'm']))}/{number % 3}{draw(st.sampled_from(NAMES))}".lstrip("/")
        files.setdefault(
            name,
            File(
                patient, name, draw(st.integers(0, steps - 1)), draw(st.integers(0, 2)), draw(st.integers(0, 1)),
                draw(st.integers(0, 3)), draw(st.sampled_from(["", "aurelia", "boreal"])),
                draw(st.sampled_from(odd)) if draw(st.integers(0, 5)) == 5 else "",
            ),
        )  # fmt: skip
    key = draw(st.sampled_from(["PatientID", "StudyInstanceUID", "SOPInstanceUID"]))
    known = {"PatientID": [*"ABC"], "StudyInstanceUID": ["1.9.0", "1.9.1"], "SOPInstanceUID": ["1.8.0", "1.8.1"]}[key]
    cells = st.sampled_from(["", "?", "yes", "no"])
    line = st.one_of(
        st.tuples(st.sampled_from([*known, "nobody"]), cells, cells),
        st.tuples(st.sampled_from(known), cells),  # too few
        st.tuples(st.just(""), cells, cells),  # of nobody
    )
    lines = draw(st.lists(st.tuples(st.integers(0, steps - 1), line), max_size=6))
    return Archive(tuple(files.values()), key, tuple(lines), steps)


def check_that_nobody_moves_another(archive: Archive, folder: Path, workers: int = 0) -> None:
    everybody = archive.take_in(folder / "all", folder, workers)
    for patient in archive.patients:
        left = archive.without(patient).take_in(folder / patient, folder, workers)
        assert left == {who: rows for who, rows in everybody.items() if who != WHO.patient(patient)}


@settings(max_examples=20)
@given(archive=archives())
def test_whoever_comes_or_goes_the_others_stay_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, archive: Archive
) -> None:
    """The rule: what is stored of a patient follows from that patient alone."""
    check_that_nobody_moves_another(archive, tmp_path_factory.mktemp("archive"))


@settings(max_examples=15)
@given(archive=archives(), seed=st.randoms(use_true_random=False))
def test_the_order_of_the_lines_and_of_the_other_patients_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, archive: Archive, seed: Any
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    told = tuple((0, line) for _, line in archive.lines)
    files = tuple(replace(file, step=0) for file in archive.files)
    once = replace(archive, files=files, lines=told, steps=1).take_in(folder / "one", folder)
    places = {patient: f"{number}" for number, patient in enumerate(seed.sample("ABC", 3))}
    moved = tuple(replace(file, name=f"{places[file.patient]}/{file.name}") for file in files)
    assert (
        replace(archive, files=moved, lines=tuple(seed.sample(told, len(told))), steps=1).take_in(
            folder / "two", folder
        )
        == once
    )


def test_two_workers_move_nobody_either(tmp_path: Path) -> None:
    files = tuple(
        File(p, f"{n % 7}/{p}{n}.dcm", n % 2, n // 2, n % 2, n % 4, "aurelia", ODD[n] if n < 6 and p == "A" else "")
        for n in range(24)
        for p in "ABC"
    )
    lines = ((0, ("1.8.1", "yes", "no")), (1, ("1.8.2", "no", "")), (1, ("1.8.2", "yes", "")), (1, ("1.8.3",)))
    archive = Archive(files, "SOPInstanceUID", lines, 2)
    check_that_nobody_moves_another(archive, tmp_path / "two", workers=2)
    assert archive.take_in(tmp_path / "one", tmp_path) == stored(tmp_path / "two" / "all" / "c")


# One by one


def two_patients(folder: Path, **of_b: str) -> Path:
    """A and B with one file each that says the same of UIDs, and other pixels."""
    for number, patient in enumerate("AB"):
        pixels = np.full((8, 8), 50 * number, np.uint8)
        pixels[0, 0] = 255
        said: dict[str, Any] = {"PatientID": patient, "SOPInstanceUID": "1.8.1", "StudyInstanceUID": "1.9.1"}
        write_dicom(folder / f"{patient}.dcm", pixels, **{**said, **(of_b if patient == "B" else {})})
    (folder / "labels.csv").write_text("PatientID,finding\nA,yes\nB,no\n")
    return folder


def test_two_patients_who_claim_one_uid_both_keep_their_image(tmp_path: Path) -> None:
    """The audit's attack: a file of A with the SOP Instance UID of B's removed B as a "duplicate"."""
    summary = ingest_folder(two_patients(tmp_path / "dicom"), tmp_path / "c")
    assert (summary.used, summary.quarantined, summary.patients, summary.shared) == (2, 0, 2, 1)
    again = ingest_folder(tmp_path / "dicom", tmp_path / "c")
    assert (again.already, again.added, again.shared) == (2, 0, 1)
    found = stored(tmp_path / "c")
    assert [row[1] for rows in found.values() for row in rows] == [("yes",), ("no",)]


@pytest.mark.parametrize(("key", "uid"), [("SOPInstanceUID", "1.8.1"), ("StudyInstanceUID", "1.9.1")])
def test_a_label_that_one_patient_was_given_waits_for_no_other(tmp_path: Path, key: str, uid: str) -> None:
    folder = two_patients(tmp_path / "dicom")
    later = (folder / "B.dcm").rename(tmp_path / "B.dcm")
    (folder / "labels.csv").write_text(f"{key},finding\n{uid},of A\n")
    ingest_folder(folder, tmp_path / "c")
    later.rename(folder / "B.dcm")
    (folder / "labels.csv").write_text("PatientID,finding\nA,a\n")
    ingest_folder(folder, tmp_path / "c")
    assert {who: [row[1] for row in rows] for who, rows in stored(tmp_path / "c").items()} == {
        WHO.patient("A"): [("a",)], WHO.patient("B"): [(None,)],
    }  # fmt: skip


@pytest.mark.parametrize("key", ["SOPInstanceUID", "StudyInstanceUID"])
def test_who_withdraws_or_is_erased_takes_nothing_of_another(tmp_path: Path, key: str) -> None:
    folder = two_patients(tmp_path / "dicom")
    (folder / "labels.csv").write_text(f"{key},finding\n{'1.8.1' if key == 'SOPInstanceUID' else '1.9.1'},x\n")
    ingest_folder(folder, tmp_path / "c")
    b = {WHO.patient("B"): stored(tmp_path / "c")[WHO.patient("B")]}
    a = WHO.patient("A")
    assert stored(tmp_path / "c", [a]) == b
    erase(tmp_path / "c", {a})
    assert stored(tmp_path / "c") == b
    ingest_folder(folder, tmp_path / "c", withdrawn={a})
    assert stored(tmp_path / "c", [a]) == b


def test_within_one_patient_the_first_file_of_a_uid_stays(tmp_path: Path) -> None:
    summary = ingest_folder(two_patients(tmp_path / "dicom", PatientID="A "), tmp_path / "c")
    assert summary.reasons == {"duplicate SOP Instance UID (0008,0018)": 1} and summary.patients == 1


def test_files_whose_names_only_look_alike_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two files of one size, written within one tick of a coarse clock: their names alone tell them apart.
    monkeypatch.setattr(DicomFile, "fingerprint", lambda file: str(file.path))
    folder = two_patients(tmp_path / "dicom")
    (folder / "A.dcm").rename(folder / "é.dcm")
    later = (folder / "B.dcm").rename(tmp_path / "B.dcm")
    ingest_folder(folder, tmp_path / "c")
    later.rename(folder / unicodedata.normalize("NFD", "é.dcm"))
    assert ingest_folder(folder, tmp_path / "c").added == 1


def test_a_file_that_changes_while_it_is_read_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wardround_client.intake import ingest as module

    folder = two_patients(tmp_path / "dicom")
    later = (folder / "B.dcm").rename(tmp_path / "B.dcm")
    real = module._store

    def store(*arguments: Any) -> None:
        later.replace(folder / "A.dcm")  # read as A's; before it is stored, it is B's
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_store", store)
        ingest_folder(folder, tmp_path / "c")
    assert ingest_folder(folder, tmp_path / "c").corrected == 1
    assert [*stored(tmp_path / "c")] == [WHO.patient("B")]


def test_lines_without_effect_are_counted_and_cost_nobody_else(tmp_path: Path) -> None:
    folder = two_patients(tmp_path / "dicom", SOPInstanceUID="1.8.2")
    ingest_folder(folder, tmp_path / "c")
    (folder / "labels.csv").write_text("PatientID,finding\nA,yes\nB\nA,no\n,x\nB,fine\nB,no,more\nA,no\n")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.unusable, summary.unusable_lines, summary.unlabelled) == (5, (3, 4, 5, 7, 8), 1)
    assert [row[1] for rows in stored(tmp_path / "c").values() for row in rows] == [(None,), ("fine",)]


@pytest.mark.parametrize("text", ['PatientID,finding\nA,yes\nB,"no\n', "PatientID,finding\n\xff\n", ""])
def test_a_csv_that_cannot_be_read_leaves_a_finished_cohort_as_it_is(tmp_path: Path, text: str) -> None:
    folder = two_patients(tmp_path / "dicom")
    ingest_folder(folder, tmp_path / "c")
    before = stored(tmp_path / "c")
    (folder / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        ingest_folder(folder, tmp_path / "c")
    assert stored(tmp_path / "c") == before


def test_grey_of_a_colour_image_is_each_pixel_s_own() -> None:
    """A matrix product rounds a pixel by its place in memory, its neighbours and the number of threads."""
    values = np.random.default_rng(0).uniform(0, 1, (64, 64, 3)).astype(np.float32)
    red, green, blue = (values[..., c] * weight for c, weight in enumerate(LUMINANCE))
    np.testing.assert_array_equal(fit(values, ImageRecipe(64, 1))[0], red + green + blue)


# Tables

_numbers = st.sampled_from(["1", "1", "1", "1", "2", "?", "", "inf", "x", "1e99"])
_line = st.one_of(
    st.tuples(
        st.sampled_from(["A", "B", "C", "C\u0327", "", "?"]), _numbers, _numbers, st.sampled_from(["", "0", "1"])
    ),
    st.tuples(st.sampled_from("ABC"), _numbers),  # too few
)


def take_in_table(at: Path, parts: Sequence[Sequence[Line]], patient_column: str) -> Stored:
    at.mkdir()
    for part in parts:
        with (at / "table.csv").open("w", newline="") as out:
            csv.writer(out).writerows([("who", "a", "b", "y"), *part, ("nobody", "x", "x", "")])
        ingest_table(
            at / "table.csv", at / "c", key=KEY, features=["a", "b"], patient_column=patient_column,
            labels=["y"], constants={"b": 5.0, "a": 5.0},
        )  # fmt: skip
    return stored(at / "c")


@settings(max_examples=20)
@example(rows=[(("A", "1", "1", "0"), {0}), (("B", "1", "1", "1"), {0, 1})])  # the same measurements
@given(rows=st.lists(st.tuples(_line, st.sets(st.integers(0, 2), min_size=1)), max_size=8))
def test_whoever_leaves_a_table_the_others_stay_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Line, set[int]]]
) -> None:
    parts = [[line for line, tables in rows if table in tables] for table in range(3)]  # a row may come again
    folder = tmp_path_factory.mktemp("table")
    everybody = take_in_table(folder / "all", parts, "who")
    for patient in ("A", "B", "C"):
        fewer = [[line for line in part if line[0] != patient] for part in parts]
        left = take_in_table(folder / patient, fewer, "who")
        assert left == {who: rows for who, rows in everybody.items() if who != WHO.patient(patient)}


@settings(max_examples=15)
@given(part=st.lists(_line, min_size=1, max_size=8), data=st.data())
def test_where_a_row_is_a_patient_one_row_less_is_that_row_less(
    tmp_path_factory: pytest.TempPathFactory, part: list[Line], data: st.DataObject
) -> None:
    def rows(at: Path, lines: Sequence[Line]) -> Counter[object]:
        return Counter(row for of in take_in_table(at, [lines], "").values() for row in of)

    folder = tmp_path_factory.mktemp("table")
    gone = data.draw(st.integers(0, len(part) - 1))
    everybody = rows(folder / "all", part)
    left, alone = rows(folder / "left", part[:gone] + part[gone + 1 :]), rows(folder / "alone", part[gone : gone + 1])
    assert left + alone == everybody


def test_rows_that_lack_different_measurements_are_different_rows(tmp_path: Path) -> None:
    first = take_in_table(tmp_path / "one", [[("", "1", "", "0")], [("", "", "1", "0")]], "")
    assert len(first) == 2
