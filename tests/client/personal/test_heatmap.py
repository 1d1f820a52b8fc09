"""Heat maps: Grad-CAM's equations on a network taken apart by hand, occlusion on an encoder with one known place."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from tests.chosen import fitting
from torch import Tensor
from torch.nn.functional import group_norm, interpolate, max_pool2d

from wardround.algorithms import Fitted
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.head import EncoderHead
from wardround_client.cohort.examples import Examples
from wardround_client.personal.heatmap import grad_cam, heat_map, occlusion, picture
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


def a_theta() -> Tensor:
    return 0.3 * torch.randn(CONV4.layout.size, generator=torch.Generator().manual_seed(5))


def test_grad_cam_is_equations_1_and_2_of_its_paper() -> None:
    theta, x = a_theta(), image()
    weights = CONV4.layout.unpack(theta)
    maps = 2 * x.unsqueeze(0) - 1
    for block in range(4):
        maps = torch.conv2d(maps, weights[f"convolutions.{block}.weight"], padding=1)
        maps = group_norm(maps, 8, weights[f"norms.{block}.weight"], weights[f"norms.{block}.bias"]).relu()
        if block < 3:
            maps = max_pool2d(maps, 2)
    maps = maps.detach().requires_grad_()
    logits = (
        max_pool2d(maps.relu(), 2).mean((-2, -1)) @ weights["linear.weight"].T + weights["linear.bias"]
    )  # a dead pool is flat
    ours = learner(CONV4, theta=theta)
    assert torch.allclose(ours.loss.logits(theta, x.unsqueeze(0)), logits, atol=1e-5), "taken apart as it is built"
    for label in range(CLASSES):
        (slope,) = torch.autograd.grad(logits[0, label], maps, retain_graph=True)
        alpha = slope.mean((2, 3), keepdim=True)
        expected = (alpha * maps).sum(1, keepdim=True).relu()
        expected = interpolate(expected, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0].detach()
        found = grad_cam(ours, {"theta": theta}, x, label, CONV4)
        assert expected.max() > 0
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["fomaml", "maml", "anil", "prototypical", "matching", "relation", "siamese", "ridge"])
def test_every_method_on_convolutions_has_a_map_that_leaves_no_hook_behind(name: str) -> None:
    ours = learner(CONV4, name)
    patient = torch.arange(6)
    z = torch.stack([image(seed) for seed in range(6)])
    fitted = ours.adapt(Examples(z=z, y=patient % CLASSES, patient=patient, summary=z[:, 0, 0], classes=CLASSES))
    heat = heat_map(ours, fitted, image(9), 1)
    assert heat.shape == (SIDE, SIDE)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert not heat.requires_grad
    network = CONV4.network
    assert not any(part._forward_hooks for each in (network.module, network.body) for part in each.modules())


def test_maps_of_one_pixel_show_no_place() -> None:
    tiny = Conv4.of(1, 4, CLASSES)
    heat = heat_map(learner(tiny), {"theta": tiny.initial()}, torch.rand(1, 8, 8), 0)
    assert not heat.any()


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


def test_occlusion_finds_the_place_and_measures_the_loss() -> None:
    x = torch.zeros(1, SIDE, SIDE)
    x[0, : SIDE // 4, : SIDE // 4] = 1
    ours, fitted = corner(3.0)
    lost = occlusion(ours, fitted, x, 1)

    covered = x.clone()
    covered[0, : SIDE // 4, : SIDE // 4] = x.mean()
    whole, less = ours.probabilities(fitted, Corner()(torch.stack([x, covered])))[:, 1].tolist()
    assert lost[0, 0] == pytest.approx(whole - less, abs=1e-6), "one square alone lies on the very corner"
    assert lost[SIDE // 2 :, :].abs().max() == 0
    assert lost[:, SIDE // 2 :].abs().max() == 0
    heat = heat_map(ours, fitted, x, 1)
    assert heat[0, 0] == heat.max() == 1


def test_what_speaks_against_a_class_is_not_hot() -> None:
    x = torch.zeros(1, SIDE, SIDE)
    x[0, : SIDE // 4, : SIDE // 4] = 1
    ours, fitted = corner(-3.0)
    assert not heat_map(ours, fitted, x, 1).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_the_image_beside_the_image_under_its_map(channels: int) -> None:
    x = torch.full((channels, SIDE, SIDE), 0.5)
    heat = torch.zeros(SIDE, SIDE)
    heat[:4, :4] = 1
    shown = np.asarray(Image.open(io.BytesIO(picture(x, heat))))
    assert shown.shape == (256, 512, 3)
    assert (shown[:, :256] == 128).all()
    assert (shown[40:, 256 + 40 :] == 128).all()
    red, _, blue = shown[0, 256]
    assert red > 200 and blue < 60
