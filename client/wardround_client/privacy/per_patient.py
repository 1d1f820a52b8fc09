"""Sums of clipped per-patient gradients, the heart of every private step, three ways with one result.

A patient's gradient is the mean over the chosen images, and over all variants of each (`wardround.augment`).

* bookkeeping (`bookkeeping.py`): one batched backward pass that keeps the gradients of single images apart, replayed
  from a tape (`tape.py`) where it can be. Fastest on a CPU for every model of ours: convolutions run with channels
  last, where pooling and normalisation are faster, which pays for keeping the gradients apart.
* vmap: torch.func.vmap over patients. The first choice on a GPU, and on a CPU for small models that book-keeping does
  not cover.
* loop: plain autograd, a patient at a time. Always right.

Which one is taken: `method.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.func import grad, vmap

from wardround.questions import Loss
from wardround_client.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.bookkeeping import image_gradients
from wardround_client.privacy.method import Method, plain_gradient, plan_of

__all__ = ["clipped_sum", "plain_gradient"]


@dataclass(frozen=True)
class _Part:
    """The gradients of a few patients in a stretch of theta that begins at offset: terms float32 [patients, length].

    Terms of one parameter may lie in another order than theta's: shape and steps (strides) are then the parameter's.
    """

    offset: int
    terms: Tensor
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, offset: int, terms: Tensor) -> _Part:
        """Terms [patients, *parameter's shape], in any memory format."""
        shape, steps = terms.shape[1:], terms.stride()[1:]
        flat = torch.empty_like(terms[:1]).stride() == terms[:1].stride() and terms.stride(0) == shape.numel()
        if not flat:
            terms = terms.contiguous()
            steps = terms.stride()[1:]
        return cls(offset, terms.as_strided((len(terms), shape.numel()), (shape.numel(), 1)), shape, steps)

    def means(self, counts: list[int]) -> _Part:
        """Over each patient's images, counts[i] of the i-th, one after another."""
        sizes = torch.tensor(counts)
        owner = torch.repeat_interleave(torch.arange(len(counts)), sizes).to(self.terms.device)
        sums = self.terms.new_zeros(len(counts), self.terms.shape[1]).index_add_(0, owner, self.terms)
        return replace(self, terms=sums.div_(sizes.to(sums.device).unsqueeze(1)))

    def weighted(self, factors: Tensor, into: Tensor) -> None:
        """Write the sum over patients of factor x gradient, in theta's order, to its place in a vector [P]."""
        place = into[self.offset : self.offset + self.terms.shape[1]]
        if len(self.steps) < 2 or self.steps == place.view(self.shape).stride():
            torch.mv(self.terms.T, factors, out=place)
        else:
            place.view(self.shape).copy_((factors @ self.terms).as_strided(self.shape, self.steps))


_GRADIENT_BYTES = {"bookkeeping": 16 << 20, "vmap": 64 << 20}  # of per-image gradients at a time
# Of input at a time, which bounds the activations. Fewer save memory and cost time: benchmarks/private_step.py.
_PIXELS = {"bookkeeping": 32 * 28 * 28, "vmap": 256 * 28 * 28}
_REUSED_BYTES = 31 << 20
_FLOAT32_TERMS = 64  # up to so many float32 terms are added before they go into the float64 total
_LEAST_IMAGES = 4  # in a batch
_SMALL_PAGE = 4096  # elements; neighbours below this are joined, because each page costs a few operations


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
        Float64 [P] on theta's device; zero for no patients. A gradient that is not finite contributes nothing.
    """
    theta = theta.detach()
    total = torch.zeros(theta.shape, dtype=torch.float64, device=theta.device)
    if not len(rows):
        return total
    # glibc gives freed memory back to the system, and getting it again costs up to half of a step in page faults,
    # until it has seen a block of this size freed (mallopt(3), M_MMAP_THRESHOLD). The block itself is never touched.
    torch.empty(_REUSED_BYTES, dtype=torch.uint8)
    for parts in _gradients(loss, theta, examples, rows, valid):
        total += _clipped(parts, theta, clip_norm)
    return total


def _clipped(parts: list[_Part], theta: Tensor, clip_norm: float) -> Tensor:
    """Clip each patient's whole vector, which lies in stretches, and add up: [P], float64 where many are added."""
    norms = torch.stack([torch.linalg.vector_norm(part.terms, dim=1) for part in parts]).norm(dim=0)
    factors = mechanism.clip_factors(norms, clip_norm)
    if not bool(factors.all()):  # a norm is not finite, and 0 x NaN is NaN
        parts = [replace(each, terms=torch.nan_to_num(each.terms, nan=0.0, posinf=0.0, neginf=0.0)) for each in parts]
    if len(factors) > _FLOAT32_TERMS:
        parts, factors = [replace(part, terms=part.terms.double()) for part in parts], factors.double()
    clipped = torch.zeros_like(theta, dtype=factors.dtype)
    for part in parts:
        part.weighted(factors, clipped)
    return clipped


def _gradients(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor) -> Iterator[list[_Part]]:
    """The gradients of a few patients at a time."""
    counts, variants = valid.sum(1), examples.variants
    plan = plan_of(loss, theta, examples)
    at_once = _images_at_once(plan.method, theta, examples)
    if plan.method == "bookkeeping":
        one_pass = plan.recorded.at(loss, theta) if plan.recorded else partial(image_gradients, loss, theta)
        images = rows[valid].to(examples.device)  # patient after patient
        for sizes in _packed((counts * variants).tolist(), at_once):
            taken = sum(sizes)
            chunk, images = images[: taken // variants], images[taken // variants :]
            pages = one_pass(*_filled(*examples.for_learning(chunk)))
            parts = _joined({offset: terms[:taken] for offset, terms in pages.items()})
            yield parts if max(sizes) == 1 else [part.means(sizes) for part in parts]
        return
    for size in sorted(set(counts.tolist())):
        group = rows[counts == size, :size].to(examples.device)
        for chunk in torch.split(group, max(1, at_once // (size * variants))):
            x, y = examples.for_learning(chunk)
            if plan.method == "vmap":
                yield [_Part.of(0, vmap(grad(loss), in_dims=(None, 0, 0))(theta, *_filled(x, y))[: len(x)])]
            else:
                yield [
                    _Part.of(0, torch.stack([plain_gradient(loss, theta, *each) for each in zip(x, y, strict=True)]))
                ]


def _filled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch, filled up to the least size with images of zeros, whose gradients nobody looks at.

    On CPUs, batches of one to three take other kernels than larger ones, in which an image's gradient has other last
    bits. So a patient who leaves would change others' gradients: by rounding alone, but a theta made of huge weights
    that cancel out blows rounding up to whole gradients (`wardround_client.batches`).
    """
    missing = _LEAST_IMAGES - len(x)
    if missing <= 0:
        return x, y
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]), torch.cat([y, y.new_zeros(missing, *y.shape[1:])])


def _images_at_once(method: Method, theta: Tensor, examples: Examples) -> int:
    if method == "loop":
        return 1
    at_once = _GRADIENT_BYTES[method] // (4 * theta.numel())
    if examples.z.dim() == 4:
        at_once = min(at_once, _FLOAT32_TERMS, _PIXELS[method] // examples.z.shape[2:].numel())
    return max(1, at_once)


def _packed(counts: list[int], limit: int) -> Iterator[list[int]]:
    """Split a list of counts, in order, into runs of about the same sum.

    A run adds up to at most the limit, or holds one count alone.
    """
    total = sum(counts)
    limit = ceil(total / ceil(total / limit))
    run: list[int] = []
    held = 0
    for count in counts:
        if run and held + count > limit:
            yield run
            run, held = [], 0
        run.append(count)
        held += count
    yield run


def _joined(pages: dict[int, Tensor]) -> list[_Part]:
    """Pages in the order of theta, small neighbours joined to one."""
    runs: list[tuple[int, list[Tensor]]] = []
    end, joinable = -1, False
    for offset, terms in sorted(pages.items()):
        small = terms[0].numel() < _SMALL_PAGE
        if small and joinable and offset == end:
            runs[-1][1].append(terms.flatten(1))
        else:
            runs.append((offset, [terms]))
        end, joinable = offset + terms[0].numel(), small
    return [
        _Part.of(offset, run[0] if len(run) == 1 else torch.cat([each.flatten(1) for each in run], dim=1))
        for offset, run in runs
    ]
