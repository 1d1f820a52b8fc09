"""The local steps that several meta-learners share: through the noise, within an episode, and at home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad

from wardround.meta import inner
from wardround.questions import Cohort, Loss, Shots

MOMENTUM = 0.9


class LossOfEach(Protocol):
    """What steps on shots need of a loss. A `FewShotLoss` is one; theta may also be a part of a model's alone."""

    @property
    def classes(self) -> int: ...

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [n, ...], labels y [n, ...] -> float32 [n], the loss of each image."""
        ...


def descend(theta: Tensor, cohort: Cohort, loss: Loss, *, steps: int, learning_rate: float) -> Tensor:
    """`steps` steps of SGD from theta float32 [P], each on one private gradient -> the last iterate, float32 [P]."""
    for _ in range(steps):
        theta = theta - learning_rate * cohort.gradient(loss, theta)
    return theta


def descend_on(theta: Tensor, shots: Shots, loss: LossOfEach, *, steps: int, learning_rate: float) -> Tensor:
    """`steps` steps of SGD on the shots from theta float32 [P] -> the last iterate, differentiable in theta."""
    for _ in range(steps):
        theta = theta - learning_rate * differentiable_slope(theta, shots, loss)
    return theta


def differentiable_slope(theta: Tensor, shots: Shots, loss: LossOfEach) -> Tensor:
    """The gradient float32 [P] of the mean loss over the shots' patients, differentiable in theta."""

    def mean(at: Tensor) -> Tensor:
        return shots.mean(loss.each(at, shots.x, shots.y))

    gradient: Tensor = grad(mean)(theta)
    return gradient


def fine_tune(
    theta: Tensor, support: Shots, loss: LossOfEach, *, steps: int, learning_rate: float, pull: float
) -> Tensor:
    """Train on a hospital's own shots, starting at theta.

    Minimises, by `steps` full-batch steps of SGD with momentum, the cross entropy in which every class that occurs
    weighs the same, or every finding and every absence of one (the aim is balanced accuracy), summed to the number of
    patients, plus pull / 2 times the squared distance to theta: what the support cannot tell stays as it was (Li et
    al., "Explicit inductive bias for transfer learning", 2018, L2-SP), and the more patients there are, the less the
    start counts.

    Args:
        theta: float32 [P], the start.
        support: at least one image.
        loss: of the model, without a prior of its own.
        steps: at least 0; with 0 theta is returned as it is.
        learning_rate: of SGD. Gradients are scaled down to a norm of at most 1, so that it suits every model.
        pull: strength of the pull towards the start, at least 0.

    Returns:
        float32 [P], a new vector.
    """
    balanced = inner.task_loss(support.balanced(loss.classes), loss.each)
    start, velocity = theta, torch.zeros_like(theta)
    pull = pull / float(support.weight.sum())
    learning_rate = learning_rate / (1 + learning_rate * pull)  # or a strong pull would overshoot
    for _ in range(steps):
        gradient = inner.slope(balanced, theta)
        gradient = gradient / gradient.norm().clamp(min=1)
        velocity = MOMENTUM * velocity + gradient + pull * (theta - start)
        theta = theta - learning_rate * velocity
    return theta.detach().clone()


class LossOfMany(Protocol):
    """As `LossOfEach`, of many small vectors at once."""

    @property
    def classes(self) -> int: ...

    def each_of(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [m, k, P], x [m, n, ...], y [m, n, ...] -> float32 [m, k, n]."""
        ...


def fine_tune_each(
    theta: Tensor, supports: Sequence[Shots], loss: LossOfMany, *, steps: int, learning_rate: float, pull: Tensor
) -> Tensor:
    """`fine_tune` on m supports from k starts each, all of them in the same steps: up to rounding the same.

    Of a small model a step takes hardly longer for a hundred starts than for one.

    Args:
        theta: float32 [m, k, P].
        supports: m of them, each of one image at least.
        loss: of a small model, without a prior of its own.
        steps: as there.
        learning_rate: as there.
        pull: float32 [k], towards each start.

    Returns:
        float32 [m, k, P], a new tensor.
    """
    x, y, share = _padded([support.balanced(loss.classes) for support in supports])
    patients = torch.stack([support.weight.sum() for support in supports])
    pull = (pull / patients.unsqueeze(1)).unsqueeze(2)
    rate = learning_rate / (1 + learning_rate * pull)
    start, velocity = theta, torch.zeros_like(theta)
    for _ in range(steps):
        with torch.enable_grad():
            at = theta.detach().requires_grad_()
            # No start's loss depends on another start, so the gradient of the sum is that of each.
            (gradient,) = torch.autograd.grad((loss.each_of(at, x, y) * share.unsqueeze(1)).sum(), at)
        gradient = gradient / gradient.norm(dim=2, keepdim=True).clamp(min=1)
        velocity = MOMENTUM * velocity + gradient + pull * (theta - start)
        theta = theta - rate * velocity
    return theta.detach().clone()


def _padded(supports: Sequence[Shots]) -> tuple[Tensor, Tensor, Tensor]:
    """X [m, n, ...], y [m, n, ...], and float32 [m, n], what each image counts in the mean: none beyond a support."""
    n = max(len(each.y) for each in supports)
    rows = [torch.arange(n, device=each.y.device) % len(each.y) for each in supports]
    there = [(torch.arange(n, device=each.y.device) < len(each.y)).float() for each in supports]
    return (
        torch.stack([each.x[chosen] for each, chosen in zip(supports, rows, strict=True)]),
        torch.stack([each.y[chosen] for each, chosen in zip(supports, rows, strict=True)]),
        torch.stack(
            [
                each.weight[chosen] * known / each.weight.sum().clamp_min(1e-6)
                for each, chosen, known in zip(supports, rows, there, strict=True)
            ]
        ),
    )
