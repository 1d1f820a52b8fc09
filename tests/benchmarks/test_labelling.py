"""What a label is worth: the same hospital, labelled in four ways."""

from __future__ import annotations

import pytest
import torch
from tests.chosen import algorithm

from labelling import A_CLASS, WAYS, Ward, grown
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner


@pytest.fixture(scope="module")
def ward() -> Ward:
    """Two classes of 30 patients, apart but for some."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    z = torch.nn.functional.one_hot(y, 2).float() + 0.4 * torch.randn(60, 2, generator=generator)
    model = Tabular.logistic(2, 2)
    loss = Objective(model, torch.zeros(2), torch.ones(2))
    learner = Learner(algorithm("fedavg", adapt_steps=20), loss, model.initial())
    return Ward(learner, Examples(z=z, y=y, patient=torch.arange(60), summary=z, classes=2))


@pytest.mark.parametrize("way", WAYS)
def test_labels_grow_and_a_seed_gives_the_same(way: str, ward: Ward) -> None:
    found = grown(ward, way, 3)
    assert list(found) == [str(each) for each in A_CLASS if each <= 15]  # 30 are never labelled, and judge
    assert found == grown(ward, way, 3)
    assert found["1"] == grown(ward, "random", 3)["1"], "all begin with the same labels"


def test_who_judges_is_never_labelled_and_half_of_each_class(ward: Ward) -> None:
    judges = ward.judges(torch.Generator().manual_seed(1))
    assert [int(judges[ward.examples.y == label].sum()) for label in range(2)] == [15, 15]
