"""What an archive does not hold any more: a cohort follows it, and never by mistake.

Every instance knows through which archives it came in. At the end of an ingest of an archive, those of its instances
that no item was are either *corrected*: the same place holds something else now, or the same image came back as another
patient's; they are taken out at once. Or they are *missing*, as when a file was deleted or a disk is not mounted: they
are taken out only when a person says how many may be.

Taking out: the rows become zeros and belong to nobody, and no identifier, label or file stays. The patient's pseudonym
and the time of the first row stay, so that the rounds that used the data can be named (`erasure.py`).
"""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import dataclass

from wardround_client.clock import now
from wardround_client.cohort.index import ONE, STAYS

NOBODY = b"nobody"
"""Stands for a pseudonym: who owns the rows that were taken out and overwritten; `LEAVING`: those to be overwritten."""
LEAVING = b"nobody, not yet overwritten"

# Of patients who stay, what came in through this archive and no other, and no item of this ingest was.
_UNMET = f"""
FROM instances i JOIN patients p ON p.id = i.patient WHERE {STAYS}
AND NOT EXISTS (SELECT 1 FROM claimed c WHERE c.instance = i.instance AND c.patient = p.pseudonym)
AND NOT EXISTS (SELECT 1 FROM origins o
WHERE o.instance = i.instance AND o.patient = i.patient AND o.root NOT IN (:root, x''))
"""
_HERE = "EXISTS (SELECT 1 FROM origins o WHERE o.instance = i.instance AND o.patient = i.patient AND o.root = :root)"
_REPLACED = """EXISTS (SELECT 1 FROM files f JOIN met m ON m.place = f.place
WHERE f.instance = i.instance AND f.patient = i.patient AND m.certain AND m.file != f.file)"""
# The same UID came in as another patient's since the last ingest that came to its end, or is of one who has withdrawn.
_MOVED = """EXISTS (SELECT 1 FROM claimed c JOIN patients q ON q.pseudonym = c.patient
WHERE c.instance = i.instance AND q.id != i.patient
AND NOT EXISTS (SELECT 1 FROM origins o WHERE o.instance = i.instance AND o.patient = q.id AND o.met))
OR EXISTS (SELECT 1 FROM withheld w WHERE w.instance = i.instance AND w.patient != p.pseudonym)"""


@dataclass(frozen=True)
class Corrections:
    """Instances. corrected: taken out, for something else stands in their place. missing: not there any more, and kept.
    removed: not there any more, and taken out because a person said so.
    """

    corrected: int
    missing: int
    removed: int


def correct(index: sqlite3.Connection, root: bytes, most: int, *, whole: bool) -> Corrections:
    """Take out what this archive does not hold any more, within the transaction that ends its ingest.

    The rows themselves are overwritten afterwards, by the writer. most: so many missing ones are taken out; where there
    are more, none is. whole: the items were all of the archive; otherwise nothing is missing.
    """
    asked = {"root": root}
    replaced = index.execute(f"SELECT i.first_row {_UNMET} AND ({_REPLACED} OR {_MOVED})", asked).fetchall()
    _take_out(index, replaced)
    missing = index.execute(f"SELECT i.first_row {_UNMET} AND {_HERE}", asked).fetchall() if whole else []
    confirmed = missing if len(missing) <= most else []
    _take_out(index, confirmed)
    index.execute(
        """DELETE FROM files WHERE EXISTS
        (SELECT 1 FROM met m WHERE m.place = files.place AND m.certain AND m.file != files.file)"""
    )
    index.execute(
        """INSERT OR IGNORE INTO origins SELECT c.instance, p.id, ?, 1 FROM claimed c
        JOIN patients p ON p.pseudonym = c.patient""",
        (root,),
    )
    index.execute(
        """UPDATE origins SET met = 1 WHERE root = ? AND NOT met AND EXISTS (SELECT 1 FROM claimed c
        JOIN patients p ON p.pseudonym = c.patient WHERE c.instance = origins.instance AND p.id = origins.patient)""",
        (root,),
    )
    return Corrections(len(replaced), len(missing) - len(confirmed), len(confirmed))


