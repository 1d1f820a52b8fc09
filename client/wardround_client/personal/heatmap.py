"""Where in an image a prediction comes from: Grad-CAM where there are convolutions, else occlusion."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wardround.algorithms import Fitted
from wardround.models import Model
from wardround.models.conv4 import Conv4, Conv4Body
from wardround.models.extended import Extended
from wardround_client.isolated import image_by_image
from wardround_client.personal.learner import Learner

_PATCH = 4  # patches beside each other across an image
_LEAST_PX = 256  # side of a picture that a person can look at


def heat_map(learner: Learner, fitted: Fitted, x: Tensor, label: int) -> Tensor:
    """How much each pixel speaks for a class: float32 [S, S] in [0, 1] on the CPU, the most that does being 1.

    All zeros where nothing does. x: float32 [channels, S, S] in [0, 1], on the model's device. label: of the class.
    """
    network = _convolutional(learner.loss.model)
    heat = occlusion(learner, fitted, x, label) if network is None else grad_cam(learner, fitted, x, label, network)
    heat = heat.clamp_min(0)
    return (heat / heat.max().clamp_min(1e-12)).cpu()


def grad_cam(learner: Learner, fitted: Fitted, x: Tensor, label: int, network: Conv4) -> Tensor:
    """Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", 2017.

    alpha_k is the mean slope of the class' logit in the k-th of the last convolution's rectified maps A (equation 1);
    the map is relu(sum_k alpha_k A_k) (equation 2), enlarged to float32 [S, S]. Arguments as of `heat_map`.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.detach().relu().requires_grad_())
        return seen[-1]

    bodies = [body for body in (network.network.module, network.network.body) if isinstance(body, Conv4Body)]
    hooks = [body.norms[-1].register_forward_hook(keep) for body in bodies]
    try:
        z = learner.loss.model.encode(x.unsqueeze(0))
        logit = learner.algorithm.predict(fitted, z, learner.loss)[0, label]
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:  # maps of one pixel are not normalised, and show no place
        return torch.zeros(x.shape[-2:])
    (maps,) = seen
    (slope,) = torch.autograd.grad(logit, maps)
    alpha = slope.mean((-2, -1), keepdim=True)
    heat = (alpha * maps).sum(1, keepdim=True).relu()
    return interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)[0, 0].detach()


def occlusion(learner: Learner, fitted: Fitted, x: Tensor, label: int) -> Tensor:
    """Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, section 4.2.

    A square of the image's mean grey, a quarter of its side, is put on every place in steps of half a square. float32
    [S, S]: how much of the class' probability is lost, the mean over the squares that lie on a pixel. Arguments as of
    `heat_map`.
    """
    side = x.shape[-1]
    square = max(1, side // _PATCH)
    starts = sorted({*range(0, side - square + 1, max(1, square // 2)), side - square})
    places = [(top, left) for top in starts for left in starts]
    images = x.repeat(len(places) + 1, 1, 1, 1)
    grey = x.mean((-2, -1), keepdim=True)
    for image, (top, left) in zip(images, places, strict=False):  # the last is left whole
        image[:, top : top + square, left : left + square] = grey
    with torch.no_grad():
        z = image_by_image(learner.loss.model.encode, images)
    *covered, whole = learner.probabilities(fitted, z)[:, label].tolist()
    lost, times = torch.zeros(side, side), torch.zeros(side, side)
    for (top, left), probability in zip(places, covered, strict=True):
        lost[top : top + square, left : left + square] += whole - probability
        times[top : top + square, left : left + square] += 1
    return lost / times


def picture(x: Tensor, heat: Tensor) -> bytes:
    """A PNG: the image, and beside it the image under its heat map. x: [channels, S, S]; heat: [S, S]; in [0, 1]."""
    grey = x.detach().cpu().expand(3, -1, -1) if x.shape[0] == 1 else x.detach().cpu()
    strength = 0.65 * heat.clamp(0, 1)
    hot = torch.stack([torch.ones_like(heat), 0.1 + 0.7 * heat, torch.zeros_like(heat)])
    both = torch.cat([grey, (1 - strength) * grey + strength * hot], dim=2)
    pixels = (both.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    times = -(-_LEAST_PX // x.shape[-1])
    shown = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (times * pixels.shape[1], times * pixels.shape[0]), Image.Resampling.NEAREST
    )
    file = io.BytesIO()
    shown.save(file, "PNG")
    return file.getvalue()


def _convolutional(model: Model) -> Conv4 | None:
    inner = model.model if isinstance(model, Extended) else model
    return inner if isinstance(inner, Conv4) else None
