"""`wardround hospital export`: an adapted model as one ONNX file, with its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import TextColumn

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, DataError, WardroundError
from wardround.terminal import Table, emit, progress_bar, say, show
from wardround_client.commands._at_home import opened, scores
from wardround_client.commands._common import HERE, HomeArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wardround_client.hospital import Hospital
    from wardround_client.personal.judged_file import Judgement

FOLDER, WHOLE = "exported", "model.onnx"


def export(
    home: HomeArgument = HERE,
    adapted: Annotated[
        str, typer.Option(help="Name of an adapted model; not needed where there is one.", show_default=False)
    ] = "",
    prune: Annotated[
        float,
        typer.Option(
            help="Also a file without this share of each weight, the smallest numbers.",
            min=0,
            max=0.99,
            metavar="SHARE",
        ),
    ] = 0.0,
    quantise: Annotated[bool, typer.Option("--quantise", help="Also a file with weights of one byte.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="A folder that is not there yet.", show_default=f"HOME/{FOLDER}/NAME")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an adapted model as one ONNX file: preprocessing, encoder and head, for programs that have no torch.

    The file is run on this hospital's labelled patients, those whom the model was not adapted to, and is not written
    where it differs from torch. --prune and --quantise add smaller files, each checked on the same patients, and not
    written where the first metric falls below the whole file's interval. Beside them lies a model card, in Markdown and
    JSON, with counts of patients that are rounded.

    No image, no case and no name is in the files. Their weights were learned from patients without noise, so guard them
    as you guard images. A method that compares with its cases cannot be exported.
    """
    from wardround.onnx_files import installed

    installed(Path(WHOLE))
    from wardround_client.office.models import chosen
    from wardround_client.personal.adapted_file import onnx_of
    from wardround_client.personal.export_card import card, markdown
    from wardround_client.personal.judged_file import DIFFERS, Patients, judgements
    from wardround_client.personal.labelled import Labelled
    from wardround_client.personal.smaller import pruned, quantised
    from wardround_client.personal.whole_model import written_whole

    hospital = opened(home)
    found = chosen(hospital, adapted)
    target = to or hospital.home / FOLDER / found.name
    if target.exists():
        raise ConfigError(f"{target} is there already", do="remove it, or choose another folder with --to")
    files = {WHOLE: written_whole(found, onnx_of(hospital.home, found))}
    if prune:
        files["pruned.onnx"] = pruned(files[WHOLE], prune)
    if quantise:
        files["int8.onnx"] = quantised(files[WHOLE])
    if prune and quantise:
        files["pruned-int8.onnx"] = quantised(files["pruned.onnx"])
    cohort, agreed, network = hospital.patients.cohort(), found.federation, found.learner.loss.model
    judging = agreed.task.model_copy(update={"augment": ()})
    with hospital.patients.encoding(cohort, agreed, network, hospital.device) as by:
        everybody, _ = Labelled.of(cohort, judging, network, hospital.device, by=by)
    patients = Patients.of(found, cohort, everybody)
    if not patients.who.pseudonyms:
        raise DataError(
            "nobody is left to check the file on: the model was adapted to every labelled patient",
            do="ingest more labelled patients, or adapt again to half of them",
        )
    with progress_bar(TextColumn("{task.completed} of {task.total} inputs"), quiet=as_json) as progress:
        bar = progress.add_task("checking", total=len(patients.who.examples.y) // agreed.task.cells)
        judged = judgements(found, patients, files, lambda: progress.advance(bar))
    if not judged[WHOLE].difference <= DIFFERS:
        raise DataError(
            f"the file differs from torch by {judged[WHOLE].difference:.2g} in a probability, and was not written",
            allowed=f"at most {DIFFERS:g}",
            do="report it, with `wardround --version`: nothing of your patients is needed for that",
        )
    dropped = [name for name in files if name != WHOLE and _worse(judged[name], judged[WHOLE])]
    for name in dropped:
        del files[name]
    kept = {name: each for name, each in judged.items() if name not in dropped}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    said = card(found, hospital.config, everybody, kept, digests, _spent(hospital))
    _write(target, files | {"card.json": _json(said), "card.md": markdown(said).encode()})
    if as_json:
        emit(event="export", folder=str(target), not_written=dropped, **said)
        return
    show(_table(judged))
    say("")
    show(
        scores({name: each.judged for name, each in judged.items()}, f"{found.name} at {hospital.config.hospital.name}")
    )
    for name in dropped:
        say(f"{name} was not written: its first metric falls below the interval of the whole file.", "yellow")
    say(f"{target}: {', '.join([*files, 'card.md', 'card.json'])}.")
    say("The weights were learned from patients, without noise: guard the files as you guard images.")


def _worse(smaller: Judgement, whole: Judgement) -> bool:
    (_, ours), (_, theirs) = smaller.main, whole.main
    return ours is None or theirs is None or ours["value"] < theirs["low"]


def _table(judged: Mapping[str, Judgement]) -> Table:
    rows = [
        (
            name,
            f"{each.bytes:,}" if each.bytes else "-",
            f"{each.compressed:,}" if each.bytes else "-",
            f"{each.ms:.2f}",
            f"{each.difference:.2g}",
        )
        for name, each in judged.items()
    ]
    columns = ("", ">bytes", ">compressed", ">ms an input", ">largest difference")
    return Table(columns, rows, caption="one thread, one input at a time, all in turn; difference in a probability")


def _spent(hospital: Hospital) -> float | None:
    """Epsilon of the hospital's own ledger; None where it cannot be read."""
    from contextlib import closing

    from wardround_client.privacy.ledger import Ledger

    try:
        with closing(Ledger.of(hospital.home)) as ledger:
            return ledger.spent(hospital.config.delta)
    except WardroundError:
        return None


def _json(said: object) -> bytes:
    return f"{json.dumps(said, indent=1)}\n".encode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raises: StorageError."""
    from wardround.files import cannot_write, private_folder, write_atomically

    try:
        private_folder(folder)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise cannot_write(folder, error) from None


command = Command(
    export,
    panel="Use at home",
    place=5,
    examples=(
        "wardround hospital export ~/st-anna",
        "wardround hospital export ~/st-anna --adapted lungs --quantise --prune 0.5 --to lungs-onnx",
    ),
)
