"""What a cohort's index holds of one patient: asked when somebody withdraws, from the index alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from wardround_client.cohort.index import INDEX, LABEL, LABELLED, connect, read_meta, storage


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
_ROWS = "SELECT COALESCE(SUM(rows), 0) FROM instances WHERE patient = ?"
_LABELS = f"SELECT DISTINCT c.name, {LABEL} AS label {LABELLED} WHERE p.id = ? AND label IS NOT NULL"


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
            (rows,) = index.execute(
                "SELECT COALESCE(SUM(rows), 0) FROM instances WHERE patient = ?", (patient,)
            ).fetchone()
            labels: dict[str, set[str]] = {}
            for column, value in index.execute(_LABELS, (patient,)):
                labels.setdefault(column, set()).add(value)
            found[pseudonym] = Record(since, erased, rows, {name: frozenset(said) for name, said in labels.items()})
    return found


def named(cohort: Path, patient_ids: Iterable[bytes]) -> dict[bytes, bytes]:
    """The patients that a cohort holds of these PatientIDs, whoever issued them: pseudonym -> the PatientID's.

    patient_ids: pseudonyms of the PatientIDs alone. Raises: DataError, StorageError.
    """
    found: dict[bytes, bytes] = {}
    if not (cohort / INDEX).is_file():
        return found
    with storage(cohort), closing(connect(cohort)) as index:
        read_meta(cohort, index)
        for bare in patient_ids:
            found |= {each: bare for (each,) in index.execute("SELECT pseudonym FROM patients WHERE bare = ?", (bare,))}
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
