"""The synthetic task can be learned, and not from raw pixels: at a hospital that nobody trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.intake import ingest_dicom
from torch import Tensor
from torch.nn.functional import cross_entropy

from wardround.config import Federation, ModelChoice
from wardround.models import build_model
from wardround.task import Task
from wardround_client.cohort.store import CohortStore
from wardround_simulation.phantoms import DEFAULT_TASK, TASKS, make_profiles, write_hospital

CLASSES = TASKS[DEFAULT_TASK]
HOSPITALS, PATIENTS = 5, (44, 50)


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 64, 64] in [0, 1] and labels [n] of an ingested cohort."""
    store = CohortStore.open(folder, withdrawn=())
    labels = [CLASSES.index(str(label)) for label in store.labels(DEFAULT_TASK)]
    return torch.from_numpy(store.inputs[:].astype("float32") / 65535), torch.tensor(labels)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tensor, Tensor]]:
    folder = tmp_path_factory.mktemp("hospitals")
    made = []
    for profile in make_profiles(HOSPITALS, patients=PATIENTS, seed=1):
        labels = write_hospital(profile, folder / profile.name / "in")
        out = folder / profile.name / "out"
        ingest_dicom(labels.parent, out, key=bytes(32), size=64)
        made.append(read(out))
    return made


def balanced_accuracy(predicted: Tensor, y: Tensor) -> float:
    return float(torch.stack([(predicted[y == c] == c).double().mean() for c in range(len(CLASSES))]).mean())


def nearest_centroid(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    means = torch.stack([x[y == c].mean(0) for c in range(len(CLASSES))])
    return torch.cdist(new, means).argmin(1)


def linear_head(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Predictions of a multinomial logistic regression with balanced classes."""
    shift, scale = x.mean(0), x.std(0) + 1e-6
    x, new = (x - shift) / scale, (new - shift) / scale
    head = torch.nn.Linear(x.shape[1], len(CLASSES))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    weight = len(y) / torch.bincount(y, minlength=len(CLASSES)) / len(CLASSES)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(head(x), y, weight=weight) + 3e-3 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        predicted: Tensor = head(new).argmax(1)
    return predicted


def test_a_trained_head_beats_nearest_centroid_on_pixels(cohorts: list[tuple[Tensor, Tensor]]) -> None:
    task = Task(label_column=DEFAULT_TASK, classes=CLASSES, image_size_px=64)
    model = build_model(Federation(name="test", task=task, model=ModelChoice(features=64)))
    encoded = [model.encode(x) for x, _ in cohorts]
    pixels, features = [], []
    for held_out in (0, 4):  # both have CT, MR and CR
        rest = [i for i in range(HOSPITALS) if i != held_out]
        y, new_y = torch.cat([cohorts[i][1] for i in rest]), cohorts[held_out][1]
        flat = nearest_centroid(torch.cat([cohorts[i][0].flatten(1) for i in rest]), y, cohorts[held_out][0].flatten(1))
        head = linear_head(torch.cat([encoded[i] for i in rest]), y, encoded[held_out])
        pixels.append(balanced_accuracy(flat, new_y))
        features.append(balanced_accuracy(head, new_y))
    assert max(pixels) < 0.45
    assert min(features) > 0.5
    assert min(features) < 0.95  # not trivial either
    assert sum(features) - sum(pixels) > 2 * 0.15
