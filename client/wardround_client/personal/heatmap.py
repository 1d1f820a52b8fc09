"""Where in an image a prediction comes from: integrated gradients, at the image's resolution."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from wardround.algorithms import Fitted
from wardround_client.isolated import isolation
from wardround_client.personal.learner import Learner

STEPS = 4
"""Points on the way from the blurred image to the image. With 32, taking the hottest tenth of a phantom away costs a
prediction as much (0.76 of its probability; occlusion's tenth costs 0.48).
"""

_BLUR = 7  # the baseline is the image averaged over squares of this part of its side
_SMOOTH_PX = 3  # and a map over squares of this side, in pixels
_LEAST_PX = 256  # side of a picture that a person can look at
_LINE_PX, _GAP_PX, _TEXT_PX = 18, 6, 13
_DARK = 0.1  # at most, the noise of air
_EPSILON = 1e-12


def heat_map(learner: Learner, fitted: Fitted, x: Tensor, label: int) -> Tensor:
    """How much each pixel speaks for a class: float32 [S, S] in [0, 1] on the CPU, the most that does being 1.

    All zeros where nothing does. x: float32 [channels, S, S] in [0, 1], on the model's device. label: of the class.
    """
    heat = integrated_gradients(learner, fitted, x, label).sum(0)
    heat = (_mean(heat[None, None], _SMOOTH_PX)[0, 0]).clamp_min(0).cpu() * ~_air(x)
    return heat / heat.max().clamp_min(_EPSILON)


def _air(x: Tensor) -> Tensor:
    """What is dark from the edge of the image on, bool [S, S]; not what is dark inside a body, which may be a finding.

    x: [channels, S, S].
    """
    parts, _ = ndimage.label(x.amax(0).cpu().numpy() < _DARK)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return torch.from_numpy(np.isin(parts, edge[edge > 0]))


def integrated_gradients(learner: Learner, fitted: Fitted, x: Tensor, label: int, steps: int = STEPS) -> Tensor:
    """Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017, equation 1 by the midpoint rule.

    The baseline is the image itself, blurred, as in Sturmfels, Lundberg and Lee, "Visualizing the impact of feature
    attribution baselines", 2020: of a black one, what is bright would count, and not what is there. float32 [channels,
    S, S], whose sum is what `evidence` gains on the way (completeness). Arguments as of `heat_map`.
    """
    blurred = baseline(x)
    alpha = (torch.arange(steps, device=x.device) + 0.5) / steps
    points = (blurred + alpha[:, None, None, None] * (x - blurred)).requires_grad_()
    with isolation():
        (slope,) = torch.autograd.grad(evidence(learner, fitted, points, label).sum(), points)
    return (x - blurred) * slope.nan_to_num().mean(0)  # a constant image has a deviation without a slope


def baseline(x: Tensor) -> Tensor:
    """The image without what is smaller than a seventh of it."""
    return _mean(x[None], x.shape[-1] // _BLUR)[0]


def evidence(learner: Learner, fitted: Fitted, x: Tensor, label: int) -> Tensor:
    """Of images [n, channels, S, S], float32 [n]: the class' logit; of exclusive classes, above the others' mean."""
    logits = learner.algorithm.predict(fitted, learner.loss.model.encode(x), learner.loss)
    others = (logits.sum(1) - logits[:, label]) / max(1, logits.shape[1] - 1)
    return logits[:, label] - (others if learner.loss.labels.exclusive else 0)


def _mean(images: Tensor, side_px: int) -> Tensor:
    """[n, c, S, S]: the mean over squares of an odd side, at the edges over what lies in the image."""
    half = side_px // 2
    return avg_pool2d(images, 2 * half + 1, 1, half, count_include_pad=False) if half else images


def picture(
    x: Tensor,
    heat: Tensor,
    caption: str,
    legend: str = "speaks for it: little to most, within this image",
    made: str = "Integrated gradients",
) -> bytes:
    """A PNG: the image, and beside it the image under its heat map, with a caption and a legend below.

    x: [channels, S, S]; heat: [S, S]; in [0, 1]. legend: what the colours say; made: how.
    """
    grey = x.detach().cpu().expand(3, -1, -1)
    strength = 0.65 * heat.clamp(0, 1)
    both = torch.cat([grey, (1 - strength) * grey + strength * _colours(heat)], dim=2)
    pixels = (both.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    times = -(-_LEAST_PX // x.shape[-1])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    page = Image.new("RGB", (image.width, image.height + 3 * _LINE_PX + _GAP_PX), "white")
    page.paste(image)
    draw, font, line = ImageDraw.Draw(page), ImageFont.load_default(_TEXT_PX), image.height + _GAP_PX // 2
    draw.text((_GAP_PX, line), caption, "black", font)
    colours = (_colours(torch.linspace(0, 1, 96).expand(10, -1)).permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    page.paste(Image.fromarray(np.ascontiguousarray(colours)), (_GAP_PX, line + _LINE_PX + 4))
    draw.text((2 * _GAP_PX + 96, line + _LINE_PX), legend, "black", font)
    draw.text((_GAP_PX, line + 2 * _LINE_PX), f"{made}. Not a diagnosis.", "black", font)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _colours(heat: Tensor) -> Tensor:
    """Red to yellow: [S, S] in [0, 1] -> [3, S, S]."""
    return torch.stack([torch.ones_like(heat), 0.1 + 0.7 * heat, torch.zeros_like(heat)])
