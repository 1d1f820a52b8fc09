"""A cohort on disk: what it holds, what it refuses, and what a crash or a full disk leaves behind."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.errors import DataError, StorageError
from wardround_client.cohort.batch import Stored
from wardround_client.cohort.erasure import erase
from wardround_client.cohort.index import INDEX, INPUTS, CohortLayout
from wardround_client.cohort.store import CohortStore, normalised
from wardround_client.cohort.writer import CohortWriter

LAYOUT = CohortLayout("image", 2, 1)
KEY = bytes(32)


def rows(*values: int) -> np.ndarray:
    return np.array([[[[v, v], [v, v]]] for v in values], np.uint16)


def write(path: Path, *instances: tuple[str, str, tuple[int, ...]], finish: bool = True) -> None:
    """Each (patient, instance, values) in a batch of its own."""
    with CohortWriter(path, LAYOUT, KEY) as writer:
        for patient, instance, values in instances:
            with writer.batch() as batch:
                batch.add(Stored(patient=patient.encode(), study=b"s", instance=instance.encode()), rows(*values))
        if finish:
            writer.finish()


def test_rows_and_patients_come_back_in_order(tmp_path: Path) -> None:
    write(tmp_path / "c", ("p", "a", (1, 2)), ("q", "b", (3,)), ("p", "c", (4,)))
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert store.inputs[:][:, 0, 0, 0].tolist() == [1, 2, 3, 4] and len(store) == 4
    assert store.inputs.dtype == np.uint16 and isinstance(store.inputs.mapped, np.memmap)
    assert store.patients.tolist() == [0, 0, 1, 0] and store.patients.dtype == np.int64
    assert store.pseudonyms == (b"p", b"q")
    assert (store.kind, store.image_size_px, store.channels, store.features) == ("image", 2, 1, ())


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=12))
def test_any_cohort_comes_back(tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("cohort")
    write(path, *((f"p{p}", str(i), tuple(range(n))) for i, (p, n) in enumerate(plan)))
    store = CohortStore.open(path, withdrawn=())
    owners = [store.pseudonyms[i].decode() for i in store.patients]
    assert owners == [f"p{p}" for p, n in plan for _ in range(n)]


@pytest.mark.parametrize("extra", [1, 8, 4096])
def test_rows_that_no_index_knows_are_cut_off(tmp_path: Path, extra: int) -> None:
    write(tmp_path, ("p", "a", (1, 2)))
    with (tmp_path / INPUTS).open("ab") as file:
        file.write(b"x" * extra)
    write(tmp_path, ("q", "b", (3,)))
    assert CohortStore.open(tmp_path, withdrawn=()).inputs[:][:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ("p", "a", (1, 2)))
    before = (tmp_path / INPUTS).read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="No space left on device"):
            write(tmp_path, ("q", "b", (3,)))
    assert (tmp_path / INPUTS).read_bytes() == before
    write(tmp_path, ("q", "b", (3,)))
    assert CohortStore.open(tmp_path, withdrawn=()).inputs[:][:, 0, 0, 0].tolist() == [1, 2, 3]


def test_absent_empty_unfinished_and_damaged_cohorts_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no cohort"):
        CohortStore.open(tmp_path / "absent", withdrawn=())
    write(tmp_path / "empty")
    assert len(CohortStore.open(tmp_path / "empty", withdrawn=())) == 0
    write(tmp_path / "unfinished", ("p", "a", (1,)), finish=False)
    with pytest.raises(DataError, match="did not finish"):
        CohortStore.open(tmp_path / "unfinished", withdrawn=())
    write(tmp_path / "short", ("p", "a", (1, 2)))
    os.truncate(tmp_path / "short" / INPUTS, 9)
    with pytest.raises(DataError, match="holds 1 rows, the index knows 2"):
        CohortStore.open(tmp_path / "short", withdrawn=())
    write(tmp_path / "broken", ("p", "a", (1, 2)))
    (tmp_path / "broken" / INDEX).write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="damaged"):
        CohortStore.open(tmp_path / "broken", withdrawn=())
    (tmp_path / "broken" / INDEX).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        CohortStore.open(tmp_path / "broken", withdrawn=())


def test_another_key_or_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ("p", "a", (1,)))
    with pytest.raises(DataError, match="another pseudonym key"):
        CohortWriter(tmp_path, LAYOUT, bytes(31) + b"x")
    with pytest.raises(DataError, match="asked for image_size_px 3"):
        CohortWriter(tmp_path, CohortLayout("image", 3, 1), KEY)


def test_only_one_ingest_at_a_time(tmp_path: Path) -> None:
    with CohortWriter(tmp_path, LAYOUT, KEY), pytest.raises(StorageError, match="another ingest is running"):
        CohortWriter(tmp_path, LAYOUT, KEY)


def test_an_unknown_label_column_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, ("p", "a", (1, 2)))
    with CohortWriter(tmp_path, LAYOUT, KEY) as writer:
        with writer.batch() as batch:
            batch.stage(b"p", 2, ["yes"])
            batch.label(["finding"], 5)
        writer.finish()
    store = CohortStore.open(tmp_path, withdrawn=())
    assert store.labels("finding") == ["yes", "yes"]
    with pytest.raises(DataError, match="did you mean 'finding'"):
        store.labels("findings")


def test_files_are_private(tmp_path: Path) -> None:
    write(tmp_path / "c", ("p", "a", (1,)))
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    for file in (tmp_path / "c").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


# Manufacturers


def write_made_by(path: Path, *rows_of: tuple[str, str, int]) -> None:
    """Each (patient, manufacturer, rows), an instance each."""
    with CohortWriter(path, LAYOUT, KEY) as writer:
        with writer.batch() as batch:
            for number, (patient, manufacturer, count) in enumerate(rows_of):
                batch.add(Stored(patient.encode(), bytes([number]), manufacturer=manufacturer), rows(*range(count)))
        writer.finish()


def make_format_4(path: Path) -> None:
    """Take from a cohort what the format before did not have: issuers, modalities, series, orders, places, origins."""
    with closing(sqlite3.connect(path / INDEX)) as index, index:
        index.executescript(
            """
            DROP INDEX instances_of_series; DROP INDEX instances_of_accession; DROP TABLE origins;
            ALTER TABLE instances DROP COLUMN modality; ALTER TABLE instances DROP COLUMN series;
            ALTER TABLE instances DROP COLUMN accession; ALTER TABLE labels DROP COLUMN root;
            ALTER TABLE patients DROP COLUMN bare;
            DROP TABLE files; CREATE TABLE files (file BLOB PRIMARY KEY, instance BLOB NOT NULL, patient INTEGER)
            WITHOUT ROWID;
            UPDATE meta SET value = '4' WHERE name = 'format';
            """
        )


def make_format_2(path: Path) -> None:
    """Take from a cohort what the format before did not have."""
    make_format_3(path)
    with closing(sqlite3.connect(path / INDEX)) as index, index:
        index.execute("ALTER TABLE instances DROP COLUMN manufacturer")
        index.execute("UPDATE meta SET value = '2' WHERE name = 'format'")


def make_format_3(path: Path) -> None:
    """Give a cohort the tables of the format before, in which a UID named one thing whoever had it."""
    with closing(sqlite3.connect(path / INDEX)) as index, index:
        index.executescript(
            """
            CREATE TABLE old (subject BLOB, column INTEGER, value TEXT NOT NULL, PRIMARY KEY (subject, column))
            WITHOUT ROWID;
            INSERT INTO old SELECT DISTINCT subject, column, value FROM labels;
            DROP TABLE labels; ALTER TABLE old RENAME TO labels;
            CREATE TABLE old (
                instance BLOB PRIMARY KEY, study BLOB NOT NULL, patient INTEGER NOT NULL REFERENCES patients,
                first_row INTEGER NOT NULL UNIQUE, rows INTEGER NOT NULL, manufacturer TEXT NOT NULL DEFAULT ''
            ) WITHOUT ROWID;
            INSERT INTO old SELECT instance, study, patient, first_row, rows, manufacturer FROM instances;
            DROP TABLE instances; ALTER TABLE old RENAME TO instances;
            CREATE INDEX instances_of_patient ON instances (patient);
            CREATE INDEX instances_of_study ON instances (study);
            DROP TABLE files; CREATE TABLE files (file BLOB PRIMARY KEY, instance BLOB NOT NULL) WITHOUT ROWID;
            DROP TABLE origins; ALTER TABLE patients DROP COLUMN bare;
            UPDATE meta SET value = '3' WHERE name = 'format';
            """
        )


def in_index(path: Path, text: bytes) -> bool:
    return text in (path / INDEX).read_bytes()


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(
    plan=st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(["", "aurelia", "boreal"]), st.integers(1, 3))),
    withdrawn=st.sets(st.sampled_from("pqr")),
)
def test_manufacturers_stay_beside_their_rows(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, str, int]], withdrawn: set[str]
) -> None:
    path = tmp_path_factory.mktemp("cohort")
    write_made_by(path, *plan)
    store = CohortStore.open(path, withdrawn={who.encode() for who in withdrawn})
    expected = tuple(maker or "unknown" for who, maker, count in plan for _ in range(count) if who not in withdrawn)
    assert store.manufacturers == expected and len(expected) == len(store)


def test_erasing_a_patient_takes_the_manufacturer_along(tmp_path: Path) -> None:
    write_made_by(tmp_path, ("p", "aurelia", 2), ("q", "boreal", 1))
    assert in_index(tmp_path, b"aurelia")
    erase(tmp_path, {b"p"})
    assert not in_index(tmp_path, b"aurelia")
    assert CohortStore.open(tmp_path, withdrawn=()).manufacturers == ("boreal",)


def test_a_cohort_of_the_format_before_is_read_with_unknown_manufacturers(tmp_path: Path) -> None:
    write_made_by(tmp_path, ("p", "aurelia", 2), ("q", "boreal", 1))
    make_format_2(tmp_path)
    store = CohortStore.open(tmp_path, withdrawn={b"q"})
    assert store.manufacturers == ("unknown", "unknown") and store.inputs[:][:, 0, 0, 0].tolist() == [0, 1]


def test_a_cohort_of_the_format_before_can_be_erased_from_and_added_to(tmp_path: Path) -> None:
    write_made_by(tmp_path, ("p", "aurelia", 2), ("q", "boreal", 1))
    make_format_2(tmp_path)
    assert erase(tmp_path, {b"p"}) == 1
    with CohortWriter(tmp_path, LAYOUT, KEY) as writer:
        with writer.batch() as batch:
            batch.add(Stored(patient=b"r", study=b"", instance=b"r", manufacturer="cassini"), rows(7))
        writer.finish()
    store = CohortStore.open(tmp_path, withdrawn=())
    assert store.manufacturers == ("unknown", "cassini") and store.pseudonyms == (b"q", b"r")


def test_a_cohort_that_told_things_apart_by_uid_alone_keeps_its_labels(tmp_path: Path) -> None:
    with CohortWriter(tmp_path, LAYOUT, KEY) as writer:
        with writer.batch() as batch:
            for number, who in enumerate([b"p", b"q", b"r"]):
                study = b"r's" if who == b"r" else b"both"
                batch.add(Stored(who, b"i%d" % number, study=study, manufacturer="cassini"), rows(number))
            batch.stage(b"both", 1, ["of the study", None])
            batch.stage(b"i1", 2, ["of the image", None])
            batch.stage(b"r", 3, ["of the patient", "left"])
            batch.label(["finding", "side"], 0)
        writer.finish()
    make_format_3(tmp_path)
    expected = ["of the study", "of the image", "of the patient"]
    assert CohortStore.open(tmp_path, withdrawn=()).labels("finding") == expected
    CohortWriter(tmp_path, LAYOUT, KEY).__exit__()  # whatever writes next
    with CohortWriter(tmp_path, LAYOUT, KEY) as writer:
        writer.finish()
    store = CohortStore.open(tmp_path, withdrawn={b"p"})
    assert store.labels("finding") == expected[1:] and store.labels("side") == [None, "left"]
    assert store.manufacturers == ("cassini", "cassini") and store.inputs[:][:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("written", "grouped"),
    [
        ("SIEMENS", "siemens"),
        ("  GE  Medical\tSystems\n", "ge medical systems"),
        ("Philips\x1b[2J\udcff", "philips [2j"),
        ("東芝", "東芝"),
        (" \0 ", ""),
        ("x" * 63 + " y", "x" * 63),
    ],
)
def test_a_manufacturer_is_grouped_by_what_a_reader_sees(written: str, grouped: str) -> None:
    assert normalised(written) == grouped


@given(st.text())
def test_a_normalised_manufacturer_is_short_printable_and_stays_as_it_is(written: str) -> None:
    once = normalised(written)
    assert normalised(once) == once and once.isprintable() and len(once) <= 64
    assert normalised(f" {written}  ") == once


@given(st.text(st.characters(max_codepoint=127)))
def test_case_makes_no_other_manufacturer(written: str) -> None:
    assert normalised(written.upper()) == normalised(written.lower())
