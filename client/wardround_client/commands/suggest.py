"""`wardround hospital suggest`: which unlabelled patients to label next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import Table, emit, say, show
from wardround.text import counted, shown
from wardround_client.commands._at_home import (
    NOTHING_LEFT,
    FederationOption,
    ModelOption,
    TaskOption,
    separated,
    stages,
)
from wardround_client.commands._common import NewHome, checked
from wardround_client.commands.ingest import pair

if TYPE_CHECKING:
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
    from wardround_client.office.suggesting import STAGES, Wish
    from wardround_client.office.suggesting import suggest as suggest_to

    wish = Wish(
        count,
        where,
        labels,
        source,
        dict(map(pair, settings or [])),
        task,
        federation,
        model,
        label_column,
        separated(classes),
        out,
    )
    with stages(*STAGES, quiet=as_json) as step:
        done = suggest_to(checked(home), wish, step)
    found, records, agreed = done.found, done.records, done.task
    if as_json:
        emit(
            event="suggest",
            file=str(done.file),
            label_column=agreed.label_column,
            classes=list(agreed.classes),
            unlabelled=found.unlabelled,
            named=found.named,
            labelled=found.labelled,
            predicted=found.predicted,
            suggestions=list(records),
            note=NOTHING_LEFT,
        )
    else:
        _show(found, records, done.file, " and ".join(agreed.label_columns))


def _show(found: Suggestions, records: Sequence[Mapping[str, Any]], target: Path, column: str) -> None:
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
