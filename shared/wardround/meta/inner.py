"""Steps on one task without noise, as fast as torch takes them on a CPU: the inner loop of FOMAML, Reptile and MAML.

A task is its loss, in functions of theta alone. Results are those of plain autograd up to rounding; what makes them
fast (`benchmarks/meta_step.py`):

* images lie in memory with channels last, where pooling and normalisation cost a third;
* first-order steps keep no graph and hold the activations of a few images at a time, and theta is the leaf: no copy of
  a model is made;
* MAML's gradient goes back through the steps one at a time, and second derivatives of convolutions and group
  normalisations, which torch composes of dozens of operations, are written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import group_norm
from torch.overrides import TorchFunctionMode

from wardround.memory import laid_out
from wardround.questions import Shots

Part = Callable[[Tensor], Tensor]
"""theta float32 [P] -> float32 []."""

TaskLoss = Sequence[Part]
"""A loss is the sum of its parts, of whose graphs a first-order step holds one at a time."""

_aten = torch.ops.aten
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
            with _TwiceDifferentiable():
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


class _TwiceDifferentiable(TorchFunctionMode):
    """Replaces layers by ones whose second derivative is fast, and leaves everything else to autograd."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replace = _REPLACED.get(func)
        result = None if replace is None else replace(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or input.dim() != 4 or input.device.type != "cpu":
        return None
    pairs = [list(each) if isinstance(each, tuple | list) else [each] * 2 for each in (stride, padding, dilation)]
    out = cast(Tensor, _Convolution.apply(input, weight, (*pairs, groups)))  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias[:, None, None]


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    if weight is None or bias is None or input.dim() != 4 or input.device.type != "cpu":
        return None
    x = input.contiguous(memory_format=_memory_format(input))
    return cast(Tensor, _GroupNorm.apply(x, weight, bias, num_groups, eps))  # type: ignore[no-untyped-call]


def _memory_format(x: Tensor) -> torch.memory_format:
    """Of a tensor [n, channels, h, w]: the one that torch's kernels for x take."""
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format


_REPLACED: dict[Any, Callable[..., Tensor | None]] = {torch.conv2d: _conv2d, group_norm: _group_norm}


class _Convolution(torch.autograd.Function):
    """Bilinear in x and weight, so that every derivative is again a convolution or one of its two gradients.

    torch's own second derivative takes the gradient of the weight as a convolution whose kernel is a whole image.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: Any) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, None, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        return *_ConvolutionGradients.apply(g, x, weight, ctx.options, wanted), None  # type: ignore[no-untyped-call]


class _ConvolutionGradients(torch.autograd.Function):
    """(g, x, weight) -> the gradients of x and of weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, options: Any, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.options = options
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        return _gradients(g, x, weight, options, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, v_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        of_g = of_x = of_weight = None
        if v is not None:
            of_g = torch.conv2d(v, weight, None, *ctx.options)
            of_weight = _gradients(g, v, weight, ctx.options, (False, True))[1]
        if v_weight is not None:
            through_weight = torch.conv2d(x, v_weight, None, *ctx.options)
            of_g = through_weight if of_g is None else of_g.add_(through_weight)
            of_x = _gradients(g, x, v_weight, ctx.options, (ctx.needs_input_grad[1], False))[0]
        return of_g, of_x, of_weight, None, None


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, options: Any, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = options
    conv = stride, padding, dilation, False, [0, 0], groups
    found = _aten.convolution_backward(g, x, weight, None, *conv, [*wanted, False])
    return found[0], found[1]


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.sizes = x.shape[0], x.shape[1], x.shape[2:].numel(), groups
        out, mean, rstd = _aten.native_group_norm(x, gain, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, gain, mean, rstd)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, rstd = ctx.saved_tensors
        g = g.contiguous(memory_format=_memory_format(x))
        of = _GroupNormGradients.apply(g, x, gain, mean, rstd, ctx.sizes)  # type: ignore[no-untyped-call]
        return *of, None, None


class _GroupNormGradients(torch.autograd.Function):
    """(g, x, gain) -> the gradients of x, gain and bias, of which the first is r P(gain g).

    Here z = (x - mean) r is the normalised x, and P(a) = a - mean(a) - z mean(a z), with means over a group, takes the
    mean and the part along z away. P is symmetric, and so is most of what follows.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, sizes: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sizes = sizes
        ctx.save_for_backward(g, x, gain, mean, rstd)
        found = _aten.native_group_norm_backward(g, x, mean, rstd, gain, *sizes, [True] * 3)
        return cast(tuple[Tensor, Tensor, Tensor], found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor, v_gain: Tensor, v_bias: Tensor) -> tuple[Tensor | None, ...]:
        """Of L = <v, r P(gain g)> + <v_gain, sum g z> + <v_bias, sum g>, in sums a channel: [n, channels, 1, 1]."""
        g, x, gain, mean, rstd = ctx.saved_tensors
        n, channels, pixels, groups = ctx.sizes
        members = channels // groups
        v = v.contiguous(memory_format=_memory_format(x))

        def by_channel(group: Tensor) -> Tensor:
            return group.repeat_interleave(members, dim=1).view(n, channels, 1, 1)

        def over_pixels(a: Tensor) -> Tensor:
            return a.sum((2, 3), keepdim=True)

        def over_group(sums: Tensor) -> Tensor:
            return by_channel(sums.view(n, groups, members).sum(2) / (members * pixels))

        mean, r = by_channel(mean), by_channel(rstd)
        gain, v_gain, v_bias = (each.view(1, channels, 1, 1) for each in (gain, v_gain, v_bias))
        sum_g, sum_v, sum_vg = over_pixels(g), over_pixels(v), over_pixels(v * g)
        sum_gz = (over_pixels(g * x) - mean * sum_g) * r
        sum_vz = (over_pixels(v * x) - mean * sum_v) * r
        u, uz = over_group(gain * sum_g), over_group(gain * sum_gz)
        mean_v, mean_vz = over_group(sum_v), over_group(sum_vz)

        of_gain = (r * (sum_vg - mean_v * sum_g - mean_vz * sum_gz)).sum(0).flatten()
        # In g: gain r P(v) + v_gain z + v_bias.
        by_z = v_gain - gain * r * mean_vz
        of_g = torch.addcmul(v_bias - gain * r * mean_v - by_z * r * mean, x, by_z * r).addcmul_(v, gain * r)
        # In x, through z: r P(q), with q the derivative of L in z; and through r, which <v, P(gain g)> is a factor of.
        by_v, by_g = -r * uz, v_gain - r * gain * mean_vz
        q, qz = over_group(by_v * sum_v + by_g * sum_g), over_group(by_v * sum_vz + by_g * sum_gz)
        through_r = r * (over_group(gain * sum_vg) - mean_v * u - mean_vz * uz)
        by_x = -r * r * (qz + through_r)
        of_x = torch.addcmul(-r * q - by_x * mean, x, by_x).addcmul_(v, r * by_v).addcmul_(g, r * by_g)
        return of_g, of_x, of_gain, None, None, None
