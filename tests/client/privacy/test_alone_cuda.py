"""The same on CUDA, where there is one: with deterministic algorithms a patient's bits do not depend on the company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.client.privacy.generated import CLASSES, MODELS, cohort, examples_of, without
from tests.questions import blocks
from torch import Tensor

from wardround.config import Federation, Privacy
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import image_by_image
from wardround_client.privacy.per_patient import clipped_sum
from wardround_client.privacy.rehearsal import Rehearsal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def on_cuda(examples: Examples) -> Examples:
    moved = {name: getattr(examples, name).cuda() for name in ("z", "y", "patient", "summary")}
    return replace(examples, **moved)


def loss_of(model: Model) -> Objective:
    d = model.scaling_size
    return Objective(model, torch.full((d,), 0.1).cuda(), torch.full((d,), 1.1e-6).cuda())


@pytest.mark.parametrize("name", [*MODELS, "conv4-64"])
def test_what_a_sum_loses_is_what_the_patient_adds(name: str) -> None:
    wide = name == "conv4-64"
    model = Conv4.of(1, 64, CLASSES) if wide else MODELS[name]
    made = examples_of([1] * 30, model="conv4" if wide else name, seed=2)
    if wide:
        made = replace(made, z=torch.rand(30, 1, 28, 28))
    examples, loss = on_cuda(made), loss_of(model)
    theta = (1e4 * torch.randn(model.layout.size)).cuda()

    def total(of: Examples) -> Tensor:
        rows = torch.arange(of.patients, device="cuda").unsqueeze(1)
        rows = of.by_patient[rows]
        return clipped_sum(loss, theta, of, rows, torch.ones_like(rows, dtype=torch.bool), 1.0)

    for leaves in (0, 7, 29):
        alone = total(examples.subset(examples.patient == leaves))
        assert torch.equal(total(examples) - total(without(examples, leaves)), alone)
    everyone, others = (blocks("confusion", cohort(of), loss, theta) for of in (examples, without(examples, 3)))
    assert torch.equal(others, everyone[[n != 3 for n in range(30)]])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_encoded_alike_in_any_company(channels: int) -> None:
    encoder, x = BuiltinEncoder.of(64, channels, 7), torch.rand(12, channels, 64, 64).cuda()
    everyone = image_by_image(encoder, x)
    assert torch.equal(image_by_image(encoder, x[5:]), everyone[5:])
    assert everyone.isfinite().all()


@pytest.mark.parametrize("family", ["conv4", "encoder-head"])
@pytest.mark.parametrize("name", ["maml", "fomaml", "prototypical", "matching", "relation", "siamese", "ridge", "svm"])
def test_every_question_can_be_rehearsed(name: str, family: str) -> None:
    federation = Federation.model_validate(
        {
            "name": "cuda",
            "task": {"label_column": "y", "classes": ["a", "b", "c"], "image_size_px": 28},
            "model": {"family": family, "width": 16, "features": 8, "embedding": 8 if family == "encoder-head" else 0},
            "algorithm": {"name": name, "tasks": "episodes"},
            "privacy": Privacy().model_dump(),
        }
    )
    from wardround.models import build_model

    model = federation.algorithm.extended(build_model(federation))
    d = model.scaling_size
    loss = Objective(model, torch.zeros(d).cuda(), torch.ones(d).cuda())
    rehearsal = Rehearsal(federation, model, 200, torch.device("cuda"))
    found = federation.algorithm.inner(model.initial().cuda(), rehearsal, loss)
    assert found.shape == (model.layout.size,)
