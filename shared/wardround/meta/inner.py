"""Steps on one task without noise, as fast as torch takes them on a CPU: the inner loop of FOMAML, Reptile and MAML.

A task is its loss, in functions of theta alone. Results are those of plain autograd up to rounding; what makes them
fast (`benchmarks/meta_step.py`):

* images lie in memory with channels last, where pooling and normalisation cost a third;
* first-order steps keep no graph and hold the activations of a few images at a time, and theta is the leaf: no copy of
  a model is made;
* MAML's gradient goes back through the steps one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from wardround.memory import laid_out
from wardround.questions import Shots

Part = Callable[[Tensor], Tensor]
"""theta float32 [P] -> float32 []."""

TaskLoss = Sequence[Part]
"""A loss is the sum of its parts, of whose graphs a first-order step holds one at a time."""

# In a part, which bounds the activations: beyond this, the C library hands memory back after every step, and page
# faults cost as much as a tenth of the next one.
_PIXELS = 32 * 28 * 28


def task_loss(shots: Shots, each: Callable[[Tensor, Tensor, Tensor], Tensor]) -> TaskLoss:
    """The mean loss over the shots' patients, of each image's: (theta, x, y) -> float32 [n] (`FewShotLoss.each`).

    Images are laid out once, for all steps, and many images are dealt into parts.
    """
    n = len(shots.y)
    size = n
    if shots.x.dim() == 4 and shots.x.device.type == "cpu":
        size = ceil(n / ceil(n * shots.x.shape[2:].numel() / _PIXELS))
    total = shots.weight.sum().clamp_min(1e-6)

    def part(rows: slice) -> Part:
        here = replace(shots[rows], x=laid_out(shots.x[rows]))
        share = here.weight.sum() / total
        return lambda theta: share * here.mean(each(theta, here.x, here.y))

    return [part(slice(start, start + size)) for start in range(0, n, size)]


def slope(loss: TaskLoss, theta: Tensor) -> Tensor:
    """The gradient of the loss at theta float32 [P]: float32 [P], itself not differentiable."""
    gradient = torch.zeros_like(theta)
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        for part in loss:
            gradient += torch.autograd.grad(part(theta), theta)[0]
    return gradient


def descended(loss: TaskLoss, theta: Tensor, *, steps: int, learning_rate: float) -> Tensor:
    """The last iterate of so many SGD steps from theta float32 [P]: a new vector, not differentiable in theta."""
    theta = theta.detach().clone()
    for _ in range(steps):
        theta.sub_(slope(loss, theta), alpha=learning_rate)
    return theta


def meta_gradient(support: TaskLoss, query: TaskLoss, theta: Tensor, *, steps: int, learning_rate: float) -> Tensor:
    """The gradient in theta of the query's loss after SGD steps on the support (Finn et al. 2017, equation 4).

    With theta_{k+1} = theta_k - alpha g(theta_k) and H the Hessian of the support's loss, v <- v - alpha H(theta_k) v
    goes from the last step to the first, starting at the query's gradient.

    Args:
        support: what the steps descend on, twice differentiable (almost everywhere: relu is).
        query: what is judged after the last step.
        theta: float32 [P], the start.
        steps: at least 0.
        learning_rate: alpha.

    Returns:
        float32 [P], itself not differentiable.
    """
    theta = theta.detach()
    taken: list[tuple[Tensor, Tensor]] = []
    with torch.enable_grad():
        for _ in range(steps):
            at = theta.requires_grad_()
            value = torch.stack([part(at) for part in support]).sum()
            (gradient,) = torch.autograd.grad(value, at, create_graph=True)
            taken.append((at, gradient))
            theta = torch.sub(at.detach(), gradient.detach(), alpha=learning_rate)
        v = slope(query, theta)
        while taken:
            at, gradient = taken.pop()
            if gradient.requires_grad:  # else the loss is linear in theta, and its Hessian zero
                (product,) = torch.autograd.grad(gradient, at, v)
                v = torch.sub(v, product, alpha=learning_rate)
    return v
