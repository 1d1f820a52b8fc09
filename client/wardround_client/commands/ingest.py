"""`wardround hospital ingest`: what a hospital has -> its cohort."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import MofNCompleteColumn

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, WardroundError
from wardround.terminal import Fields, emit, progress_bar, say, show
from wardround.text import counted, shown
from wardround_client.commands._common import NewHome, checked

if TYPE_CHECKING:
    from wardround.task import Task
    from wardround_client.hospital import Hospital
    from wardround_client.intake.recipe import AnyRecipe
    from wardround_client.intake.reported import From
    from wardround_client.intake.source import Source
    from wardround_client.intake.summary import IngestSummary

_SHOWN_LABELS = 12  # of a column
_SHOWN_REASONS = 20


def ingest(
    home: NewHome,
    where: Annotated[
        str, typer.Argument(help="A folder of DICOM files or pictures, a CSV of measurements, or what --source takes.")
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV of labels. For DICOM: one of PatientID, AccessionNumber, StudyInstanceUID, SeriesInstanceUID, "
            "SOPInstanceUID or file, and label columns. For pictures: file, PatientID and label columns. A column "
            "`manufacturer` names the maker of the scanner."
        ),
    ] = None,
    labels_from: Annotated[
        str,
        typer.Option(
            metavar="sr|seg",
            help="Instead of --labels: take the classes of --federation from structured reports (sr) or segmentations "
            "(seg) beside the DICOM images.",
            show_default=False,
        ),
    ] = "",
    federation: Annotated[
        Path | None, typer.Option(help="The agreement: its size or features, its label column and its classes.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the stored images in pixels.", min=8, max=1024)] = 64,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).", min=1, max=3)] = 1,
    table: Annotated[Path | None, typer.Option(help="The same as WHERE, for a CSV of measurements.")] = None,
    patient_column: Annotated[
        str, typer.Option(help="Of a table: the column that names the patient. Empty: each row is another patient.")
    ] = "",
    source: Annotated[
        str, typer.Option(help="Read WHERE as this source, not as what it looks like.", show_default=False)
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the source; may be repeated.")
    ] = None,
    allow_unknown_labels: Annotated[
        bool, typer.Option("--allow-unknown-labels", help="Go on where labels are none of the agreement's classes.")
    ] = False,
    remove_missing: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Take out of the cohort up to N images that WHERE does not hold any more, and up to N labels that "
            "--labels does not give any more. Where there are more, none is taken out.",
            min=0,
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read everything and report what would happen. Write nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one for each core.", min=0)] = 0,
    allow_burned_in: Annotated[
        bool,
        typer.Option("--allow-burned-in", help="Use files marked with Burned In Annotation YES, if no text is found."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn files and labels, or a table, into the cohort. Run it again to add what is new; nothing is lost.

    Of a file's header only modality and the scanner's manufacturer are kept: no name of a person, date or UID. What is
    no clinical picture (scouts, dose reports, derived images) is left out; [select] in hospital.toml chooses more. What
    cannot be used is listed in cohort/quarantine.csv, each with its reason.

    Exit code 3 when nothing can be used, or when labels are none of the classes of --federation or, without it, of the
    approved agreements.
    """
    home = checked(home)
    from wardround_client.hospital import Hospital
    from wardround_client.intake.ingest import ingest as take_in
    from wardround_client.intake.source import Asked, Rules, look, opened

    if channels == 2:
        raise ConfigError("--channels 2", allowed="1 or 3")
    options = dict(pair(each) for each in settings or [])
    if labels_from:
        options["labels_from"] = brought_by(labels_from)
    if patient_column:
        options["patient_column"] = patient_column
    if not (where or table):
        raise ConfigError("nothing to ingest", do="name a folder with --labels, or a CSV of measurements")
    hospital, cohort = Hospital.open(home), home / "cohort"
    with ExitStack() as opens:
        opens.callback(hospital.ledger.close)
        asked_task = task_of(federation)
        asked = Asked(
            str(table or where),
            labels,
            task=asked_task,
            leave_out=(cohort,),
            home=home,
            rules=Rules.of(hospital.config),
        )
        read = opened(source or ("table" if table else look(asked)), asked, options)
        opens.callback(read.close)
        for line in read.notes:
            note(line, as_json)
        tasks = [asked_task] if asked_task else approved(hospital, read)
        recipe = recipe_for(hospital, read, asked_task, size, channels, allow_burned_in=allow_burned_in)
        with progress_bar(MofNCompleteColumn(), quiet=as_json) as progress:
            bar = progress.add_task("reading", total=None)
            summary = take_in(
                read,
                cohort,
                recipe,
                key=hospital.patients.key,
                workers=workers or None,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
                withdrawn=hospital.patients.register.read(),
                tasks=tasks,
                allow_unknown_labels=allow_unknown_labels,
                remove_missing=remove_missing,
                dry_run=dry_run,
            )
    print_summary(summary, cohort, dry_run=dry_run, as_json=as_json)
    read.ended()
    summary.check()


