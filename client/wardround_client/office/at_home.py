"""What was made for this hospital alone and lies in its home: predictions with their pictures, and whom to label next.

Who has withdrawn since is left out of what is shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround.errors import DataError
from wardround.files import read_bounded
from wardround_client.personal.prediction_folder import FOLDER, LINES, LIST, asked_in
from wardround_client.personal.suggestions import FOLDER as SUGGESTIONS

LARGEST_BYTES, LARGEST_PICTURE_BYTES = 1 << 28, 1 << 25
MOST = 200
"""Folders, or lists, the newest first."""
_PICTURES = ("heatmap", "mask")


@dataclass(frozen=True)
class Kept:
    """A folder of predictions by its predictions.json, or a list of suggestions. key: what stands for it in an address.

    when: it was written last, UTC. version: another one when it was written again.
    """

    path: Path
    key: str
    when: str
    version: tuple[int, int]


@dataclass(frozen=True)
class Predictions:
    """What stands in predictions.json. about: what was asked. withdrawn: images of patients that are left out."""

    about: Mapping[str, Any]
    complete: bool
    images: Sequence[Mapping[str, Any]]
    patients: Sequence[Mapping[str, Any]]
    refused: Sequence[Mapping[str, Any]]
    withdrawn: int


@dataclass(frozen=True)
class CutOff:
    """What was asked of predictions that are not complete."""

    paths: Sequence[Path]
    adapted: str
    heatmap: bool


def prediction_folders(home: Path) -> list[Kept]:
    """The newest first; also those that were cut off before there was a predictions.json."""
    folders = {file.parent for name in (LIST, LINES) for file in (home / FOLDER).glob(f"*/{name}")}
    return _kept({folder / LIST: [folder / LIST, folder / LINES] for folder in folders})


def suggestion_lists(home: Path) -> list[Kept]:
    """The newest first."""
    return _kept({file: [file] for file in (home / SUGGESTIONS).glob("*.csv")})


def cut_off(file: Path) -> CutOff | None:
    """What the call asked whose predictions are not complete; None of others, or where it cannot be read."""
    try:
        asked = asked_in(file.parent)
        if asked is None:
            return None
        return CutOff([Path(str(path)) for path in asked["paths"]], str(asked["adapted"]), bool(asked["heatmap"]))
    except (OSError, KeyError, TypeError):
        return None


def predictions(file: Path, withdrawn: Collection[bytes]) -> Predictions:
    """Read predictions.json. Raises: DataError."""
    try:
        found = json.loads(read_bounded(file, LARGEST_BYTES))
        gone = {pseudonym.hex() for pseudonym in withdrawn}
        images = [dict(row) for row in found["images"]]
        there = [_image(row) for row in images if row["patient"] not in gone]
        patients = [_patient(row) for row in found["patients"] if row["patient"] not in gone]
        refused = [{name: str(row[name]) for name in ("file", "reason", "detail")} for row in found["refused"]]
        about = {name: str(found[name]) for name in ("adapted", "federation", "run", "round", "algorithm")}
        return Predictions(about, bool(found["complete"]), there, patients, refused, len(images) - len(there))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__})", do="predict again") from None


def picture(file: Path, row: Mapping[str, Any]) -> bytes | None:
    """The picture beside a prediction, a PNG in the same folder; None where there is none. Raises: DataError."""
    name = next((str(row[kind]) for kind in _PICTURES if row.get(kind)), "")
    if not name:
        return None
    path = (file.parent / name).resolve()
    try:
        if path.suffix != ".png" or not path.is_relative_to(file.parent.resolve()):
            return None
        return read_bounded(path, LARGEST_PICTURE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", do="predict again") from None


def suggestions(file: Path, withdrawn: Collection[bytes]) -> list[dict[str, str]]:
    """The lines of a list, by column, without those of who has withdrawn. Raises: DataError."""
    try:
        text = read_bounded(file, LARGEST_BYTES).decode("utf-8-sig")
        gone = {pseudonym.hex() for pseudonym in withdrawn}
        rows = [
            {str(name): str(value or "") for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
        return [row for row in rows if not gone & set(row.values())]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__})", do="suggest again") from None


def key_of(file: Path) -> str:
    """What stands for a file in an address."""
    return hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _kept(files: Mapping[Path, Sequence[Path]]) -> list[Kept]:
    """files: what is kept, and the files that say when."""
    found = []
    for file, of in files.items():
        written = []
        for each in of:
            with suppress(OSError):
                written.append(each.stat())
        if written:
            when = max(each.st_mtime for each in written)
            version = max(each.st_mtime_ns for each in written), sum(each.st_size for each in written)
            shown = f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M}"
            found.append((when, Kept(file, key_of(file), shown, version)))
    return [kept for _, kept in sorted(found, key=lambda each: each[0], reverse=True)[:MOST]]


def _image(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a page shows of every kind of answer, whatever else stands in a row."""
    texts = {name: str(row.get(name) or "") for name in ("file", "patient", "predicted", "unfamiliar", *_PICTURES)}
    flags = {name: bool(row.get(name)) for name in ("out_of_distribution", "learned_from")}
    return {**texts, **flags, "number": int(row.get("number") or 0), "probability": _likeliest(row)}


def _patient(row: Mapping[str, Any]) -> Mapping[str, Any]:
    texts = {name: str(row.get(name) or "") for name in ("patient", "predicted")}
    counts = {name: int(row.get(name) or 0) for name in ("images", "out_of_distribution")}
    return {**texts, **counts, "probability": _likeliest(row)}


def _likeliest(row: Mapping[str, Any]) -> str:
    """Of the likeliest class; "" where an answer is none of classes."""
    probabilities = row.get("probabilities")
    return f"{100 * max(map(float, probabilities.values())):.1f} %" if isinstance(probabilities, dict) else ""
