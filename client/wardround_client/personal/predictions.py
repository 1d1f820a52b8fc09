"""New DICOM files -> what an adapted model says of each image and of each patient, as JSON and CSV.

The files go the way of the intake: the same reader, the same refusals, the images made as the cohort's were. A patient
is named by the keyed pseudonym of this hospital and a file by its path, which finds it on the hospital's own disk; no
PatientID and no UID is written. Everything is for the hospital alone: a prediction tells about a patient.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardround.errors import StorageError
from wardround_client.cohort.store import UNKNOWN, normalised
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection
from wardround_client.intake.sources.dicom_folder import DicomFile, files_below
from wardround_client.intake.spreadsheet import harmless
from wardround_client.intake.workers import outcomes
from wardround_client.isolated import image_by_image
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.heatmap import heat_map, picture
from wardround_client.personal.nearest_cases import Case, nearest

FOLDER = "predictions"
"""In a hospital's home: what was not sent elsewhere with --out."""
LIST = "predictions.json"
_WHITE = 65535


@dataclass(frozen=True)
class Predicted:
    """One image. number: which of the file's images, from 0. patient: pseudonym. learned_from: it is in the support.

    probabilities: one a class. cases: the nearest in the support. heatmap: its file, "" for none.
    """

    file: Path
    number: int
    patient: bytes
    manufacturer: str
    learned_from: bool
    probabilities: tuple[float, ...]
    cases: tuple[Case, ...] = ()
    heatmap: str = ""


@dataclass
class Predictions:
    """All of a call. refused: files that cannot be used, and why."""

    adapted: AdaptedModel
    images: list[Predicted] = field(default_factory=list)
    refused: list[tuple[Path, Rejection]] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the probabilities."""
        return self.adapted.federation.task.classes

    def patients(self) -> dict[bytes, tuple[int, tuple[float, ...]]]:
        """Pseudonym -> number of images, and the mean of their probabilities, as `evaluate` pools them."""
        of_patient: dict[bytes, list[tuple[float, ...]]] = {}
        for image in self.images:
            of_patient.setdefault(image.patient, []).append(image.probabilities)
        return {who: (len(all_of), tuple(np.mean(all_of, axis=0).tolist())) for who, all_of in of_patient.items()}

    def best(self, probabilities: Sequence[float]) -> str:
        """What is predicted, in words."""
        return self.adapted.learner.loss.labels.prediction(probabilities, self.classes)


def files_of(paths: Sequence[Path]) -> Iterator[DicomFile]:
    """Files as they are, folders with all their sub-folders, each file once."""
    seen = set()
    for path in paths:
        for file in files_below(path) if path.is_dir() else [DicomFile(path.absolute())]:
            if file.path not in seen:
                seen.add(file.path)
                yield file


def predict(
    adapted: AdaptedModel,
    paths: Sequence[Path],
    *,
    pseudonyms: Pseudonyms,
    device: torch.device,
    workers: int | None = None,
    heatmaps: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Predict for every image of these files.

    Args:
        adapted: the model.
        paths: files and folders.
        pseudonyms: the hospital's.
        device: the model's.
        workers: processes that read; None: one for each core; 0: none but this one.
        heatmaps: a folder for a picture of each image; None: none is made.
        progress: called with (files done, files found).

    Raises:
        DataError: images of another version of wardround.
        StorageError: a picture cannot be written.
    """
    result, todo = Predictions(adapted), list(files_of(paths))
    support, recipe = set(adapted.support), ImageRecipe.of(adapted.recipe)
    for done, (item, outcome) in enumerate(outcomes(todo, recipe, pseudonyms, workers), start=1):
        file = item.path
        if isinstance(outcome, Rejection):
            result.refused.append((file, outcome))
        else:
            for x, image in _images(adapted, file, outcome, device, learned_from=outcome.patient in support):
                result.images.append(image)
                if heatmaps is not None:
                    path = heatmaps / f"{len(result.images) - 1:06d}.png"
                    _draw(path, adapted, x, image.probabilities)
                    result.images[-1] = replace(image, heatmap=f"{heatmaps.name}/{path.name}")
        progress(done, len(todo))
    return result


