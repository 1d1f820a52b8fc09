"""The clipped gradients of patients, each a function of that patient alone, and their exact sum.

Two ways, chosen by what the model is. With one hidden layer at most the gradient has a closed form, which elementary
operations compute for many patients at once. Of anything deeper it is plain autograd, one patient after another, in
isolation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.memory import laid_out
from wardround.questions import ElementaryLoss, Loss
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import fresh, isolation, or_else
from wardround_client.privacy.contribution import contribution, contributions, summed

_CHUNK_BYTES = 16 << 20  # of float64 gradients of images at a time: a public number


def clipped_sum(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor, clip_norm: float) -> Tensor:
    """The sum over patients of their mean gradients, each clipped to clip_norm as ONE vector.

    Args:
        loss: the mean over a patient's images.
        theta: float32 [P], where the gradients are taken.
        examples: the cohort.
        rows: int64 [patients, m], which images each patient contributes; the valid ones come first.
        valid: bool [patients, m], at least one in a row.
        clip_norm: C.

    Returns:
        Float64 [P] on theta's device, exact; zero for no patients. A gradient that is not finite contributes nothing.
    """
    theta, added = fresh(theta), torch.zeros(theta.shape, dtype=torch.int64, device=theta.device)
    if not len(rows):
        return added.double()
    rows, valid = rows.to(examples.device), valid.to(examples.device)
    if isinstance(loss, ElementaryLoss) and loss.elementary:
        images = rows.shape[1] * examples.variants
        at_once = max(1, _CHUNK_BYTES // (8 * theta.numel() * max(1, images)))
        for some, there in zip(torch.split(rows, at_once), torch.split(valid, at_once), strict=True):
            added += contributions(_means(loss, theta, examples, some, there), clip_norm).sum(0)
        return summed(added.unsqueeze(0), clip_norm)
    with isolation():
        nothing = torch.zeros_like(theta)
        for row, there in zip(rows, valid, strict=True):
            gradient = or_else(nothing, plain_gradient, loss, theta, *examples.for_learning(row[there]))
            added += contribution(gradient, clip_norm)
    return summed(added.unsqueeze(0), clip_norm)


def _means(loss: ElementaryLoss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor) -> Tensor:
    """The mean gradient of each patient's images: rows and valid [patients, m] -> float64 [patients, P].

    They are added one after another, and zeros come last, so that m, which may be another patient's number of images,
    changes no bit.
    """
    x, y = examples.for_learning(rows)
    each = loss.gradients(theta, x.flatten(0, 1), y.flatten(0, 1)).view(*x.shape[:2], -1)
    there = valid.repeat_interleave(examples.variants, 1).unsqueeze(2)
    first, *others = torch.where(there, each, 0.0).unbind(1)
    for other in others:
        first = first + other
    return first / there.sum(1).double()


def plain_gradient(loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Plain autograd for ONE patient: x [images, ...], labels y [images, ...] -> float32 [P]."""
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta, laid_out(x), y), theta)
    return gradient
