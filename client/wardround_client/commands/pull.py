"""`wardround hospital pull`: what the labels name, out of the PACS and into the cohort."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import MofNCompleteColumn

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import Fields, emit, progress_bar, say, show
from wardround.text import counted, shown
from wardround_client.commands._common import NewHome, checked
from wardround_client.commands.ingest import approved, brought_by, note, print_summary, recipe_for, task_of

if TYPE_CHECKING:
    from wardround_client.config import Pacs
    from wardround_client.intake.pacs.source import PacsSource
    from wardround_client.intake.recipe import AnyRecipe


def pull(
    home: NewHome,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The worklist: a CSV keyed by PatientID, AccessionNumber or a UID of study, series or image, with "
            "label columns. What it names is fetched, and nothing else."
        ),
    ] = None,
    labels_from: Annotated[
        str,
        typer.Option(
            metavar="sr|seg",
            help="Take the classes of --federation from the structured reports (sr) or segmentations (seg) of the "
            "studies that --labels names; it needs no label column then.",
            show_default=False,
        ),
    ] = "",
    federation: Annotated[
        Path | None, typer.Option(help="The agreement: its size, its label column and its classes.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the stored images in pixels.", min=8, max=1024)] = 64,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).", min=1, max=3)] = 1,
    check: Annotated[bool, typer.Option("--check", help="Ask the PACS for an answer, and fetch nothing.")] = False,
    allow_unknown_labels: Annotated[
        bool, typer.Option("--allow-unknown-labels", help="Go on where labels are none of the agreement's classes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask what would be fetched. Fetch and write nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read; 0: one for each core.", min=0)] = 0,
    allow_burned_in: Annotated[
        bool,
        typer.Option("--allow-burned-in", help="Use files marked with Burned In Annotation YES, if no text is found."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch from the PACS what the labels name, and turn it into the cohort. [pacs] in hospital.toml says where it is.

    Run it again to fetch what is new, or what it did not reach: what is in the cohort is not fetched again, and nothing
    is lost when the PACS is slow, wrong or away. It asks one thing at a time, in the hours and within the bandwidth of
    hospital.toml. What is fetched lies in HOME/spool until it is read. Exit code 6 when the PACS did not give
    everything: the same command goes on. 3 when nothing can be used, or the PACS has nothing of what the labels name.
    """
    home = checked(home)
    from wardround_client.hospital import Hospital
    from wardround_client.intake.check import check_labels
    from wardround_client.intake.ingest import ingest
    from wardround_client.intake.pacs.source import who_answers
    from wardround_client.intake.source import Asked, Rules

    if channels == 2:
        raise ConfigError("--channels 2", allowed="1 or 3")
    with ExitStack() as opens:
        hospital = Hospital.open(home)
        opens.callback(hospital.ledger.close)
        kind, settings = chosen(home, hospital.config.pacs)
        if check:
            answered = who_answers(kind.archive, settings, home)
            emit(event="pull", check=answered) if as_json else say(f"The PACS answers: {shown(answered)}.")
            return
        task = task_of(federation)
        source = kind(
            Asked(settings.url or settings.address, labels, task=task, home=home, rules=Rules.of(hospital.config)),
            settings,
            brought_by(labels_from) if labels_from else None,
        )
        opens.callback(source.close)
        for line in source.notes:
            note(line, as_json)
        tasks = [task] if task else approved(hospital, source)
        for each in tasks if source.key and not allow_unknown_labels else []:
            check_labels(source, each)  # before the PACS is asked for anything
        recipe = recipe_for(hospital, source, task, size, channels, allow_burned_in=allow_burned_in)
        with progress_bar(MofNCompleteColumn(), quiet=as_json) as progress:
            asking = progress.add_task("asking the PACS", total=None)
            source.find(lambda done, total: progress.update(asking, completed=done, total=total))
            if dry_run:
                _print_plan(source, home / "cohort", recipe, hospital.patients.key, as_json=as_json)
                _print_unasked(source, as_json=as_json)
                return
            fetching = progress.add_task("fetching", total=None)
            summary = ingest(
                source,
                home / "cohort",
                recipe,
                key=hospital.patients.key,
                workers=workers or None,
                progress=lambda done, total: progress.update(fetching, completed=done, total=total),
                withdrawn=hospital.patients.register.read(),
                tasks=tasks,
                allow_unknown_labels=allow_unknown_labels,
            )
        print_summary(summary, home / "cohort", dry_run=False, as_json=as_json)
        _print_unasked(source, as_json=as_json)
        source.ended()
        summary.check()


def chosen(home: Path, settings: Pacs) -> tuple[type[PacsSource], Pacs]:
    """Which of the two protocols hospital.toml means. Raises: ConfigError."""
    from wardround_client.intake.source import SOURCES

    if bool(settings.url) == bool(settings.address):
        raise ConfigError(
            f"{home / 'hospital.toml'}: [pacs] names {'url and address' if settings.url else 'no PACS'}",
            allowed="url of its DICOMweb service, or address (host:port) of its DIMSE service",
            do="write one of the two",
        )
    return cast("type[PacsSource]", SOURCES["dicomweb" if settings.url else "dimse"]), settings


def _print_plan(source: PacsSource, cohort: Path, recipe: AnyRecipe, key: bytes, *, as_json: bool) -> None:
    """What would be fetched."""
    from wardround_client.intake.ingest import unknown
    from wardround_client.intake.pacs.items import files_of

    total = sum(len(files_of(item)) for item in source.items())
    todo = [file.found[:2] for item in unknown(source, cohort, recipe, key) for file in files_of(item)]
    counts = {"found": total, "fetch": len(todo), "series": len(set(todo)), "studies": len({s for s, _ in todo})}
    if as_json:
        emit(event="pull", **counts, dry_run=True)
        return
    show(
        Fields(
            {
                "images that the worklist names": str(total),
                "in the cohort already": str(total - len(todo)),
                "to fetch": f"{counted(len(todo), 'image')}, {counts['series']} series, "
                + counted(counts["studies"], "study", "studies"),
            },
            "Pull, dry run: nothing was fetched or written",
        )
    )


def _print_unasked(source: PacsSource, *, as_json: bool) -> None:
    """What was left out, and why."""
    if as_json:
        emit(
            event="worklist", unasked=source.unasked, unaskable=len(source.unaskable), unanswered=len(source.unanswered)
        )
        return
    if source.unaskable:
        lines = ", ".join(map(str, source.unaskable[:20]))
        say(f"No value that a PACS can be asked for (a wildcard, or no UID): line {lines}.")
    if source.unasked:
        say(f"The PACS offered or sent {counted(source.unasked, 'image')} that nobody asked for, and none was taken.")


command = Command(
    pull,
    panel="Set up",
    place=4,
    examples=(
        "wardround hospital pull ~/st-anna --check",
        "wardround hospital pull ~/st-anna --labels labels.csv --federation federation.toml --dry-run",
        "wardround hospital pull ~/st-anna --labels labels.csv --federation federation.toml",
    ),
)
