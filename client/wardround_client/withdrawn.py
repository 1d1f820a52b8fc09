"""The opt-out register: which patients have withdrawn, from every federation and for good.

    withdrawn.register   one line a patient, keyed pseudonym (hex) and time (UTC); then a keyed hash of all lines

PatientIDs are not in it, and without the hospital's secret.key nobody can tell from it who withdrew. It is replaced as
a whole (new file, fsync, rename, fsync of the folder), so a crash leaves the register of before or of after. A line is
never taken out. Whoever cannot read the register may not touch a patient: `read` raises for a file that is missing, cut
off, edited or made with another key. One thing it cannot see is an older copy of the whole file, put back while no
daemon was running: guard its backups as you guard the ledger's.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from wardround.errors import ConfigError, StorageError
from wardround.files import write_atomically
from wardround_client.clock import now
from wardround_client.cohort import INDEX, connect, read_meta, storage
from wardround_client.keys import load_pseudonym_key
from wardround_client.privacy.ledger import Entry

REGISTER = "withdrawn.register"
UNDER_WAY = timedelta(minutes=1)
"""A round reserved so shortly after a withdrawal may have read the register before it."""

_HEADER = "wardround withdrawn 1"
_NOBODY: Mapping[bytes, str] = MappingProxyType({})


class Register:
    """A hospital's opt-out register.

    Args:
        path: the file; `create` makes it, with the hospital's home.
        key: the hospital's pseudonym secret; the register belongs to it.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, hmac.digest(key, b"withdrawn", "sha256")
        self._text: bytes | None = None
        self._read = _NOBODY

    @classmethod
    def of(cls, home: Path) -> Register:
        """The register of a hospital's home. Raises: StorageError, when its secret.key cannot be used."""
        return cls(home / REGISTER, load_pseudonym_key(home))

    def create(self) -> None:
        """Make an empty register. Raises: ConfigError, when there is one; StorageError."""
        with self._locked():
            if self._path.exists():
                raise ConfigError(f"{self._path} is there already", do="nothing: the register is in place")
            self._replace({})

    def read(self) -> Mapping[bytes, str]:
        """Pseudonym -> time of everybody who has withdrawn. Cheap when nothing has changed.

        Raises: StorageError, when it is missing or is not what was written; then no patient may be used.
        """
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            raise self._unusable(
                "is missing",
                "restore it from a backup; only where nobody has ever withdrawn, make an empty one with "
                "`wardround hospital withdraw HOME --new-register`",
            ) from None
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})", "correct its permissions, or the disk") from None
        if text != self._text:
            entries = self._parsed(text)
            if self._read.keys() - entries.keys():
                raise self._unusable("has lost entries since this program read it", "restore the newer file")
            self._text, self._read = text, MappingProxyType(entries)
        return self._read

    def add(self, pseudonyms: Collection[bytes]) -> frozenset[bytes]:
        """Write down that these patients have withdrawn -> those who had not before. Durable when it returns.

        Raises: StorageError, when it cannot be read or made durable; the register is then as it was.
        """
        with self._locked():
            entries = dict(self.read())
            fresh = frozenset(pseudonyms) - entries.keys()
            if fresh:
                self._replace(entries | dict.fromkeys(sorted(fresh), now()))
                self.read()
        return fresh

    def _parsed(self, text: bytes) -> dict[bytes, str]:
        body, _, mac = text.rstrip(b"\n").rpartition(b"\n")
        if not hmac.compare_digest(self._mac(body), mac):
            raise self._unusable("is damaged, or belongs to another secret.key", "restore both from one backup")
        header, *lines = body.decode("ascii").split("\n")
        if header != _HEADER:
            raise self._unusable(f"is of another version ({header!r})", "use the wardround that wrote it")
        pairs = (line.split(" ") for line in lines)
        return {bytes.fromhex(pseudonym): at for pseudonym, at in pairs}

    def _replace(self, entries: Mapping[bytes, str]) -> None:
        body = "\n".join([_HEADER, *(f"{who.hex()} {at}" for who, at in entries.items())]).encode("ascii")
        text = body + b"\n" + self._mac(body) + b"\n"
        write_atomically(self._path, text, mode=0o600, scratch=self._path.with_name(self._path.name + ".tmp"))

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).hexdigest().encode("ascii")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time. Raises: StorageError, for what the disk says."""
        try:
            lock = os.open(
                self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written ({error.strerror})",
                do="make room or correct the permissions, then withdraw again: this one does not count",
            ) from None

    def _unusable(self, why: str, do: str) -> StorageError:
        return StorageError(f"the opt-out register {self._path} {why}, so no patient may be used", do=do)


@dataclass(frozen=True)
class Record:
    """What a cohort's index holds of one patient.

    since: when the first row came in. erased: when the values were overwritten, or None. rows: images or table rows.
    labels: by column, the values that the rows have.
    """

    since: str
    erased: str | None
    rows: int
    labels: Mapping[str, frozenset[str]]


_RECORD = "SELECT id, since, erased FROM patients WHERE pseudonym = ?"
_LABELS = """
SELECT DISTINCT name, said FROM (
SELECT c.name AS name, COALESCE(own.value, study.value, patient.value) AS said
FROM instances i JOIN patients p ON p.id = i.patient JOIN label_columns c
LEFT JOIN labels own ON own.patient = p.id AND own.subject = i.instance AND own.column = c.position
LEFT JOIN labels study ON study.patient = p.id AND study.subject = i.study AND study.column = c.position
LEFT JOIN labels patient ON patient.patient = p.id AND patient.subject = p.pseudonym AND patient.column = c.position
WHERE p.id = ?) WHERE said IS NOT NULL
"""


def records(cohort: Path, pseudonyms: Iterable[bytes]) -> dict[bytes, Record]:
    """What the cohort holds of these patients; whom it does not know is left out. No image is read.

    Raises: DataError, StorageError: it is damaged, of another version, or cannot be read.
    """
    found: dict[bytes, Record] = {}
    if not (cohort / INDEX).is_file():
        return found
    with storage(cohort), closing(connect(cohort)) as index:
        read_meta(cohort, index)
        for pseudonym in pseudonyms:
            known = index.execute(_RECORD, (pseudonym,)).fetchone()
            if known is None:
                continue
            patient, since, erased = known
            (rows,) = index.execute("SELECT SUM(rows) FROM instances WHERE patient = ?", (patient,)).fetchone()
            labels: dict[str, set[str]] = {}
            for column, value in index.execute(_LABELS, (patient,)):
                labels.setdefault(column, set()).add(value)
            found[pseudonym] = Record(since, erased, rows, {name: frozenset(said) for name, said in labels.items()})
    return found


def rows_name_no_patient(cohort: Path) -> bool:
    """Whether the cohort is a table in which each row was promised to be a patient of its own: nobody can be found."""
    if not (cohort / INDEX).is_file():
        return False
    with storage(cohort), closing(connect(cohort)) as index:
        found = index.execute(
            "SELECT 1 FROM instances i JOIN patients p ON p.id = i.patient WHERE instance = pseudonym"
        )
        return found.fetchone() is not None


@dataclass(frozen=True)
class Use:
    """A round that used a patient's data, or may have.

    reserved, released: times; released is None when no answer left. sampling_rate: how likely a step drew the patient.
    """

    run: str
    round: int
    federation: str
    reserved: str
    released: str | None
    sampling_rate: float

    @property
    def certain(self) -> bool:
        """Every patient was asked, and the answer left.

        Below a rate of 1 nobody can tell: which patients a step drew is recorded nowhere. This says too much of a round
        whose daemon had been up since before the patient came in, and it is meant to.
        """
        return self.released is not None and self.sampling_rate >= 1


def rounds_of(entries: Iterable[Entry]) -> list[Use]:
    """The rounds of a ledger, whoever's data they used, from its entries, oldest first."""
    rounds: dict[tuple[str, int], Use] = {}
    for entry in entries:
        key = (entry.run, entry.round)
        if entry.kind == "reserved":
            rate = min(float(row[1]) for row in entry.body["rows"])
            rounds[key] = Use(*key, entry.body["federation"], entry.time, None, rate)
        elif entry.kind == "released":
            rounds[key] = replace(rounds[key], released=entry.time)
        else:  # adopted: another copy of the home asked the same patients
            rate = min(float(row[1]) for row in entry.body["rows"])
            rounds.setdefault(key, Use(*key, entry.body["federation"], entry.time, entry.time, rate))
    return list(rounds.values())