def brought_by(text: str) -> From:
    """What --labels-from says. Raises: ConfigError."""
    if text not in ("sr", "seg"):
        raise ConfigError(f"--labels-from {shown(text)}", allowed="sr or seg")
    return "sr" if text == "sr" else "seg"


def pair(text: str) -> tuple[str, str]:
    """A setting as it is typed. Raises: ConfigError."""
    name, found, value = text.partition("=")
    if not found:
        raise ConfigError(f"--set {shown(text)}", allowed="NAME=VALUE")
    return name.strip(), value


def task_of(federation: Path | None) -> Task | None:
    from wardround.config import load_federation

    return load_federation(federation).task if federation else None


def recipe_for(
    hospital: Hospital, source: Source, task: Task | None, size: int, channels: int, *, allow_burned_in: bool
) -> AnyRecipe:
    """As the task says; without one, images of this size and these channels."""
    from wardround_client.intake.recipe import ImageRecipe, TableRecipe, at_site, recipe_of

    recipe: AnyRecipe
    if task:
        recipe = recipe_of(task, allow_burned_in=allow_burned_in)
    elif source.kind == "table":
        recipe = TableRecipe(())
    else:
        recipe = ImageRecipe(size, channels, allow_burned_in=allow_burned_in)
    return at_site(recipe, hospital.config.burned_in)


def approved(hospital: Hospital, source: Source) -> list[Task]:
    """The tasks of the approved agreements that this source brings labels for."""
    tasks = []
    for digest in sorted(hospital.approvals.digests()):
        with suppress(WardroundError):  # an approval that cannot be used says nothing about labels
            tasks.append(hospital.approvals.federation(digest).task)
    return [task for task in tasks if task.kind == source.kind and set(task.label_columns) <= set(source.label_columns)]


def note(line: str, as_json: bool) -> None:
    if as_json:
        emit(event="note", note=line)
    else:
        say(f"{line}.")


