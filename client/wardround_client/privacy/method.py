"""Which way to per-patient gradients is taken for a loss: the fastest on the device at hand that proves to be right."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import one_hot

from wardround.questions import Loss
from wardround_client.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.bookkeeping import (
    Recorded,
    UnsupportedError,
    image_gradients,
    taped_gradients,
    tensors_of,
)
from wardround_client.privacy.tape import NotRecordableError

log = logging.getLogger(__name__)

Method = Literal["bookkeeping", "vmap", "loop"]
_Way = Callable[[Tensor, Tensor], Tensor]
"""theta float32 [P] and images [n, ...] -> the gradient of each image's loss, float32 [n, P]."""

_PLANS_KEPT = 32
_DRAWS = 3


@dataclass(frozen=True)
class Plan:
    """How the gradients of some losses are computed. recorded: tapes, where the passes of book-keeping can be taped.

    alive: what the plan is known by, kept so that no other object gets its identity.
    """

    method: Method
    recorded: Recorded | None
    alive: object


_plans: OrderedDict[object, Plan] = OrderedDict()


def plan_of(loss: Loss, theta: Tensor, examples: Examples) -> Plan:
    """The plan for a loss; found out at the first of its kind. Losses of one kind differ in their tensors alone."""
    key = (*_kind(loss), theta.shape, theta.device, examples.z.shape[1:], examples.y.shape[1:])
    plan = _plans.get(key)
    if plan is None:
        method, recordable = _first_right(loss, theta, examples)
        plan = _plans[key] = Plan(method, Recorded() if recordable else None, loss)
        while len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    return plan


def _kind(loss: Loss) -> tuple[object, ...]:
    """Equal for losses that do the same operations on other tensors."""
    model = getattr(loss, "model", None)
    held: object = loss
    if model is None or not is_dataclass(held):
        return (id(loss),)
    kind: list[object] = [type(loss), model.fingerprint, model.layout]
    values = (getattr(loss, field.name) for field in fields(held))
    others = [value for value in values if value is not model and not isinstance(value, Tensor)]
    kind.extend(value if value is None or isinstance(value, int | float | str) else id(value) for value in others)
    tensors = tensors_of(loss)
    identities = [id(each) for each in tensors.values()]  # a tensor under two names is not exchanged for two
    for name, tensor in tensors.items():
        kind.append((name, tensor.shape, tensor.stride(), tensor.dtype, identities.index(id(tensor))))
    return tuple(kind)


def plain_gradient(loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Plain autograd for ONE patient: x [images, ...], labels y [images, ...] -> float32 [P]."""
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta, x, y), theta)
    return gradient


def _first_right(loss: Loss, theta: Tensor, examples: Examples) -> tuple[Method, bool]:
    """The fastest method that agrees with plain autograd, image by image.

    This finds what book-keeping does not cover, layers that mix images, and computations that a tape does not repeat.
    Parameters and images are random: no private number is used. One draw in some hundreds lies so near to a tie of relu
    or max-pooling that rounding decides it, and right ways differ there: so a way may try on more than one.
    """
    device, shape = theta.device, examples.z.shape[1:]

    def drawn() -> tuple[Tensor, Tensor]:
        at = ((mechanism.uniform(theta.numel()) - 0.5) * 0.2).float().to(device)
        return at, mechanism.uniform(3 * shape.numel()).view(3, *shape).float().to(device)

    y = torch.tensor([0, 1, 0], device=device)
    if examples.several:
        y = one_hot(y, examples.classes).float()

    def taped(at: Tensor, x: Tensor) -> Tensor:
        return _whole(taped_gradients(loss, *drawn(), 1 - y)[1].at(at, tensors_of(loss))(x, y), at)

    def kept(at: Tensor, x: Tensor) -> Tensor:
        return _whole(image_gradients(loss, at, x, y), at)

    def mapped(at: Tensor, x: Tensor) -> Tensor:
        gradients: Tensor = vmap(grad(loss), in_dims=(None, 0, 0))(at, x.unsqueeze(1), y.unsqueeze(1))
        return gradients

    @cache
    def tried_on(number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, images and what is right there; the first such draw nearly always decides alone."""
        at, x = drawn()
        return at, x, torch.stack([plain_gradient(loss, at, x[i : i + 1], y[i : i + 1]) for i in range(len(y))])

    def is_right(way: _Way) -> bool:
        """Whether on some draw each image's gradient lies within a thousandth of its norm."""
        for at, x, expected in map(tried_on, range(_DRAWS)):
            if bool(((way(at, x) - expected).norm(dim=1) <= 1e-3 * expected.norm(dim=1)).all()):
                return True
        return False

    ways: list[tuple[Method, bool, _Way]] = [("bookkeeping", False, kept)]
    if device.type != "cpu":
        ways = [("vmap", False, mapped), *ways]  # the usual choice there, not measured
    else:  # measured: benchmarks/private_step.py
        # Vectors come in ever other numbers, so that a tape of theirs would hardly ever fit again.
        if len(shape) == 3:
            ways.insert(0, ("bookkeeping", True, taped))
        if loss.per_patient == "vmap":
            ways.append(("vmap", False, mapped))
    for method, recordable, way in ways:
        try:
            if is_right(way):
                return method, recordable
        except (UnsupportedError, NotRecordableError, RuntimeError) as reason:
            log.info("private gradients cannot be computed by %s: %s", way.__name__, reason)
            continue
        log.warning("private gradients differ from plain autograd when %s", way.__name__)
    return "loop", False


def _whole(pages: dict[int, Tensor], theta: Tensor) -> Tensor:
    """Pages -> [images, P]; what no page covers is zero."""
    whole = theta.new_zeros(len(next(iter(pages.values()))), theta.numel())
    for offset, terms in pages.items():
        whole[:, offset : offset + terms[0].numel()] = terms.flatten(1)
    return whole
