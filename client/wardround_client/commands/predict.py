"""`wardround hospital predict`: predict for new images or rows with an adapted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import MofNCompleteColumn

from wardround.command import Command, JsonOption
from wardround.terminal import Table, console, emit, progress_bar, say, show
from wardround.text import counted, shown
from wardround_client.commands._at_home import NOTHING_LEFT
from wardround_client.commands._common import NewHome, checked

if TYPE_CHECKING:
    from wardround_client.personal.prediction_folder import PredictionFolder

_SHOWN = 20  # patients, and refused files, on the screen
_TOLD = 20  # items, from which on progress is told where there is no terminal


def predict(
    home: NewHome,
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="DICOM files, pictures, or folders of them with their sub-folders; of a model of tables, CSV files.",
            show_default=False,
        ),
    ],
    adapted: Annotated[
        str, typer.Option(help="Name of an adapted model; not needed where there is one.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder, or one to go on in.", show_default="HOME/predictions/NAME-DATE-TIME"),
    ] = None,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Draw for each image where its prediction comes from.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read; 0: one for each core.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Predict for new images or rows, image by image and patient by patient, as JSON and CSV.

    The files are read and made into images exactly as the cohort's were; those that cannot be used are listed with
    their reasons, in refused.csv too. Exit code 3 when none could be used. A file is named by its path and a patient
    by this hospital's pseudonym: the folder is for this hospital alone, and nothing leaves.

    Results are written as they come. After Ctrl-C what is done is kept, and the same command goes on.

    Masks, dose grids and images of a few pixels are refused. What is unlike all patients that the model was adapted to
    is marked as out of distribution (ood_score above 1), and so is a modality that the cohort does not have: do not
    rely on its prediction.

    Masks and places are those of the image as it was: masks/ holds a PNG of each, and of a DICOM file a segmentation;
    findings.csv a line a finding.

    The heat map shows integrated gradients, of masks and places their probability. For methods that compare
    (prototypical, matching, relation, siamese) the nearest support cases stand beside each prediction.

    This is not a medical device: a prediction is not a diagnosis.
    """
    from wardround_client.office.predicting import Prediction

    asked = Prediction.ready(checked(home), paths, adapted=adapted, out=out, heatmap=heatmap)
    results = asked.results
    try:
        with _progress(quiet=as_json) as tell:
            asked.run(tell, workers or None)
    except KeyboardInterrupt:
        if not as_json:
            say(f"{len(results.done)} of {len(asked.items)} are done: {results.folder}. The same command goes on.")
        raise
    images, refused, patients = results.images, results.refused, results.patients()
    if as_json:
        emit(
            event="predict",
            folder=str(results.folder),
            images=len(images),
            patients=len(patients),
            refused=len(refused),
            out_of_distribution=sum(row["out_of_distribution"] for row in images),
            note=NOTHING_LEFT,
            **asked.about,
        )
    else:
        _show(results)
    asked.check()


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else a line at each tenth -> what is told how many are done, and of how many."""
    with progress_bar(MofNCompleteColumn(), quiet=quiet) as progress:
        bar, before = progress.add_task("predicting", total=None), 0

        def tell(done: int, total: int) -> None:
            nonlocal before
            progress.update(bar, completed=done, total=total)
            if not (quiet or console.is_terminal) and total >= _TOLD and done * 10 // total > before * 10 // total:
                say(f"predicted {done} of {total}")
            before = done

        yield tell


def _show(results: PredictionFolder) -> None:
    patients, images, refused = results.patients(), results.images, results.refused
    rows = [
        (
            patient["patient"][:8],
            str(patient["images"]),
            patient["predicted"] + (" ?" if patient["out_of_distribution"] else ""),
            f"{100 * max(patient['probabilities'].values()):.1f} %" if "probabilities" in patient else "",
        )
        for patient in patients[:_SHOWN]
    ]
    if rows:
        show(Table(("patient", ">images", "predicted", ">probability"), rows, results.adapted.name))
    if len(patients) > _SHOWN:
        say(f"{counted(len(patients) - _SHOWN, 'more patient')}: see {results.folder / 'patients.csv'}.")
    strange = sum(row["out_of_distribution"] for row in images)
    if strange:
        say(f"? Out of distribution: {counted(strange, 'image')} unlike all that the model was adapted to.", "yellow")
        for unknown in sorted({row["unfamiliar"] for row in images if row["ood_score"] <= 1} - {""}):
            say(f"Among them images of another modality: {shown(unknown)}.", "yellow")
        say("Do not rely on these predictions (column unfamiliar in predictions.csv).", "yellow")
    for refusal in refused[:_SHOWN]:
        say(f"Not used: {refusal['file']}: {refusal['reason']}", "yellow")
    if len(refused) > _SHOWN:
        say(f"{counted(len(refused) - _SHOWN, 'more file')} not used: see {results.folder / 'refused.csv'}.")
    known = len({row["patient"] for row in images if row["learned_from"]})
    if known:
        say(f"The model was adapted to {counted(known, 'patient')} of these: it knows the answer.")
    say(f"{counted(len(images), 'image')} of {counted(len(patients), 'patient')}. JSON and CSV: {results.folder}")
    say(NOTHING_LEFT)


command = Command(
    predict,
    panel="Use at home",
    place=3,
    examples=(
        "wardround hospital predict ~/st-anna /data/new --adapted lungs --heatmap",
        "wardround hospital predict ~/st-anna scan1.dcm scan2.dcm --out /tmp/answers --json",
    ),
)
