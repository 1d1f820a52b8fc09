"""New files, or rows of a table -> what an adapted model predicts for each image and each patient.

The files go the way of the intake: the same reader, the same refusals, the images made as the cohort's were. A patient
is named by the keyed pseudonym of this hospital and a file by its path, which finds it on the hospital's own disk; no
PatientID and no UID is written. Everything is for the hospital alone: a prediction tells about a patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardround.errors import ConfigError
from wardround.files import cannot_write, private_folder, write_atomically
from wardround.task import Task
from wardround_client.cohort.store import UNKNOWN, normalised
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.dicom import instance_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, Recipe, recipe_in
from wardround_client.intake.source import DEFAULTS, Asked, Instance, Item, Rejection, Rules, opened
from wardround_client.intake.sources.dicom_folder import DicomFile, files_below
from wardround_client.intake.sources.image_folder import Picture
from wardround_client.intake.workers import outcomes
from wardround_client.isolated import image_by_image
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.familiarity import Familiarity
from wardround_client.personal.heatmap import heat_map, picture
from wardround_client.personal.nearest_cases import nearest

_WHITE = 65535
_LEAST_SIDE_PX = 8
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

Row = dict[str, Any]
"""What is predicted for one image, or one row of a table, as it is written: see `Predictor.rows`."""


@dataclass(frozen=True)
class NewFile(DicomFile):
    """A file to predict for. A picture is a patient of its own: nothing in it says whose it is."""

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As the intake reads it, but for images of so few pixels that nothing can be seen on them."""
        if self.path.suffix.lower() in _PICTURES:
            return Picture(self.path, self.name, self.name, 0, ()).read(recipe, pseudonyms)
        if self.unreadable:
            return super().read(recipe, pseudonyms)
        return instance_of(self.path, recipe, pseudonyms, self.rules, least_side_px=_LEAST_SIDE_PX)


def items_of(paths: Sequence[Path], task: Task, rules: Rules = DEFAULTS) -> list[Item]:
    """What is to be predicted for, each once: files, also those in folders and their sub-folders; or rows of tables.

    rules: the hospital's. A column PatientID of a table names its patients.

    Raises: ConfigError, DataError, for a table.
    """
    if task.kind == "table":
        return [row for path in paths for row in _rows_below(path, task)]
    found = (
        file.path for path in paths for file in (files_below(path) if path.is_dir() else [DicomFile(path.absolute())])
    )
    return [NewFile(path, rules=rules) for path in dict.fromkeys(found)]


def _rows_below(path: Path, task: Task) -> Iterator[Item]:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", allowed="CSV files with the columns of the model", do="name one")
    named = "PatientID" in CsvFile.open(path).columns
    settings = {"patient_column": "PatientID"} if named else {}
    return opened("table", Asked(str(path), columns=(), task=task), settings).items()


@dataclass(frozen=True)
class Predictor:
    """An adapted model, made ready to predict.

    heatmaps: the folder for a picture of each image; None: none is made. modalities: of the hospital's cohort; an image
    of another one is out of distribution, however it looks. Empty: nobody knows them.
    """

    adapted: AdaptedModel
    pseudonyms: Pseudonyms
    device: torch.device
    heatmaps: Path | None = None
    modalities: frozenset[str] = frozenset()
    familiarity: Familiarity = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "familiarity", Familiarity.of(self.adapted))

    @property
    def recipe(self) -> Recipe:
        """How inputs are made. Raises: DataError: by another version of wardround."""
        return recipe_in(self.adapted.recipe, self.adapted.federation.task)

    def predict(
        self, items: Sequence[Item], *, workers: int | None = None
    ) -> Iterator[tuple[Item, list[Row] | Rejection]]:
        """Each item with its predictions, or why it cannot be used, in the order given, as they come.

        workers: processes that read; None: one for each core; 0: none but this one.

        Raises: DataError: inputs of another version of wardround; StorageError: a picture cannot be written.
        """
        count = 0 if self.adapted.federation.task.kind == "table" else workers
        with closing(outcomes(items, self.recipe, self.pseudonyms, count)) as read:
            for item, outcome in read:
                yield item, outcome if isinstance(outcome, Rejection) else self.rows(item.name, outcome)

    def rows(self, name: str, instance: Instance) -> list[Row]:
        """The predictions for each image of an item: file, number (from 0), patient (pseudonym, hex), manufacturer,
        learned_from (whether the patient is in the support), predicted, probabilities (by class), ood_score (above 1:
        out of distribution, `Familiarity`), out_of_distribution, unfamiliar (in words why, or ""), nearest (support
        cases), heatmap (its file or "").
        """
        adapted, classes = self.adapted, self.adapted.federation.task.classes
        scale = _WHITE if instance.rows.dtype == np.uint16 else 1
        inputs = torch.from_numpy(instance.rows.astype(np.float32) / scale).to(self.device)
        with torch.no_grad():
            z = image_by_image(adapted.learner.loss.model.encode, inputs)
            scores = self.familiarity.scores(adapted.learner.points(z))
        other = bool(self.modalities) and bool(instance.modality) and instance.modality not in self.modalities
        unknown = f"the cohort has no {instance.modality}" if other else ""
        predicted = adapted.learner.probabilities(adapted.fitted, z).tolist()
        return [
            {
                "file": name,
                "number": number,
                "patient": instance.patient.hex(),
                "manufacturer": normalised(instance.manufacturer) or UNKNOWN,
                "modality": instance.modality,
                "learned_from": instance.patient in adapted.support,
                "predicted": adapted.learner.loss.labels.prediction(probabilities, classes),
                "probabilities": dict(zip(classes, probabilities, strict=True)),
                "ood_score": round(score, 4),
                "out_of_distribution": bool(unknown) or score > 1,
                "unfamiliar": unknown or ("unlike the images that it was adapted to" if score > 1 else ""),
                "nearest": [
                    {
                        "case": case.patient,
                        "patient": adapted.support[case.patient].hex(),
                        "class": classes[case.label],
                        "similarity": case.similarity,
                    }
                    for case in cases
                ],
                "heatmap": self._heatmap(f"{name}\0{number}", x, probabilities),
            }
            for number, (x, probabilities, score, cases) in enumerate(
                zip(inputs, predicted, scores, nearest(adapted, z), strict=True)
            )
        ]

    def _heatmap(self, name: str, x: Tensor, probabilities: Sequence[float]) -> str:
        """Draw it -> its file, relative to the folder of the predictions."""
        if self.heatmaps is None:
            return ""
        label = int(np.argmax(probabilities))
        heat = heat_map(self.adapted.learner, self.adapted.fitted, x, label)
        caption = f"{self.adapted.federation.task.classes[label]}: {100 * probabilities[label]:.0f} %"
        path = self.heatmaps / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.png"
        try:
            private_folder(self.heatmaps)
            write_atomically(path, picture(x, heat, caption))
        except OSError as error:
            raise cannot_write(path, error, do="give the same command again: it goes on") from None
        return f"{self.heatmaps.name}/{path.name}"
