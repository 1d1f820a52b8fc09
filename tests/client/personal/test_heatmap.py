"""Heat maps: the axioms of integrated gradients, an encoder with one known place, and what a person sees."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from tests.chosen import fitting
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import EncoderHead
from wardround_client.cohort.examples import Examples
from wardround_client.personal.heatmap import baseline, evidence, heat_map, integrated_gradients, picture
from wardround_client.personal.learner import Learner

CLASSES, SIDE = 3, 32
CONV4 = Conv4.of(1, 8, CLASSES)


def learner(model: Model, name: str = "fomaml", theta: Tensor | None = None) -> Learner:
    method = fitting(name, adapt_steps=3)
    extended = method.extended(model)
    loss = Objective(extended, torch.zeros(model.scaling_size), torch.ones(model.scaling_size))
    return Learner(method, loss, extended.initial() if theta is None else theta)


def image(seed: int = 0) -> Tensor:
    return torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def support(ours: Learner) -> Fitted:
    patient = torch.arange(6)
    z = torch.stack([image(seed) for seed in range(6)])
    return ours.adapt(Examples(z=z, y=patient % CLASSES, patient=patient, summary=z[:, 0, 0], classes=CLASSES))


def a_theta() -> Tensor:
    return 0.3 * torch.randn(CONV4.layout.size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["fomaml", "prototypical"])
def test_the_map_sums_to_what_the_image_has_more_evidence_than_its_blur(name: str) -> None:
    """Completeness, proposition 1 of the paper."""
    ours, x = learner(CONV4, name, a_theta() if name == "fomaml" else None), image()
    fitted = support(ours) if name == "prototypical" else {"theta": a_theta()}
    for label in range(CLASSES):
        found = integrated_gradients(ours, fitted, x, label, steps=512).sum()
        whole, blurred = evidence(ours, fitted, torch.stack([x, baseline(x)]), label)
        assert found == pytest.approx(float(whole - blurred), rel=0.02, abs=0.02)


def test_of_a_linear_model_it_is_weight_times_difference() -> None:
    x = image()
    ours, fitted = corner(3.0)
    found = integrated_gradients(ours, fitted, x, 1)
    expected = torch.zeros_like(x)
    corners = slice(SIDE // 4)
    expected[0, corners, corners] = (x - baseline(x))[0, corners, corners]
    assert torch.allclose(found / found.abs().max(), expected / expected.abs().max(), atol=1e-5)


@pytest.mark.parametrize("name", ["fomaml", "maml", "anil", "prototypical", "matching", "relation", "siamese", "ridge"])
def test_every_method_on_convolutions_has_a_map(name: str) -> None:
    ours = learner(CONV4, name)
    heat = heat_map(ours, support(ours), image(9), 1)
    assert heat.shape == (SIDE, SIDE)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert not heat.requires_grad


@pytest.mark.parametrize("x", [torch.zeros(1, SIDE, SIDE), torch.full((1, SIDE, SIDE), 0.5)])
def test_an_image_of_nothing_shows_nothing(x: Tensor) -> None:
    model = EncoderHead.of(BuiltinEncoder.of(SIDE, 1, 16), CLASSES)
    ours = learner(model, "fedavg")
    theta = torch.randn(ours.loss.model.layout.size, generator=torch.Generator().manual_seed(1))
    assert not heat_map(ours, {"theta": theta}, x, 0).any()


def test_the_air_around_a_body_stays_dark_at_the_image_s_resolution() -> None:
    x = 0.4 + 0.2 * image(3)
    x[:, : SIDE // 4] = x[:, -SIDE // 4 :] = 0.05 * image(4)[:, : SIDE // 4]  # air is not quite black
    x[:, 14:18, 14:18] = 0
    model = EncoderHead.of(BuiltinEncoder.of(SIDE, 1, 16), CLASSES)
    ours = learner(model, "fedavg")
    theta = torch.randn(ours.loss.model.layout.size, generator=torch.Generator().manual_seed(1))
    heat = heat_map(ours, {"theta": theta}, x, 0)
    assert heat.max() == 1
    assert not heat[: SIDE // 4].any() and not heat[-SIDE // 4 :].any()
    assert heat[14:18, 14:18].any(), "what is dark inside may be the finding"
    assert len(torch.unique(heat)) > SIDE, "no blocks"


@dataclass(frozen=True)
class Corner:
    """An encoder that sees how bright one corner is, and noise."""

    features: int = 2
    fingerprint: str = "0" * 64

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, : SIDE // 4, : SIDE // 4].mean((1, 2)), torch.zeros(len(x))], 1)


def corner(weight: float) -> tuple[Learner, Fitted]:
    """A bright corner speaks for class 1 (weight above 0) or against it."""
    model = EncoderHead.of(Corner(), 2)
    theta = model.layout.pack({"weight": torch.tensor([[0.0, 0.0], [weight, 0.0]]), "bias": torch.zeros(2)})
    ours = learner(model, "fedavg", theta)
    return ours, ours.unadapted()


def test_what_speaks_against_a_class_is_not_hot() -> None:
    x = torch.zeros(1, SIDE, SIDE)
    x[0, : SIDE // 4, : SIDE // 4] = 1
    for weight, hot in ((3.0, True), (-3.0, False)):
        ours, fitted = corner(weight)
        heat = heat_map(ours, fitted, x, 1)
        assert bool(heat.any()) == hot
        assert not heat[SIDE // 4 + 1 :].any() and not heat[:, SIDE // 4 + 1 :].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_the_image_beside_the_image_under_its_map(channels: int) -> None:
    x = torch.full((channels, SIDE, SIDE), 0.5)
    heat = torch.zeros(SIDE, SIDE)
    heat[:4, :4] = 1
    shown = np.asarray(Image.open(io.BytesIO(picture(x, heat, "nodule: 87 %"))))
    assert shown.shape[1:] == (512, 3) and shown.shape[0] > 256 + 3 * 13, "a caption and a legend below"
    assert (shown[:256, :256] == 128).all()
    assert (shown[40:256, 256 + 40 :] == 128).all()
    assert (shown[256:] < 100).any()
    red, _, blue = shown[0, 256]
    assert red > 200 and blue < 60
