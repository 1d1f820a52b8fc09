"""The nearest support cases: by the method's own comparison, the best image of a patient, in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.models import build_model
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.nearest_cases import nearest
from wardround_client.personal.shared_model import SharedModel

COLUMNS = tuple("abcdef")


def adapted(name: str, images: int = 1) -> tuple[AdaptedModel, Tensor]:
    """A model of table rows that learned from ten patients -> it, and the rows that it learned from."""
    federation = Federation.model_validate(
        {
            "name": "rows",
            "task": {"label_column": "y", "classes": ["no", "yes", "so"], "kind": "table", "features": COLUMNS},
            "model": {"family": "mlp", "width": 8},
            "algorithm": {"name": name},
        }
    )
    model = federation.algorithm.extended(build_model(federation))
    theta, shift, scale = model.initial(), torch.zeros(6), torch.ones(6)
    patient = torch.arange(10).repeat_interleave(images)
    z = torch.randn(len(patient), 6, generator=torch.Generator().manual_seed(2))
    examples = Examples(z=z, y=patient % 3, patient=patient, summary=z, classes=3)
    release = Release("run", federation.digest, 1, theta, shift, scale)
    start = SharedModel(federation, Path(), release, model, theta, new_classes=False)
    support = Labelled(examples, tuple(bytes([number]) * 32 for number in range(10)), ("unknown",) * 10)
    return AdaptedModel.learned("rows", start, support, recipe="", shots=0, seed=0), z


@pytest.mark.parametrize("name", [name for name in ALGORITHMS.built_in if ALGORITHMS[name].compares])
def test_a_case_is_nearest_to_itself(name: str) -> None:
    model, z = adapted(name)
    for number, cases in enumerate(nearest(model, z)):
        assert cases[0].patient == number
        assert cases[0].label == number % 3
        assert [case.similarity for case in cases] == sorted((case.similarity for case in cases), reverse=True)
        assert len({case.patient for case in cases}) == len(cases) == 5


def test_prototypical_networks_order_by_euclidean_distance() -> None:
    model, z = adapted("prototypical")
    query = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    loss, theta = model.learner.loss, model.learner.theta
    distance = torch.cdist(loss.embed(theta, query), loss.embed(theta, z))
    for row, cases in zip(distance, nearest(model, query, count=10), strict=True):
        assert [case.patient for case in cases] == row.argsort().tolist()


def test_matching_networks_order_by_cosine_and_say_how_sharply() -> None:
    model, z = adapted("matching")
    loss, theta = model.learner.loss, model.learner.theta
    f, g = (torch.nn.functional.normalize(loss.embed(theta, each), dim=1) for each in (z[:2], z))
    for row, cases in zip(10 * f @ g.T, nearest(model, z[:2], count=3), strict=True):
        assert [case.similarity for case in cases] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_patient_stands_there_once_by_the_best_image() -> None:
    model, z = adapted("prototypical", images=3)
    (cases,) = nearest(model, z[4:5], count=10)
    assert cases[0].patient == 1
    assert sorted(case.patient for case in cases) == list(range(10))


@pytest.mark.parametrize("name", ["ridge", "svm", "fomaml"])
def test_methods_that_do_not_compare_have_no_nearest_case(name: str) -> None:
    model, z = adapted(name)
    assert nearest(model, z[:2]) == [[], []]
