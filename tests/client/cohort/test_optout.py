"""Patients who opt out: the register, the intake, the cohort's readers, erasing, and the rounds that used them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.intake.dicom_files import KEY, ingest_folder, write_patients
from tests.intake import ingest_table

import wardround_client.cohort.erasure as erasure
from wardround.errors import ConfigError, DataError, StorageError
from wardround_client.cohort.batch import Stored
from wardround_client.cohort.erasure import erase
from wardround_client.cohort.examples import Examples, NamedExamples
from wardround_client.cohort.features import FOLDER, FeatureCache
from wardround_client.cohort.index import INDEX, INPUTS, CohortLayout, connect
from wardround_client.cohort.optout import REGISTER, Register
from wardround_client.cohort.records import Record, records, rows_name_no_patient
from wardround_client.cohort.store import CohortStore
from wardround_client.cohort.writer import CohortWriter
from wardround_client.consent.withdrawal import rounds_of, uses
from wardround_client.hospital import Hospital
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.summary import IngestSummary
from wardround_client.privacy.ledger import Entry

WHO = Pseudonyms(KEY)
ANNA, BERT, CARL = (WHO.patient(name) for name in ("PAT-0", "PAT-1", "PAT-2"))


@pytest.fixture
def register(tmp_path: Path) -> Register:
    register = Register(tmp_path / REGISTER, KEY)
    register.create()
    return register


# The register


def test_who_withdrew_is_written_down_once_for_good_and_privately(register: Register, tmp_path: Path) -> None:
    assert not register.read()
    assert register.add([ANNA, BERT]) == {ANNA, BERT}
    before = dict(register.read())
    assert register.add([BERT, CARL]) == {CARL}
    again = Register(tmp_path / REGISTER, KEY).read()
    assert again.keys() == {ANNA, BERT, CARL}
    assert {who: again[who] for who in before} == before
    assert stat.S_IMODE((tmp_path / REGISTER).stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="there already"):
        register.create()
    assert register.read() == again


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(st.binary(min_size=32, max_size=32), max_size=3), max_size=5))
def test_whatever_is_added_is_there_afterwards(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[bytes]]
) -> None:
    path = tmp_path_factory.mktemp("home") / REGISTER
    Register(path, KEY).create()
    for each in rounds:
        Register(path, KEY).add(each)
    assert Register(path, KEY).read().keys() == {who for each in rounds for who in each}


def test_a_daemon_sees_what_a_command_wrote(register: Register, tmp_path: Path) -> None:
    assert not register.read()
    Register(tmp_path / REGISTER, KEY).add([ANNA])
    assert register.read().keys() == {ANNA}


def test_two_commands_at_once_lose_nobody(register: Register, tmp_path: Path) -> None:
    people = [bytes([number]) * 32 for number in range(24)]

    def add(mine: list[bytes]) -> None:
        for who in mine:
            Register(tmp_path / REGISTER, KEY).add([who])

    threads = [threading.Thread(target=add, args=(people[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert register.read().keys() == set(people)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda text: b"",
    "cut off": lambda text: text[: len(text) // 2],
    "without its last patient": lambda text: b"\n".join([*text.splitlines()[:-2], text.splitlines()[-1], b""]),
    "one letter changed": lambda text: text.replace(b"withdrawn 1", b"withdrawn 2"),
    "a patient changed": lambda text: text.replace(ANNA.hex().encode(), BERT.hex().encode()),
    "not text": lambda text: b"\xff\0" * 99,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_register_that_is_not_what_was_written_lets_nobody_be_used(
    register: Register, tmp_path: Path, damage: str
) -> None:
    register.add([ANNA, CARL])
    path = tmp_path / REGISTER
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for reader in (register, Register(path, KEY)):
        with pytest.raises(StorageError, match="no patient may be used"):
            reader.read()
        with pytest.raises(StorageError, match="no patient may be used"):
            reader.add([BERT])


def test_a_missing_register_another_key_and_an_older_copy_are_told(register: Register, tmp_path: Path) -> None:
    path = tmp_path / REGISTER
    register.add([ANNA])
    older = path.read_bytes()
    register.add([BERT])
    with pytest.raises(StorageError, match=r"another secret\.key"):
        Register(path, bytes(32)).read()
    path.write_bytes(older)
    with pytest.raises(StorageError, match="has lost entries"):
        register.read()
    path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        register.read()


CRASH = """
import os, signal, sys
from pathlib import Path
from wardround_client.cohort.optout import Register
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Register(Path(sys.argv[1]), bytes.fromhex(sys.argv[2])).add([bytes(32)])
"""


def test_a_kill_between_writing_and_renaming_leaves_the_register_as_it_was(register: Register, tmp_path: Path) -> None:
    register.add([ANNA])
    before = (tmp_path / REGISTER).read_bytes()
    killed = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / REGISTER), KEY.hex()], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / REGISTER).read_bytes() == before
    assert (tmp_path / f"{REGISTER}.tmp").exists()  # written, and never believed
    assert Register(tmp_path / REGISTER, KEY).read().keys() == {ANNA}
    assert register.add([BERT]) == {BERT}
    assert Register(tmp_path / REGISTER, KEY).read().keys() == {ANNA, BERT}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_registers_nobody_and_says_so(
    register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = (tmp_path / REGISTER).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        with pytest.raises(StorageError, match="does not count"):
            register.add([ANNA])
    assert (tmp_path / REGISTER).read_bytes() == before
    assert register.add([ANNA]) == {ANNA}


# Every reader


def cohort(path: Path, *, withdrawn: tuple[bytes, ...] = ()) -> None:
    """Three patients: Anna has rows 0 and 2, Bert row 1, Carl row 3."""
    with CohortWriter(path, CohortLayout("table", features=("a",)), KEY, withdrawn=withdrawn) as writer:
        with writer.batch() as batch:
            for number, who in enumerate([ANNA, BERT, ANNA, CARL]):
                instance, study = WHO.of("row", f"i{number}"), WHO.of("row", f"s{number}")
                if writer.stored(who, instance) is None:
                    batch.add(Stored(who, instance, study=study), np.full((1, 1), 10 + number, np.float32))
                    batch.remember(WHO.of("file", f"f{number}"), b"", who, instance)
                batch.stage(instance, number, [f"label {number}"])
            batch.label(["finding"], 0)
        writer.finish()


def test_a_store_holds_neither_rows_nor_labels_nor_names_of_who_withdrew(tmp_path: Path) -> None:
    cohort(tmp_path)
    store = CohortStore.open(tmp_path, withdrawn={ANNA})
    assert store.inputs[:].tolist() == [[11], [13]] and np.asarray(store.inputs).tolist() == [[11], [13]]
    assert store.inputs.shape == (2, 1) and len(store) == len(store.inputs) == 2
    assert store.patients.tolist() == [0, 1] and store.pseudonyms == (BERT, CARL)
    assert store.labels("finding") == ["label 1", "label 3"]
    assert len(CohortStore.open(tmp_path, withdrawn={ANNA, BERT, CARL})) == 0


def test_a_warm_cohort_loses_exactly_the_patient(tmp_path: Path) -> None:
    examples = Examples(
        z=torch.arange(5.0), y=torch.tensor([0, 1, 0, 1, 0]), patient=torch.tensor([0, 1, 0, 2, 2]),
        summary=torch.arange(5.0).unsqueeze(1), classes=2,
    )  # fmt: skip
    warm = NamedExamples(examples, (ANNA, BERT, CARL))
    assert warm.without({bytes(32)}) is warm
    left = warm.without({ANNA})
    assert left.pseudonyms == (BERT, CARL)
    assert left.examples.z.tolist() == [1, 3, 4] and left.examples.patient.tolist() == [0, 1, 1]
    nobody = left.without({BERT, CARL})
    assert nobody.pseudonyms == () and nobody.examples.patients == 0 and nobody.examples.summary.shape == (0, 1)


def test_a_cohort_of_an_older_format_says_to_ingest_again(tmp_path: Path) -> None:
    cohort(tmp_path)
    with connect(tmp_path) as index:
        index.execute("UPDATE meta SET value = '1' WHERE name = 'format'")
    index.close()
    with pytest.raises(DataError, match=r"cohort format 1.*Allowed: 2.*ingest again"):
        CohortStore.open(tmp_path, withdrawn=())


# The intake


def take_in(source: Path, target: Path, *withdrawn: bytes) -> IngestSummary:
    """Of a folder of six files."""
    summary = ingest_folder(source, target, withdrawn=withdrawn)
    assert summary.read == 6
    listed = (target / "quarantine.csv").read_text()
    assert "p0" not in listed and "PAT-0" not in listed  # who withdrew is not listed by path either
    return summary


@pytest.mark.parametrize("known", [False, True], ids=["a stranger", "in the cohort already"])
def test_the_intake_quarantines_who_withdrew(tmp_path: Path, known: bool) -> None:
    source = write_patients(tmp_path / "dicom", patients=3, images=2)
    if known:
        assert take_in(source, tmp_path / "c").used == 6
    summary = take_in(source, tmp_path / "c", ANNA)
    assert summary.reasons == {"patient withdrawn": 2}
    assert (summary.used, summary.patients, summary.images, summary.unlabelled, summary.unmatched) == (4, 2, 4, 0, 0)
    store = CohortStore.open(tmp_path / "c", withdrawn={ANNA})
    assert store.pseudonyms == (BERT, CARL) and store.labels("finding") == ["b", "b", "a", "a"]
    if not known:
        assert records(tmp_path / "c", [ANNA]) == {}
        assert (tmp_path / "c" / INPUTS).stat().st_size == 4 * 8 * 8 * 2


def test_a_file_that_was_moved_after_the_withdrawal_stays_out_and_new_labels_do_too(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "dicom", patients=3, images=2)
    take_in(source, tmp_path / "c")
    (source / "labels.csv").write_text("PatientID,finding\nPAT-0,new\nPAT-1,new\nPAT-2,new\n")
    moved = source.rename(tmp_path / "moved")
    assert take_in(moved, tmp_path / "c", ANNA).reasons == {"patient withdrawn": 2}
    assert records(tmp_path / "c", [ANNA])[ANNA].labels == {"finding": {"a"}}
    assert records(tmp_path / "c", [BERT])[BERT].labels == {"finding": {"new"}}


def test_rows_of_a_table_are_quarantined_by_their_patient(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("who,a,y\nPAT-0,1,no\nPAT-1,2,yes\nPAT-0,3,yes\n")

    def run(*withdrawn: bytes) -> IngestSummary:
        return ingest_table(
            tmp_path / "table.csv", tmp_path / "c", key=KEY, features=["a"], patient_column="who",
            labels=["y"], withdrawn=withdrawn,
        )  # fmt: skip

    assert run().used == 3
    summary = run(ANNA)
    assert (summary.read, summary.used, summary.reasons) == (3, 1, {"patient withdrawn": 2})
    assert "line" not in (tmp_path / "c" / "quarantine.csv").read_text().splitlines()[1]
    assert run(ANNA, BERT).used == 0
    assert not rows_name_no_patient(tmp_path / "c")


# Erasing


def test_erasing_overwrites_the_patient_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort(tmp_path)
    with (tmp_path / INPUTS).open("ab") as tail:
        tail.write(b"left behind by an interrupted ingest")
    hashes = [WHO.of(*name) for n in "02" for name in (("row", f"i{n}"), ("row", f"s{n}"), ("file", f"f{n}"))]
    index = (tmp_path / INDEX).read_bytes()
    assert all(each in index for each in hashes) and b"label 0" in index
    since = records(tmp_path, [ANNA])[ANNA].since

    cached = FeatureCache(tmp_path, KEY, "f", torch.device("cpu"))
    cached.encoded(lambda x: x, torch.rand(1, 2), [ANNA])
    features = tmp_path / FOLDER
    assert list(features.iterdir())

    overwritten, zero = [], erasure.zero

    def noted(file: int, start: int, end: int) -> None:
        overwritten.append((start, end))
        zero(file, start, end)

    monkeypatch.setattr(erasure, "zero", noted)
    assert erase(tmp_path, {ANNA}) == 1
    assert not list(features.iterdir())
    features.rmdir()
    assert overwritten[:3] == [(16, 52), (0, 4), (8, 12)]  # the first is the tail, which may be anybody's
    assert np.fromfile(tmp_path / INPUTS, "<f4").tolist() == [0, 11, 0, 13]
    for file in tmp_path.iterdir():
        assert not any(each in file.read_bytes() for each in [*hashes, b"label 0", b"label 2"]), file
    assert {file.name for file in tmp_path.iterdir()} == {INDEX, INPUTS, "lock"}
    assert b"label 1" in (tmp_path / INDEX).read_bytes()

    record = records(tmp_path, [ANNA])[ANNA]
    assert (record.since, record.rows, record.labels) == (since, 2, {}) and record.erased
    store = CohortStore.open(tmp_path, withdrawn=())  # not even a lost register brings the rows back
    assert store.pseudonyms == (BERT, CARL) and store.labels("finding") == ["label 1", "label 3"]
    assert erase(tmp_path, {ANNA}) == 0


def test_erasing_waits_for_no_ingest_and_survives_a_missing_cohort(tmp_path: Path) -> None:
    assert erase(tmp_path / "absent", {ANNA}) == 0
    cohort(tmp_path)
    with (
        CohortWriter(tmp_path, CohortLayout("table", features=("a",)), KEY),
        pytest.raises(StorageError, match="another ingest is running"),
    ):
        erase(tmp_path, {ANNA})
    assert records(tmp_path, [ANNA])[ANNA].erased is None


@pytest.mark.parametrize("moment", ["zero", "_forget", "COMMIT"])
def test_an_erasure_that_dies_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    cohort(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        if moment == "COMMIT":  # the index is committed, its journal not yet overwritten
            zero = erasure.zero
            broken.setattr(erasure, "zero", lambda file, a, b: die() if b > 100 else zero(file, a, b))
        else:
            broken.setattr(erasure, moment, die)
        with pytest.raises(KeyboardInterrupt):
            erase(tmp_path, {ANNA})
    erase(tmp_path, {ANNA})
    assert np.fromfile(tmp_path / INPUTS, "<f4").tolist() == [0, 11, 0, 13]
    assert not any(b"label 0" in file.read_bytes() for file in tmp_path.iterdir())
    assert {file.name for file in tmp_path.iterdir()} == {INDEX, INPUTS, "lock"}
    cohort(tmp_path, withdrawn=(ANNA,))  # and an ingest goes on as ever
    assert CohortStore.open(tmp_path, withdrawn=()).pseudonyms[:2] == (BERT, CARL)


def test_a_study_shared_with_another_patient_keeps_its_label(tmp_path: Path) -> None:
    with CohortWriter(tmp_path, CohortLayout("table", features=("a",)), KEY) as writer:
        with writer.batch() as batch:
            for number, who in enumerate([ANNA, BERT]):
                batch.add(Stored(patient=who, study=b"both", instance=bytes([number])), np.ones((1, 1), np.float32))
            batch.stage(b"both", 1, ["shared"])
            batch.label(["finding"], 0)
        writer.finish()
    erase(tmp_path, {ANNA})
    assert CohortStore.open(tmp_path, withdrawn={ANNA}).labels("finding") == ["shared"]


# Which rounds


def at(minute: int) -> str:
    return f"2026-03-01T10:{minute:02}:00.000+00:00"


def entry(kind: str, minute: int, number: int, *, federation: str = "f", rate: float = 0.5) -> Entry:
    body = {"federation": federation, "rows": [[1.0, rate, 1]]}
    return Entry(0, kind, at(minute), "run", number, body, "")


LEDGER = [
    entry("reserved", 1, 0, rate=1.0), entry("released", 2, 0),  # before the patient came
    entry("reserved", 3, 1), entry("released", 6, 1),  # reserved before, computed after
    entry("reserved", 7, 2, rate=1.0), entry("released", 8, 2),
    entry("reserved", 9, 3),  # never released
    entry("reserved", 11, 4), entry("released", 12, 4),  # began within a minute of the withdrawal
    entry("reserved", 20, 5), entry("released", 21, 5),  # after it
    entry("reserved", 30, 6, federation="other"), entry("released", 31, 6),
    entry("reserved", 32, 7, federation="gone"), entry("released", 33, 7),
]  # fmt: skip
ASKS = {"f": ("finding", ("a", "b")), "other": ("finding", ("c",)), "gone": None}


def test_the_rounds_since_the_patient_came_are_named() -> None:
    """P58: "Withdrawal lists the rounds that used the patient"."""
    record = Record(at(5), None, 2, {"finding": frozenset({"a", "z"})})
    found, others = uses(rounds_of(LEDGER), record, withdrawn=None, asks=ASKS.__getitem__)
    assert [use.round for use in found] == [1, 2, 3, 4, 5, 7] and others == 1
    assert [use.certain for use in found] == [False, True, False, False, False, False]
    assert [use.released is not None for use in found] == [True, True, False, True, True, True]


def test_rounds_after_the_withdrawal_are_not() -> None:
    record = Record(at(5), None, 2, {"finding": frozenset({"a"})})
    found, others = uses(rounds_of(LEDGER), record, withdrawn=at(10), asks=ASKS.__getitem__)
    assert [use.round for use in found] == [1, 2, 3, 4] and others == 0


def test_whoever_s_labels_are_gone_may_have_been_used_by_every_task() -> None:
    found, others = uses(rounds_of(LEDGER), Record(at(5), at(40), 2, {}), withdrawn=None, asks=ASKS.__getitem__)
    assert [use.round for use in found] == [1, 2, 3, 4, 5, 6, 7] and others == 0
    none, all_others = uses(rounds_of(LEDGER), Record(at(5), None, 2, {}), withdrawn=None, asks=ASKS.__getitem__)
    assert [use.round for use in none] == [7] and all_others == 6


def test_a_hospital_whose_register_is_broken_opens_no_cohort(hospital: Hospital) -> None:
    (hospital.home / REGISTER).unlink()
    with pytest.raises(StorageError, match="no patient may be used"):
        hospital.patients.cohort()