def uses(
    rounds: Iterable[Use],
    record: Record,
    *,
    withdrawn: str | None,
    asks: Callable[[str], tuple[str, Collection[str]] | None],
) -> tuple[list[Use], int]:
    """Every one of these rounds that may have used this patient's data, and how many others asked for other labels.

    A round counts from its release, because one that was reserved before the patient came in may be computed after;
    and up to a minute (UNDER_WAY) after the withdrawal, because it may have begun before.

    Args:
        rounds: of the ledger.
        record: of the patient.
        withdrawn: when; None: not yet.
        asks: digest of an agreement -> its label column and classes; None when it is not known any more.
    """
    end = None if withdrawn is None else datetime.fromisoformat(withdrawn) + UNDER_WAY
    since = datetime.fromisoformat(record.since)
    during = [
        use
        for use in rounds
        if datetime.fromisoformat(use.released or use.reserved) >= since
        and (end is None or datetime.fromisoformat(use.reserved) <= end)
    ]
    fitting = [use for use in during if _fits(record, asks(use.federation))]
    return fitting, len(during) - len(fitting)


def _fits(record: Record, asked: tuple[str, Collection[str]] | None) -> bool:
    """Whether a task can use a patient with these labels; whoever's labels were erased counts as if it could."""
    if asked is None or record.erased:
        return True
    column, classes = asked
    return not record.labels.get(column, frozenset()).isdisjoint(classes)
