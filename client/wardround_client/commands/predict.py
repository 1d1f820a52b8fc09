"""`wardround hospital predict`: what an adapted model says of new DICOM files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import MofNCompleteColumn

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, DataError, StorageError
from wardround.terminal import Table, emit, progress_bar, say, show
from wardround_client.commands._at_home import NOTHING_LEFT, chosen, counted, opened
from wardround_client.commands._common import NewHome

if TYPE_CHECKING:
    from wardround_client.personal.predictions import Predictions

_SHOWN = 20  # patients, and refused files, on the screen


def predict(
    home: NewHome,
    paths: Annotated[
        list[Path], typer.Argument(help="DICOM files, or folders of them with their sub-folders.", show_default=False)
    ],
    adapted: Annotated[
        str, typer.Option(help="Name of an adapted model; not needed where there is one.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder; by default HOME/predictions/NAME-DATE-TIME.", show_default=False),
    ] = None,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="A picture for each image: where its prediction comes from.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read; 0: one for each core.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Predict for new DICOM files, image by image and patient by patient, as JSON and CSV.

    The files are read and made into images exactly as the cohort's were; those that cannot be used are listed with
    their reasons, in refused.csv too. Exit code 3 when none could be used. A file is named by its path and a patient
    by this hospital's pseudonym: the folder is for this hospital alone, and nothing leaves.

    The heat map is Grad-CAM for convolutions, and occlusion for a frozen encoder. For methods that compare
    (prototypical, matching, relation, siamese) the nearest support cases stand beside each prediction.

    This is no medical device: a prediction is no diagnosis.
    """
    from wardround_client.intake.pseudonyms import Pseudonyms
    from wardround_client.personal import predictions as predicting

    hospital = opened(home)
    model = chosen(hospital, adapted)
    if model.federation.task.kind == "table":
        raise ConfigError(f"{model.name!r} predicts from a table", allowed="models of images", do="name another one")
    folder = _made(out or hospital.home / predicting.FOLDER / f"{model.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    with progress_bar(MofNCompleteColumn(), quiet=as_json) as progress:
        bar = progress.add_task("predicting", total=None)
        found = predicting.predict(
            model,
            paths,
            pseudonyms=Pseudonyms(hospital.patients.key),
            device=hospital.device,
            workers=workers or None,
            heatmaps=folder / "heatmaps" if heatmap else None,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    about = {
        "adapted": model.name,
        "federation": model.federation.name,
        "federation_sha256": model.release.federation,
        "run": model.release.run,
        "round": model.release.round,
        "algorithm": model.federation.algorithm.name,
    }
    predicting.write(found, folder, **about)
    if as_json:
        emit(
            event="predict",
            folder=str(folder),
            images=len(found.images),
            patients=len(found.patients()),
            refused=len(found.refused),
            note=NOTHING_LEFT,
            **about,
        )
    else:
        _show(found, folder)
    if not found.images:
        raise DataError(
            f"none of {len(found.refused)} files could be used", do=f"see {folder / 'refused.csv'} for the reasons"
        )


def _made(folder: Path) -> Path:
    """A new or empty folder for the owner alone. Raises: ConfigError, StorageError."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already", do="name a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror})", do="name another folder with --out"
        ) from None
    return folder.absolute()


def _show(found: Predictions, folder: Path) -> None:
    patients = found.patients()
    rows = [
        (who.hex()[:8], str(count), found.best(mean), f"{100 * max(mean):.1f} %")
        for who, (count, mean) in list(patients.items())[:_SHOWN]
    ]
    if rows:
        show(Table(("patient", ">images", "predicted", ">probability"), rows, found.adapted.name))
    if len(patients) > _SHOWN:
        say(f"{len(patients) - _SHOWN} more patients are in {folder / 'patients.csv'}.")
    for file, rejection in found.refused[:_SHOWN]:
        say(f"Not used: {file}: {rejection.reason}", "yellow")
    if len(found.refused) > _SHOWN:
        say(f"{len(found.refused) - _SHOWN} more files that could not be used are in {folder / 'refused.csv'}.")
    known = len({image.patient for image in found.images if image.learned_from})
    if known:
        say(f"Among those it was learned from, so that it knows the answer: {counted(known, 'patient')} of these.")
    say(f"{counted(len(found.images), 'image')} of {counted(len(patients), 'patient')}. JSON and CSV: {folder}")
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
