"""Sums of clipped per-patient gradients, the heart of every private step, three ways with one result.

* vmap: torch.func.vmap over patients. Best for small models, and on a GPU.
* bookkeeping (`bookkeeping.py`): one batched backward pass that keeps the gradients of single images apart. Best for
  convolutions; used where a check against plain autograd has shown it right for the model at hand. On a CPU it runs
  with channels last, where pooling and normalisation are faster: that pays for keeping the gradients apart.
* loop: plain autograd, a patient at a time. Always right; the others are measured against it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap

from wardround.questions import Loss
from wardround_client.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.bookkeeping import UnsupportedError, image_gradients

log = logging.getLogger(__name__)

Part = tuple[int, Tensor]  # offset into theta, and the gradients [patients, length] of that stretch

_VMAP_BYTES = 64 << 20  # of per-patient gradients at a time
_BOOKKEEPING_BYTES = 16 << 20
_BOOKKEEPING_PIXELS = 32 * 28 * 28  # of input at a time: bounds the activations
_REUSED_BYTES = 31 << 20
_FLOAT32_TERMS = 64  # up to so many float32 terms are added before they go into the float64 total


def clipped_sum(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor, clip_norm: float) -> Tensor:
    """The sum over patients of their mean gradients, each clipped to clip_norm as ONE vector.

    Args:
        loss: the mean over a patient's images.
        theta: float32 [P], where the gradients are taken.
        examples: the cohort.
        rows: int64 [patients, m], which examples each patient contributes; the valid ones come first.
        valid: bool [patients, m], at least one in a row.
        clip_norm: C.

    Returns:
        Float64 [P] on theta's device; zero for no patients. A gradient that is not finite contributes nothing.
    """
    theta = theta.detach()
    total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
    counts = valid.sum(1)
    method = _method(loss, theta, examples)
    # glibc gives freed memory back to the system, and getting it again costs up to a quarter of a step in page faults,
    # until it has seen a block of this size freed (mallopt(3), M_MMAP_THRESHOLD). The block itself is never touched.
    torch.empty(_REUSED_BYTES, dtype=torch.uint8)
    for images in sorted(set(counts.tolist())):
        group = rows[counts == images, :images].to(examples.device)
        for chunk in torch.split(group, _patients_at_once(method, theta.numel(), images, examples.z)):
            parts = list(_patient_gradients(method, loss, theta, examples.z[chunk], examples.y[chunk]))
            _add_clipped(total, parts, clip_norm)
    return total


def _add_clipped(total: Tensor, parts: list[Part], clip_norm: float) -> None:
    """Clip each patient's whole vector, which lies in stretches, and add all to the total."""
    squares = sum(torch.linalg.vector_norm(terms, dim=1).square() for _, terms in parts)
    norms = torch.as_tensor(squares).sqrt()
    factors = mechanism.clip_factors(norms, clip_norm)
    broken = not bool(torch.isfinite(norms).all())
    for offset, terms in parts:
        weights = factors
        if broken:  # 0 x NaN is NaN
            terms = torch.nan_to_num(terms, nan=0.0, posinf=0.0, neginf=0.0)
        if len(terms) > _FLOAT32_TERMS:
            terms, weights = terms.double(), factors.double()
        total[offset : offset + terms.shape[1]] += weights @ terms


def _patients_at_once(method: str, parameters: int, images: int, z: Tensor) -> int:
    if method == "loop":
        return 1
    if method == "vmap":
        return max(1, _VMAP_BYTES // (4 * parameters))
    pixels = z.shape[1:][-2:].numel()
    at_once = min(_FLOAT32_TERMS, _BOOKKEEPING_BYTES // (4 * parameters), _BOOKKEEPING_PIXELS // pixels)
    return max(1, at_once // images)


def _patient_gradients(method: str, loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> Iterator[Part]:
    """X [patients, images, ...], y int64 [patients, images] -> gradients of each patient's mean loss."""
    if method == "vmap":
        yield 0, vmap(grad(loss), in_dims=(None, 0, 0))(theta, x, y)
    elif method == "loop":
        yield 0, torch.stack([plain_gradient(loss, theta, *patient) for patient in zip(x, y, strict=True)])
    else:
        for offset, terms in image_gradients(loss, theta, x.flatten(0, 1), y.flatten()).items():
            yield offset, terms.view(*x.shape[:2], -1).mean(1) if x.shape[1] > 1 else terms


def plain_gradient(loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Plain autograd for ONE patient: x [images, ...], y int64 [images] -> float32 [P]."""
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(theta, x, y), theta)
    return gradient


_checked: dict[object, bool] = {}


def _method(loss: Loss, theta: Tensor, examples: Examples) -> str:
    if loss.per_patient == "vmap":
        return "vmap"
    model = getattr(loss, "model", None)
    key = (type(loss), getattr(model, "fingerprint", None), getattr(model, "layout", None), examples.z.shape[1:])
    if model is None or key not in _checked:
        _checked[key] = _bookkeeping_is_right(loss, theta, examples)
    return "bookkeeping" if _checked[key] else "loop"


def _bookkeeping_is_right(loss: Loss, theta: Tensor, examples: Examples) -> bool:
    """Compare with plain autograd, image by image, on random parameters and images: no private number is used.

    This finds what book-keeping does not cover, and layers that mix images.
    """
    device = theta.device
    theta = ((mechanism.uniform(theta.numel()) - 0.5) * 0.2).float().to(device)
    x = mechanism.uniform(3 * examples.z[0].numel()).view(3, *examples.z.shape[1:]).float().to(device)
    y = torch.tensor([0, 1, 0], device=device)
    try:
        pages = image_gradients(loss, theta, x, y)
    except UnsupportedError as reason:
        log.info("private gradients are computed a patient at a time: %s", reason)
        return False
    for image in range(3):
        plain = plain_gradient(loss, theta, x[image : image + 1], y[image : image + 1])
        kept = torch.zeros_like(plain)
        for offset, terms in pages.items():
            kept[offset : offset + terms.shape[1]] = terms[image]
        if not bool((plain - kept).norm() <= 1e-3 * plain.norm()):
            log.warning("private gradients are computed a patient at a time: book-keeping differs from autograd")
            return False
    return True