def write(predictions: Predictions, out: Path, **about: Any) -> None:
    """Write predictions.json, predictions.csv (a line an image), patients.csv and refused.csv into a folder.

    about: what else predictions.json says, by name. Raises: StorageError.
    """
    classes, patients = predictions.classes, predictions.patients()
    images = [_plain(predictions, image) for image in predictions.images]
    pooled = [
        {
            "patient": who.hex(),
            "images": count,
            "predicted": predictions.best(mean),
            "probabilities": dict(zip(classes, mean, strict=True)),
        }
        for who, (count, mean) in patients.items()
    ]
    refused = [
        {"file": str(file), "reason": rejection.reason, "detail": rejection.detail}
        for file, rejection in predictions.refused
    ]
    said = {**about, "classes": list(classes), "images": images, "patients": pooled, "refused": refused}
    with _storing(out):
        _text(out / LIST, json.dumps(said, indent=1) + "\n")
        _table(out / "predictions.csv", [_flat(each) for each in images], _IMAGE_COLUMNS, classes)
        _table(out / "patients.csv", [_flat(each) for each in pooled], ("patient", "images", "predicted"), classes)
        _table(out / "refused.csv", refused, ("file", "reason", "detail"), ())


_IMAGE_COLUMNS = ("file", "number", "patient", "manufacturer", "learned_from", "predicted", "nearest", "heatmap")


def _images(
    adapted: AdaptedModel, file: Path, instance: Instance, device: torch.device, *, learned_from: bool
) -> Iterator[tuple[Tensor, Predicted]]:
    """Each image of a file, float32 [channels, S, S] in [0, 1], and what is said of it."""
    images = torch.from_numpy(instance.rows.astype(np.float32) / _WHITE).to(device)
    with torch.no_grad():
        z = image_by_image(adapted.learner.loss.model.encode, images)
    probabilities = adapted.learner.probabilities(adapted.fitted, z).tolist()
    for number, (x, row, cases) in enumerate(zip(images, probabilities, nearest(adapted, z), strict=True)):
        yield (
            x,
            Predicted(
                file=file,
                number=number,
                patient=instance.patient,
                manufacturer=normalised(instance.manufacturer) or UNKNOWN,
                learned_from=learned_from,
                probabilities=tuple(row),
                cases=tuple(cases),
            ),
        )


def _draw(path: Path, adapted: AdaptedModel, x: Tensor, probabilities: Sequence[float]) -> None:
    heat = heat_map(adapted.learner, adapted.fitted, x, int(np.argmax(probabilities)))
    with _storing(path.parent):
        path.parent.mkdir(exist_ok=True)
        _bytes(path, picture(x, heat))


def _plain(predictions: Predictions, image: Predicted) -> dict[str, Any]:
    support, classes = predictions.adapted.support, predictions.classes
    return {
        "file": str(image.file),
        "number": image.number,
        "patient": image.patient.hex(),
        "manufacturer": image.manufacturer,
        "learned_from": image.learned_from,
        "predicted": predictions.best(image.probabilities),
        "probabilities": dict(zip(classes, image.probabilities, strict=True)),
        "nearest": [
            {
                "case": case.patient,
                "patient": support[case.patient].hex(),
                "class": classes[case.label],
                "similarity": case.similarity,
            }
            for case in image.cases
        ],
        "heatmap": image.heatmap,
    }


def _flat(said: Mapping[str, Any]) -> dict[str, Any]:
    """As a line of a table: a column for each probability, the nearest cases as text."""
    flat = {f"probability of {name}": f"{value:.6f}" for name, value in said["probabilities"].items()}
    cases = said.get("nearest", ())
    near = "; ".join(f"case {case['case']} {case['class']} {case['similarity']:.4g}" for case in cases)
    return {**said, **flat, "nearest": near}


def _table(path: Path, lines: Sequence[Mapping[str, Any]], columns: Sequence[str], classes: Sequence[str]) -> None:
    names = [*columns, *(f"probability of {name}" for name in classes)]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(harmless, names))
    writer.writerows([harmless(line[name]) for name in names] for line in lines)
    _text(path, file.getvalue())


def _text(path: Path, text: str) -> None:
    _bytes(path, text.encode("utf-8", "backslashreplace"))


def _bytes(path: Path, blob: bytes) -> None:
    """For the owner alone: a prediction tells about a patient."""
    path.touch(mode=0o600)
    path.write_bytes(blob)


@contextmanager
def _storing(folder: Path, do: str = "name another folder with --out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror})", do=do) from None