def print_summary(summary: IngestSummary, cohort: Path, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit(event="ingest", **asdict(summary), dry_run=dry_run, quarantine=str(cohort / "quarantine.csv"))
        return
    rows = {
        "read": str(summary.read),
        "used": f"{summary.used} ({summary.already} were there before)",
        "quarantined": str(summary.quarantined),
    }
    often = sorted(summary.reasons.items(), key=lambda reason: -reason[1])
    rows |= {f"  {reason}": str(count) for reason, count in often[:_SHOWN_REASONS]}
    rows |= {"  others": str(sum(count for _, count in often[_SHOWN_REASONS:]))} if often[_SHOWN_REASONS:] else {}
    rows |= {"cohort": f"{counted(summary.patients, 'patient')}, {counted(summary.images, 'image')}"}
    if summary.modalities.keys() - {""}:
        rows |= {"images by modality": _listed(summary.modalities)}
    rows |= {"read now, by image type": _listed(summary.image_types)} if summary.image_types else {}
    rows |= {"read now, by view": _listed(summary.views)} if summary.views else {}
    rows |= {f"patients by {each.column}": _listed(each.classes) for each in summary.classes}
    known = {column for each in summary.classes for column in (each.column, *each.columns)}
    rows |= {f"patients by {name}": _listed(of) for name, of in summary.labels.items() if name not in known}
    rows |= {"without a label": str(summary.unlabelled), "CSV rows without an image": str(summary.unmatched)}
    if summary.unusable:
        rows |= {"CSV lines without effect": str(summary.unusable)}
    show(Fields(rows, "Ingest, dry run: nothing was written" if dry_run else "Ingest"))
    for each in summary.classes:
        if each.unknown:
            say(f"{each.sentence()}. Their images are not used.")
    if summary.quarantined and not dry_run:
        say(f"Each quarantined file and its reason: {cohort / 'quarantine.csv'}")
    if summary.unusable:
        lines = ", ".join(map(str, summary.unusable_lines))
        say(
            f"Without a key, with a cell too few or too many, or against an earlier line of the same key: line {lines}."
        )
        say("A key that two lines contradict has no label. Correct the CSV and ingest again.")
    _say_corrections(summary)
    _say_identity(summary)
    if any(reason.startswith("[select]") for reason in summary.reasons):
        say('[select] in hospital.toml says which images count; allow = ["localizer"] uses what is left out by itself.')
    if summary.shared:
        say(
            f"Files of several patients share {counted(summary.shared, 'SOP Instance UID')}; "
            "each patient keeps the own image."
        )
        say("If they are one person under two PatientIDs, that person counts twice: give both files one PatientID.")


def _say_corrections(summary: IngestSummary) -> None:
    if summary.corrected:
        say(f"Taken out, as something else stands in its place now: {counted(summary.corrected, 'stored image')}.")
    if summary.removed or summary.labels_removed:
        say(
            f"Taken out as asked: {counted(summary.removed, 'missing image')}, "
            f"{counted(summary.labels_removed, 'label')}."
        )
    if summary.missing:
        say(f"Not there any more, and still in the cohort: {counted(summary.missing, 'stored image')}.")
        say(f"If they were deleted on purpose, take them out: --remove-missing {summary.missing}")
    if summary.labels_replaced:
        say(f"Less particular labels of this CSV replaced {counted(summary.labels_replaced, 'older label')}.")
    if summary.labels_stale:
        say(f"Given by an earlier CSV and not by this one, and still there: {counted(summary.labels_stale, 'label')}.")
        say(f"If they were withdrawn, take them away: --remove-missing {summary.labels_stale}")
    if summary.other_columns:
        say(f"Columns that this CSV does not have keep their labels: {', '.join(map(shown, summary.other_columns))}.")


def _say_identity(summary: IngestSummary) -> None:
    if any("placeholder" in reason for reason in summary.reasons):
        say("Behind a placeholder (ANONYMOUS, 0000) nobody could withdraw. [patients] allow_placeholders uses them.")
    if summary.issuers:
        say(
            f"Several issuers, (0010,0021), gave {counted(summary.issuers, 'PatientID')}: "
            "each issuer's is another patient."
        )
    if summary.halved:
        say(
            f"Without an issuer came {summary.halved} of them too. If that is one person, each half is protected apart:"
        )
        say('name your own issuer in hospital.toml, [patients] issuer = "...", and ingest again.')
    if summary.shared_keys:
        say(
            f"Several issuers gave {counted(summary.shared_keys, 'PatientID')} of the CSV; "
            "each of their patients got the labels."
        )
        say("Add a column IssuerOfPatientID to tell them apart.")
    if summary.several_people:
        say(
            f"Files of different birth dates or sexes share {counted(summary.several_people, 'PatientID')}: "
            "maybe several people."
        )
        say("They count as one patient each; give them PatientIDs of their own in the archive, and ingest again.")


def _listed(counts: Mapping[str, int]) -> str:
    from wardround_client.cohort.labels import quoted

    named = [f"{quoted(name)} {count}" for name, count in list(counts.items())[:_SHOWN_LABELS]]
    more = [f"and {len(counts) - _SHOWN_LABELS} more"] if len(counts) > _SHOWN_LABELS else []
    return ", ".join(named + more) or "none"


command = Command(
    ingest,
    panel="Set up",
    place=3,
    examples=(
        "wardround hospital ingest ~/st-anna /data/dicom --labels labels.csv --federation federation.toml",
        "wardround hospital ingest ~/st-anna /data/dicom --labels labels.csv --size 64 --channels 1 --dry-run",
        "wardround hospital ingest ~/st-anna /data/dicom --labels-from sr --federation federation.toml",
        "wardround hospital ingest ~/st-anna /data/png --labels pictures.csv",
        "wardround hospital ingest ~/st-anna heart.csv --federation federation.toml --set patient_column=id",
    ),
)
