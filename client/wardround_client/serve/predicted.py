"""What one model predicts for one study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from wardround_client.intake.gather import Together
from wardround_client.intake.source import Item, Rejection, Rules
from wardround_client.intake.workers import Readers
from wardround_client.personal.kinds import at_home
from wardround_client.personal.new_file import NewFile
from wardround_client.personal.original import Placed
from wardround_client.personal.page import Row
from wardround_client.personal.predictions import items_of
from wardround_client.serve.models import Served
from wardround_client.serve.study import Study, frames_of

MOST_PICTURES = 32
"""Heat maps of one study and model; the rest goes without."""

WITHDRAWN = Rejection("the patient has withdrawn")
NO_EXAMPLE = Rejection("it has no image that the model takes")
OTHER_MODALITY = Rejection("the model was adapted to no images of its modality")


@dataclass(frozen=True)
class Answer:
    """About one image, or about a volume or a study. row: as `Predictor.rows`. sources: headers of its images. frame:
    from 1, of the one image, where it has several; 0 otherwise.
    """

    row: Row
    sources: tuple[Dataset, ...]
    frame: int = 0


@dataclass(frozen=True)
class Predicted:
    """For one study. pooled: what the answers come to. patient: both pseudonyms (`withdrew`). folder: of masks and
    pictures.
    """

    served: Served
    study: Study
    answers: tuple[Answer, ...]
    pooled: Row
    patient: bytes
    folder: Path
    refused: Counter[str]

    @property
    def sources(self) -> list[Dataset]:
        """Headers of all images that were looked at, each once."""
        return list({id(each): each for answer in self.answers for each in answer.sources}.values())

    @property
    def strange(self) -> bool:
        """Whether one of its images is unlike all that the model was adapted to."""
        return any(answer.row["out_of_distribution"] for answer in self.answers)

    def numbers(self, row: Row) -> dict[str, float]:
        """What was predicted, as numbers by what they say."""
        flat = at_home(self.served.adapted.learner.loss.labels).flat(row)
        return dict(_numbers(flat))


def _numbers(flat: Any) -> Iterator[tuple[str, float]]:
    for name, value in flat.items():
        with suppress(ValueError):  # the nearest cases of a model that compares are text
            yield name, float(value)


def predicted(
    served: Served,
    study: Study,
    rules: Rules,
    readers: Readers,
    folder: Path,
    withdrawn: Collection[bytes],
    *,
    pictures: bool,
) -> Predicted | Rejection:
    """Predict.

    rules: of the hospital. readers: with the model's recipe. folder: where masks and pictures go. withdrawn:
    pseudonyms of patients who have. pictures: heat maps, of the first images.
    """
    task = served.adapted.federation.task
    plain = replace(served.predictor, folder=folder)
    drawing = replace(plain, heatmap=True) if pictures and task.kind == "image" else plain
    answers, refused = list[Answer](), Counter(study.refused)
    who, pseudonyms = study.identity, served.predictor.pseudonyms
    patient = pseudonyms.patient(who.patient_id, who.issuer) + pseudonyms.patient(who.patient_id)
    if withdrew(patient, withdrawn):
        return WITHDRAWN
    items = [placed(item) for item in items_of([file.path for file in study.files], task, rules, readers)]
    for item, outcome in readers.outcomes(items):
        if isinstance(outcome, Rejection):
            refused[outcome.reason] += 1
            continue
        modalities = served.predictor.modalities
        if outcome.modality and modalities and outcome.modality not in modalities:
            refused[OTHER_MODALITY.reason] += 1
            continue
        sources = tuple(study.header(path) for path in paths_of(item))
        predictor = drawing if len(answers) < MOST_PICTURES else plain
        for number, row in enumerate(predictor.rows(item.name, outcome)):
            frame = outcome.originals[number].number + 1 if isinstance(outcome, Placed) else 0
            answers.append(Answer(row, sources, frame if frames_of(sources[0]) > 1 else 0))
    if not answers:
        return Rejection(refused.most_common(1)[0][0]) if refused else NO_EXAMPLE
    kind = at_home(served.adapted.learner.loss.labels)
    pooled = kind.pooled([answer.row for answer in answers], served.adapted)
    return Predicted(served, study, tuple(answers), pooled, patient, folder, refused)


def withdrew(patient: bytes, withdrawn: Collection[bytes]) -> bool:
    """Whether a patient is among those who have. patient: pseudonyms with the issuer of the PatientID, and without."""
    return patient[:32] in withdrawn or patient[32:] in withdrawn


def placed(item: Item) -> Item:
    """An item whose images know which frames they were."""
    return replace(item, places=True) if isinstance(item, NewFile) else item


def paths_of(item: Item) -> tuple[Path, ...]:
    """The files that it is made of."""
    if isinstance(item, Together):
        return tuple(file.path for file in item.files)
    assert isinstance(item, NewFile)
    return (item.path,)