def _take_out(index: sqlite3.Connection, first_rows: list[tuple[int]]) -> None:
    if not first_rows:
        return
    leaving = owner(index, LEAVING)
    for (first,) in first_rows:
        _forget(index, first, leaving)


def _forget(index: sqlite3.Connection, first_row: int, leaving: int) -> None:
    """Give the rows that begin there to nobody, and remove what the index says of them."""
    asked = "SELECT instance, patient FROM instances WHERE first_row = ?"
    instance, patient = index.execute(asked, (first_row,)).fetchone()
    for table in ("files", "origins"):
        index.execute(f"DELETE FROM {table} WHERE instance = ? AND patient = ?", (instance, patient))
    index.execute(
        """UPDATE instances SET instance = ?, patient = ?, study = x'', manufacturer = '', modality = '',
        series = x'', accession = x'' WHERE first_row = ?""",
        (secrets.token_bytes(32), leaving, first_row),
    )
    # A label of an image, a study or a patient that has no row any more is nobody's.
    index.execute(
        """DELETE FROM labels WHERE patient = :patient AND subject NOT IN (
        SELECT instance FROM instances WHERE patient = :patient UNION SELECT series FROM instances
        WHERE patient = :patient UNION SELECT study FROM instances WHERE patient = :patient
        UNION SELECT accession FROM instances WHERE patient = :patient
        UNION SELECT p.pseudonym FROM patients p JOIN instances i ON i.patient = p.id WHERE p.id = :patient
        UNION SELECT p.bare FROM patients p JOIN instances i ON i.patient = p.id WHERE p.id = :patient)""",
        {"patient": patient},
    )


def owner(index: sqlite3.Connection, nobody: bytes) -> int:
    """The number of NOBODY or LEAVING: a patient who was erased from the first moment on."""
    made = (nobody, nobody, now(), now())
    index.execute("INSERT OR IGNORE INTO patients (pseudonym, bare, since, erased) VALUES (?, ?, ?, ?)", made)
    return int(index.execute("SELECT id FROM patients WHERE pseudonym = ?", (nobody,)).fetchone()[0])


def overwritten(index: sqlite3.Connection) -> None:
    """The rows that were taken out hold zeros now."""
    at = (owner(index, NOBODY), LEAVING)
    index.execute("UPDATE instances SET patient = ? WHERE patient = (SELECT id FROM patients WHERE pseudonym = ?)", at)


def replace_rows(index: sqlite3.Connection, patient: bytes, instance: bytes, first_row: int, rows: int) -> None:
    """Let an instance have other rows; the old ones leave."""
    leaving = owner(index, LEAVING)
    asked = f"SELECT first_row, rows FROM instances WHERE {ONE}"
    was = index.execute(asked, (instance, patient)).fetchone()
    index.execute(f"UPDATE instances SET first_row = ?, rows = ? WHERE {ONE}", (first_row, rows, instance, patient))
    index.execute(
        "INSERT INTO instances VALUES (?, x'', ?, ?, ?, '', '', x'', x'')", (secrets.token_bytes(32), leaving, *was)
    )


def elsewhere(index: sqlite3.Connection, patient: bytes, instance: bytes, root: bytes) -> bool:
    """Whether an instance came in through another archive too."""
    asked = f"SELECT 1 FROM origins WHERE {ONE} AND root NOT IN (?, x'')"
    return index.execute(asked, (instance, patient, root)).fetchone() is not None


def leaving_rows(index: sqlite3.Connection) -> list[tuple[int, int]]:
    """(first row, rows) of what was taken out and is not yet overwritten."""
    return index.execute(
        "SELECT first_row, rows FROM instances WHERE patient = (SELECT id FROM patients WHERE pseudonym = ?)",
        (LEAVING,),
    ).fetchall()
