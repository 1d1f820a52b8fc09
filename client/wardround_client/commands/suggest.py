"""`wardround hospital suggest`: which unlabelled patients to label next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, DataError
from wardround.terminal import Table, emit, say, show
from wardround.text import counted, shown
from wardround_client.commands._at_home import (
    NOTHING_LEFT,
    FederationOption,
    ModelOption,
    TaskOption,
    opened,
    separated,
    stages,
)
from wardround_client.commands._common import NewHome
from wardround_client.commands.ingest import pair

if TYPE_CHECKING:
    from wardround.task import Task
    from wardround_client.personal.suggestions import Suggestions

_SHOWN = 20


def suggest(
    home: NewHome,
    count: Annotated[int, typer.Argument(help="How many patients.", min=1, max=100_000, show_default=False)],
    where: Annotated[
        str, typer.Argument(help="What `ingest` took in: the same folder or file. Empty: what `pull` fetched.")
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option(help="The labels CSV that `ingest` got, where there is one; of `pull`, the worklist."),
    ] = None,
    task: TaskOption = "",
    model: ModelOption = None,
    federation: FederationOption = "",
    classes: Annotated[
        str, typer.Option(help="A new disease: its labels, separated by commas, instead of the task's.")
    ] = "",
    label_column: Annotated[str, typer.Option(help="The column of the labels, instead of the task's.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="A CSV that is not there yet.", show_default="HOME/suggestions/DATE-TIME.csv")
    ] = None,
    source: Annotated[str, typer.Option(help="Read WHERE as this source, as `ingest` did.", show_default=False)] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the source, as `ingest` got.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Suggest which patients of the cohort to label next, and write a CSV to fill in.

    Chosen are patients without a label who are unlike all labelled ones and unlike each other, those first of whom
    the model, adapted to what is labelled so far, is not sure. Nobody needs a label yet. Who has withdrawn is not
    suggested. The same cohort and model give the same list.

    Fill in the label column and give the file to `ingest --labels` (or `pull --labels`) as it is. Columns whose
    name begins with # are for you and are not read. The cohort holds no names: the files or the CSV that it was made of
    say who is meant, so the CSV names patients and is for this hospital alone.

    It does not suggest images to outline, or places to mark.
    """
    from wardround.files import cannot_write, private_folder, write_atomically
    from wardround_client.intake.found_again import originated, to_fill, written
    from wardround_client.intake.pseudonyms import Pseudonyms
    from wardround_client.intake.source import Asked, Rules
    from wardround_client.personal.shared_model import choose
    from wardround_client.personal.suggestions import FOLDER, suggested

    hospital = opened(home)
    target = out or hospital.home / FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.csv"
    if target.exists():
        raise ConfigError(f"{target} is there already", do="name another --out: somebody may have filled it in")
    with stages("finding out who is who", "looking at the images", "writing", quiet=as_json) as step:
        start = choose(
            hospital,
            task=task,
            federation=federation,
            file=model,
            label_column=label_column,
            classes=separated(classes),
        )
        agreed, cohort = start.federation, hospital.patients.cohort()
        asked = Asked(
            where,
            labels,
            columns=(),
            task=agreed.task,
            leave_out=(hospital.home / "cohort",),
            home=hospital.home,
            rules=Rules.of(hospital.config),
        )
        origins = originated(asked, source, dict(map(pair, settings or [])), cohort, Pseudonyms(hospital.patients.key))
        step()
        with hospital.patients.encoding(cohort, agreed, start.model, hospital.device) as by:
            found = suggested(cohort, start, hospital.device, count, among=origins.keys(), by=by)
        step()
        allowed = _allowed(agreed.task)
        lines = to_fill(
            [origins[each.row] for each in found.chosen],
            agreed.task.label_columns,
            [{"why": each.why, allowed: "", "pseudonym": each.pseudonym.hex()} for each in found.chosen],
            asked.labels or Path(where),
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
            if out is None:
                private_folder(target.parent)
            write_atomically(target, written([record["line"] for record in records]))
        except OSError as error:
            raise cannot_write(target, error) from None
    if as_json:
        emit(
            event="suggest",
            file=str(target),
            label_column=agreed.task.label_column,
            classes=list(agreed.task.classes),
            unlabelled=found.unlabelled,
            named=found.named,
            labelled=found.labelled,
            predicted=found.predicted,
            suggestions=records,
            note=NOTHING_LEFT,
        )
    else:
        _show(found, records, target, " and ".join(agreed.task.label_columns))


def _show(found: Suggestions, records: Sequence[dict[str, Any]], target: Path, column: str) -> None:
    line = records[0]["line"]
    key = next((name for name in ("# PatientID", "PatientID") if name in line), next(iter(line)))
    rows = [(str(place), record["line"][key], record["why"]) for place, record in enumerate(records, 1)]
    show(
        Table(
            (">", key.removeprefix("# "), "why"),
            rows[:_SHOWN],
            f"Label these next, of {counted(found.unlabelled, 'patient')}",
        )
    )
    if len(rows) > _SHOWN:
        say(f"{counted(len(rows) - _SHOWN, 'more patient')}: see the file.")
    if found.named < found.unlabelled:
        unnamed = counted(found.unlabelled - found.named, "patient")
        say(f"{unnamed} without a label cannot be named: their files are others, or were changed.", "yellow")
    if not found.predicted:
        say("Chosen by how patients differ, and not by what a model is unsure of.")
    say(f"Labelled so far: {counted(found.labelled, 'patient')}.")
    say(f"Fill in the column {shown(column)} of {target}, and give that file to `ingest --labels` as it is.")
    say("It names patients: keep it here.")
    say(NOTHING_LEFT)


def _allowed(task: Task) -> str:
    """What may stand in the label column, as the name of a column that is not read."""
    from wardround.labels import LABEL_KINDS

    kind = LABEL_KINDS[task.labels]
    if kind.timed:
        return kind.allowed(task)
    if kind.exclusive:
        return f"{task.label_column} is one of: {', '.join(task.classes)}"
    return f"{task.label_column} is none, or any of these with ; between: {', '.join(task.classes)}"


command = Command(
    suggest,
    panel="Use at home",
    place=4,
    examples=(
        "wardround hospital suggest ~/st-anna 20 /data/dicom",
        "wardround hospital suggest ~/st-anna 20 --labels worklist.csv --task federation.toml "
        "--model checkpoint.safetensors",
        "wardround hospital suggest ~/st-anna 20 /data/png --labels pictures.csv --json",
    ),
)
