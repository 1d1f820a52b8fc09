"""Whom to label next, as the command and the page ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError, DataError
from wardround.files import cannot_write, private_folder, write_atomically
from wardround.labels import LABEL_KINDS
from wardround.task import Task
from wardround.text import counted
from wardround_client.intake.found_again import originated, to_fill, written
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Asked, Rules
from wardround_client.office.models import opened
from wardround_client.personal.shared_model import choose
from wardround_client.personal.suggestions import FOLDER, Suggestions, suggested


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    count: of patients. where, labels, source, settings: what was taken in, as `intake.source.Asked` has it. task,
    federation, model, label_column, classes: as `shared_model.choose`. out: a CSV; None: one in the home.
    """

    count: int
    where: str = ""
    labels: Path | None = None
    source: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    federation: str = ""
    model: Path | None = None
    label_column: str = ""
    classes: Sequence[str] = ()
    out: Path | None = None


@dataclass(frozen=True)
class Suggested:
    """A list that was written. records: a line each, the most telling first."""

    file: Path
    task: Task
    found: Suggestions
    records: Sequence[Mapping[str, Any]]


STAGES = ("finding out who is who", "looking at the images", "writing")


def suggest(home: Path, wish: Wish, step: Callable[[], None] = lambda: None) -> Suggested:
    """Choose patients, and write the list. step: is called when one of STAGES is over, but for the last.

    Raises: ConfigError, DataError, StorageError.
    """
    hospital = opened(home)
    target = wish.out or hospital.home / FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.csv"
    if target.exists():
        raise ConfigError(f"{target} is there already", do="name another --out: somebody may have filled it in")
    start = choose(
        hospital,
        task=wish.task,
        federation=wish.federation,
        file=wish.model,
        label_column=wish.label_column,
        classes=wish.classes,
    )
    agreed, cohort = start.federation, hospital.patients.cohort()
    asked = Asked(
        wish.where,
        wish.labels,
        columns=(),
        task=agreed.task,
        leave_out=(hospital.home / "cohort",),
        home=hospital.home,
        rules=Rules.of(hospital.config),
    )
    origins = originated(asked, wish.source, wish.settings, cohort, Pseudonyms(hospital.patients.key))
    step()
    with hospital.patients.encoding(cohort, agreed, start.model, hospital.device) as by:
        found = suggested(cohort, start, hospital.device, wish.count, among=origins.keys(), by=by)
    step()
    allowed = _allowed(agreed.task)
    lines = to_fill(
        [origins[each.row] for each in found.chosen],
        agreed.task.label_columns,
        [{"why": each.why, allowed: "", "pseudonym": each.pseudonym.hex()} for each in found.chosen],
        asked.labels or Path(wish.where),
    )
    records = [
        each.record(agreed.task.classes) | {"line": line}
        for each, line in zip(found.chosen, lines, strict=True)
        if line is not None
    ]
    if not records:
        raise DataError(
            f"of {counted(found.unlabelled, 'patient')} without a label none can be suggested",
            do="name the folder or the CSV that they were taken in from, unchanged"
            if found.unlabelled
            else "ingest more patients; whom the labels CSV leaves out, or gives no label, is taken in too",
        )
    try:
        if wish.out is None:
            private_folder(target.parent)
        write_atomically(target, written([record["line"] for record in records]))
    except OSError as error:
        raise cannot_write(target, error) from None
    return Suggested(target, agreed.task, found, records)


def _allowed(task: Task) -> str:
    """What may stand in the label column, as the name of a column that is not read."""
    kind = LABEL_KINDS[task.labels]
    if kind.timed:
        return kind.allowed(task)
    if kind.exclusive:
        return f"{task.label_column} is one of: {', '.join(task.classes)}"
    return f"{task.label_column} is none, or any of these with ; between: {', '.join(task.classes)}"
