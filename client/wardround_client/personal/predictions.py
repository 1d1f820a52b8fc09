"""New files, or rows of a table -> what an adapted model predicts for each image and each patient.

The files go the way of the intake: the same reader, the same refusals, the images made as the cohort's were. A patient
is named by the keyed pseudonym of this hospital and a file by its path, which finds it on the hospital's own disk; no
PatientID and no UID is written. Everything is for the hospital alone: a prediction tells about a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from wardround.errors import ConfigError, WardroundError
from wardround.task import Task
from wardround_client.cohort.store import UNKNOWN, normalised
from wardround_client.hospital import Hospital
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.gather import Examples, gathered
from wardround_client.intake.labels_csv import LabelsCsv
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, Recipe, recipe_in
from wardround_client.intake.source import DEFAULTS, Asked, Instance, Item, Rejection, Rules, opened
from wardround_client.intake.sources.dicom_folder import DicomFile, files_below
from wardround_client.intake.workers import Readers, outcomes
from wardround_client.isolated import image_by_image
from wardround_client.personal.adapted_model import AdaptedModel, over_cells
from wardround_client.personal.familiarity import Familiarity
from wardround_client.personal.kinds import at_home
from wardround_client.personal.new_file import PICTURES, NewFile
from wardround_client.personal.page import Page, Row

_WHITE = 65535


def modalities_of(hospital: Hospital) -> frozenset[str]:
    """Of the cohort; none where it cannot be opened any more: a model needs it no longer."""
    with suppress(WardroundError):
        return frozenset(hospital.patients.cohort().modalities) - {""}
    return frozenset()


def items_of(paths: Sequence[Path], task: Task, rules: Rules = DEFAULTS, readers: Readers | None = None) -> list[Item]:
    """What is to be predicted for, each once: files, also those in folders and their sub-folders; the series and the
    studies that they make, where a task is about volumes or several inputs; or rows of tables.

    rules: the hospital's. A column PatientID of a table names its patients. readers: that look into files; None: of its
    own.

    Raises: ConfigError, DataError, for a table.
    """
    if task.kind == "table":
        return [row for path in paths for row in _rows_below(path, task)]
    if task.inputs:
        return _inputs_below(paths, task, rules, readers)
    files = _files_below(paths, rules)
    if task.kind == "volume":
        alone = [file for file in files if file.path.name.lower().endswith(PICTURES)]
        return [
            *(NewFile(file.path, rules=rules) for file in alone),
            *gathered([f for f in files if f not in alone], task, readers),
        ]
    return [NewFile(file.path, file.unreadable, rules=rules, places=task.dense) for file in files]


def _files_below(paths: Sequence[Path], rules: Rules) -> list[DicomFile]:
    found = (file for path in paths for file in (files_below(path) if path.is_dir() else [DicomFile(path.absolute())]))
    return list({file.path: replace(file, rules=rules) for file in found}.values())


def _inputs_below(paths: Sequence[Path], task: Task, rules: Rules, readers: Readers | None) -> list[Item]:
    """Of CSV files with a column for each input's file their lines; of folders of DICOM the studies, of which a CSV
    with a key, and no such column, holds the table's columns.
    """
    items: list[Item] = []
    csv, folders = None, []
    images = [each.name for each in task.inputs if each.kind != "table"]
    for path in paths:
        if path.suffix.lower() != ".csv":
            folders.append(path)
        elif set(images) <= set(CsvFile.open(path).columns):
            items += opened("image-folder", Asked(str(path.parent), path, (), task, rules=rules), {}).items()
        elif csv is None:
            csv = LabelsCsv.open(path, ())
        else:
            raise ConfigError(f"{path} and {csv.file.path} both hold columns of studies", do="name one")
    if csv is not None and not folders:
        raise ConfigError(
            f"{csv.file.path} names no files",
            allowed=f"a CSV with the columns {', '.join(images)}",
            do="name the folder",
        )
    examples = Examples(task, csv)
    return [*items, *(examples.of_files(_files_below(folders, rules), readers) if folders else ())]


def _rows_below(path: Path, task: Task) -> Iterator[Item]:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", allowed="CSV files with the columns of the model", do="name one")
    named = "PatientID" in CsvFile.open(path).columns
    settings = {"patient_column": "PatientID"} if named else {}
    return opened("table", Asked(str(path), columns=(), task=task), settings).items()


@dataclass(frozen=True)
class Predictor:
    """An adapted model, made ready to predict.

    folder: of the predictions, where masks and pictures go. heatmap: whether a picture of each image is made.
    modalities: of the hospital's cohort; an image of another one is out of distribution, however it looks. Empty:
    nobody knows them.
    """

    adapted: AdaptedModel
    pseudonyms: Pseudonyms
    device: torch.device
    folder: Path = Path()
    heatmap: bool = False
    modalities: frozenset[str] = frozenset()
    familiarity: Familiarity = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "familiarity", Familiarity.of(self.adapted))

    @property
    def recipe(self) -> Recipe:
        """How inputs are made; nothing is there yet that says where findings are. Raises: DataError: by another version
        of wardround.
        """
        recipe = recipe_in(self.adapted.recipe, self.adapted.federation.task)
        return replace(recipe, marks=(), places=False) if isinstance(recipe, ImageRecipe) else recipe

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
        learned_from (whether the patient is in the support), ood_score (above 1: out of distribution, `Familiarity`; of
        an image of cells, by their mean), out_of_distribution, unfamiliar (in words why, or ""), and what its kind
        answers (`kinds`).
        """
        adapted, learner = self.adapted, self.adapted.learner
        scale = _WHITE if instance.rows.dtype == np.uint16 else 1
        inputs = torch.from_numpy(instance.rows.astype(np.float32) / scale).to(self.device)
        with torch.no_grad():
            z = image_by_image(learner.loss.model.encode, inputs)
            scores = self.familiarity.scores(over_cells(learner.points(z), adapted.federation.task.cells))
        other = bool(self.modalities) and bool(instance.modality) and instance.modality not in self.modalities
        unknown = f"the cohort has no {instance.modality}" if other else ""
        page = Page(adapted, name, instance, inputs, z, self.folder, self.heatmap)
        return [
            {
                "file": name,
                "number": number,
                "patient": instance.patient.hex(),
                "manufacturer": normalised(instance.manufacturer) or UNKNOWN,
                "modality": instance.modality,
                "learned_from": instance.patient in adapted.support,
                "ood_score": round(score, 4),
                "out_of_distribution": bool(unknown) or score > 1,
                "unfamiliar": unknown or ("unlike the images that it was adapted to" if score > 1 else ""),
                **answer,
            }
            for number, (score, answer) in enumerate(
                zip(scores, at_home(learner.loss.labels).answers(page), strict=True)
            )
        ]
