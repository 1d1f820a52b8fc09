"""Gradients of single images out of ONE batched backward pass.

In a network that treats images apart, a layer's weight gradient is a sum over images of a product of the layer's input
and of the gradient at its output (Goodfellow, "Efficient per-example gradient computations", 2015). So the layers that
hold parameters, while the loss is computed, are replaced by ones that keep the terms of that sum instead of adding
them. For a convolution the images become the groups of ONE grouped convolution, whose weight gradient is the terms
(Rochette et al., "Efficient per-example gradient computations in convolutional neural networks", 2019). Nothing of the
model has to change: any function of (theta, x, y) is run under a torch function mode, and a weight is known by its
place in theta's memory.

Covered: linear, conv2d, group_norm. Any other use of theta is noticed (autograd then still finds a path
to theta) and raises `UnsupportedError`; layers that mix images are for the caller's check to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from wardround.memory import laid_out
from wardround.questions import Loss
from wardround_client.privacy.tape import Tape, record

_aten = torch.ops.aten
# Where a product with unfolded images is faster than a grouped convolution (measured on one thread, AVX-512).
_SMALL_PATCH = 64
_FEW_PIXELS = 16


class UnsupportedError(Exception):
    """The loss uses theta in a way that book-keeping does not cover."""


class _Book:
    """Where the terms are kept: offset into theta -> float32 [images, *the parameter's shape]."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        # Something that asks for a gradient, so that the first layer's backward runs though its input asks for none.
        self.anchor = torch.zeros((), device=theta.device, requires_grad=True)
        self.pages: dict[int, Tensor] = {}

    def holds(self, *parameters: Tensor | None) -> bool:
        """Whether all of these are stretches of theta or constants, and at least one is a stretch."""
        learned = [each for each in parameters if each is not None and each.requires_grad]
        return bool(learned) and all(self._is_stretch(each) for each in learned)

    def place(self, parameter: Tensor | None) -> int | None:
        """Offset of a stretch of theta; None of a constant."""
        if parameter is None or not parameter.requires_grad:
            return None
        return int(parameter.storage_offset() - self.theta.storage_offset())

    def keep(self, place: int | None, terms: Callable[[], Tensor]) -> None:
        """Note the terms of the parameter at a place; a parameter used twice adds up."""
        if place is not None:
            new = terms()
            self.pages[place] = self.pages[place] + new if place in self.pages else new

    def _is_stretch(self, tensor: Tensor) -> bool:
        return tensor.is_contiguous() and (
            tensor.untyped_storage().data_ptr() == self.theta.untyped_storage().data_ptr()
        )


def image_gradients(loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> dict[int, Tensor]:
    """The gradient of each image's own loss.

    Args:
        loss: the mean over images of a loss of each.
        theta: float32 [P], contiguous.
        x: [images, ...].
        y: int64 [images].

    Returns:
        Offset into theta -> float32 [images, *the parameter's shape], in any memory format; stretches of theta that no
        layer used are absent (zero).

    Raises: UnsupportedError.
    """
    theta = theta.detach().contiguous().requires_grad_()
    book = _Book(theta)
    with _Keeping(book):
        value = loss(theta, x, y)
    # The loss is a mean over the images: times their number, each image's own loss has weight 1.
    weight = torch.full_like(value, len(x))
    beside: Tensor | None = torch.autograd.grad(value, (theta, book.anchor), weight, allow_unused=True)[0]
    if beside is not None:
        raise UnsupportedError("parameters are used beside linear, conv2d and group_norm")
    return book.pages


class Recorded:
    """`image_gradients` of losses that differ in their tensors alone; from a tape where the same shapes come again."""

    def __init__(self) -> None:
        self._tapes: dict[object, Tape | None] = {}

    def at(self, loss: Loss, theta: Tensor) -> Callable[[Tensor, Tensor], dict[int, Tensor]]:
        """`image_gradients` of this loss at this theta, a function of (x, y). It must do the same for all values."""
        bound: dict[object, Callable[[Tensor, Tensor], dict[int, Tensor]]] = {}
        theta = theta.detach().contiguous()

        def gradients(x: Tensor, y: Tensor) -> dict[int, Tensor]:
            shapes = x.shape, x.stride(), y.shape
            if shapes not in self._tapes:  # making a tape pays off only if it is used
                self._tapes[shapes] = None
                return image_gradients(loss, theta, x, y)
            tape = self._tapes[shapes]
            if tape is None:
                pages, self._tapes[shapes] = taped_gradients(loss, theta, x, y)
                return pages
            if shapes not in bound:
                bound[shapes] = tape.at(theta, tensors_of(loss))
            return bound[shapes](x, y)

        return gradients


def taped_gradients(loss: Loss, theta: Tensor, x: Tensor, y: Tensor) -> tuple[dict[int, Tensor], Tape]:
    """`image_gradients`, and a tape of how they were made. Raises: UnsupportedError, NotRecordableError."""
    return record(lambda *inputs: image_gradients(loss, *inputs), theta, x, y, tensors_of(loss))


def tensors_of(loss: Loss) -> dict[str, Tensor]:
    """A loss' own tensors, by the names of its dataclass fields; none of another loss."""
    held: object = loss
    if not is_dataclass(held):
        return {}
    values = {each.name: getattr(loss, each.name) for each in fields(held)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _convolution_terms(x: Tensor, g: Tensor, weight: Tensor, options: Any) -> Tensor:
    """X [n, in, h, w], g [n, out, h', w'] -> [n, *weight's shape], the gradients of a convolution's weight."""
    stride, padding, dilation, groups = options
    images, outputs, pixels = len(x), len(weight), g.shape[2:].numel()
    patch = weight[0].numel()
    if groups == 1 and patch < min(outputs, _SMALL_PATCH):
        patches = torch.nn.functional.unfold(x, weight.shape[2:], dilation, padding, stride)  # [n, patch, pixels]
        terms = torch.bmm(patches, g.flatten(2).transpose(1, 2))
        return terms.transpose(1, 2).view(images, *weight.shape)
    if groups == 1 and pixels <= _FEW_PIXELS:
        terms = torch.bmm(g.flatten(2), _patches_last(x, g, weight, options))  # [n, out, kernel x in]
        return terms.view(images, outputs, *weight.shape[2:], -1).permute(0, 1, 4, 2, 3)
    # One convolution in which each image is a group of its own: the gradient of its weight is the terms.
    one_x, one_g = (each.contiguous().view(1, -1, *each.shape[2:]) for each in (x, g))
    many = weight.new_empty(images * outputs, *weight.shape[1:])  # for its shape alone
    conv = stride, padding, dilation, False, [0, 0], images * groups
    kept: Tensor = _aten.convolution_backward(one_g, one_x, many, None, *conv, [False, True, False])[1]
    return kept.contiguous().view(images, *weight.shape)


def _patches_last(x: Tensor, g: Tensor, weight: Tensor, options: Any) -> Tensor:
    """X unfolded, [n, pixels of g, kernel x in], channels last throughout: one copy of whole rows."""
    (down, right), (top, left), (every, nth), _ = options
    padded = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    image, row, pixel, channel = padded.stride()
    shape = len(x), *g.shape[2:], *weight.shape[2:], x.shape[1]
    steps = image, row * down, pixel * right, row * every, pixel * nth, channel
    return padded.as_strided(shape, steps).reshape(len(x), g.shape[2:].numel(), -1)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor | None, options: Any, book: _Book, places: Any
    ) -> Tensor:
        ctx.book, ctx.options, ctx.places = book, options, places
        x, weight = laid_out(x), laid_out(weight)
        ctx.save_for_backward(x, weight)
        return laid_out(torch.conv2d(x, weight, bias, *options))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = laid_out(g)
        stride, padding, dilation, groups = ctx.options

        ctx.book.keep(ctx.places[0], lambda: _convolution_terms(x, g, weight, ctx.options))
        ctx.book.keep(ctx.places[1], lambda: g.sum((2, 3)))
        gx = None
        if ctx.needs_input_grad[0]:
            conv = stride, padding, dilation, False, [0, 0], groups
            gx = _aten.convolution_backward(g, x, weight, None, *conv, [True, False, False])[0]
        return gx, *[None] * 6


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor | None, book: _Book, places: Any
    ) -> Tensor:
        ctx.book, ctx.places = book, places
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ctx.book.keep(ctx.places[0], lambda: torch.einsum("b...o,b...i->boi", g, x))
        ctx.book.keep(ctx.places[1], lambda: g.flatten(1, -2).sum(1) if g.dim() > 2 else g.clone())
        return g @ weight if ctx.needs_input_grad[0] else None, *[None] * 5


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor, bias: Tensor, options: Any, book: _Book, places: Any
    ) -> Tensor:
        ctx.book, ctx.places = book, places
        groups, eps = options
        x = laid_out(x)
        ctx.sizes = x.shape[0], x.shape[1], x.shape[2:].numel(), groups
        out, mean, rstd = _aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        _, channels, _, groups = ctx.sizes
        g = laid_out(g)
        pixels = tuple(range(2, g.dim()))
        g_sum = g.sum(pixels)

        def weight_terms() -> Tensor:
            # sum of g (x - mean) rstd over pixels, without making the normalised image again
            products, sums = ((each.view(-1, groups, channels // groups)) for each in ((g * x).sum(pixels), g_sum))
            return torch.addcmul(products, mean.unsqueeze(2), sums, value=-1).mul(rstd.unsqueeze(2)).flatten(1)

        ctx.book.keep(ctx.places[0], weight_terms)
        ctx.book.keep(ctx.places[1], lambda: g_sum)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = _aten.native_group_norm_backward(g, x, mean, rstd, weight, *ctx.sizes, [True, False, False])[0]
        return gx, *[None] * 6


class _Keeping(TorchFunctionMode):
    """Replaces layers whose parameters lie in theta, and leaves everything else to autograd."""

    def __init__(self, book: _Book) -> None:
        super().__init__()
        self.book = book

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replace = _REPLACED.get(func)
        kept = None if replace is None else replace(self.book, *args, **kwargs)
        return func(*args, **kwargs) if kept is None else kept


def _conv2d(
    book: _Book,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or input.dim() != 4 or not book.holds(weight, bias):
        return None
    options = [list(each) if isinstance(each, tuple | list) else [each] * 2 for each in (stride, padding, dilation)]
    places = book.place(weight), book.place(bias)
    return _applied(_Conv2d, input, book, weight, bias, (*options, groups), book, places)


def _linear(book: _Book, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if input.dim() < 2 or not book.holds(weight, bias):
        return None
    return _applied(_Linear, input, book, weight, bias, book, (book.place(weight), book.place(bias)))


def _group_norm(
    book: _Book,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor | None:
    if weight is None or bias is None or not book.holds(weight, bias):
        return None
    places = book.place(weight), book.place(bias)
    return _applied(_GroupNorm, input, book, weight, bias, (num_groups, eps), book, places)


def _applied(function: Any, input: Tensor, book: _Book, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Detached parameters: autograd shall find no second way to theta."""
    kept: Tensor = function.apply(input, book.anchor, weight.detach(), None if bias is None else bias.detach(), *rest)
    return kept


_REPLACED: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv2d: _conv2d,
    torch.nn.functional.linear: _linear,
    torch.nn.functional.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}
