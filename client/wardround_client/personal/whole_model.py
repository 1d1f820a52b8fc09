"""An adapted model as one ONNX graph: what is done to an input, the encoder, the head, and probabilities at the end.

Only models that end in a classifier become a file. Methods that compare with their cases keep these, and a file that
holds a patient is none that may go to a ward's computer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.overrides import TorchFunctionMode

from wardround import __version__
from wardround.algorithms import Algorithm
from wardround.errors import ConfigError
from wardround.models import Model
from wardround.models.columns import Columns
from wardround.models.composed import Cells, Slices, Together
from wardround.models.encoder import GREATEST_VALUE, BuiltinEncoder
from wardround.models.extended import Extended
from wardround.models.from_outside import resized
from wardround.models.head import EncoderHead
from wardround.models.network import Network
from wardround.models.onnx_encoder import OnnxEncoder
from wardround.onnx_files import installed
from wardround.onnx_files.in_square import in_square
from wardround.onnx_files.real_waves import BuiltinModule, linearly
from wardround.task import Task
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.maps import WEIGHTS, grids, weights_of

INPUT, OUTPUT, MASK = "input", "probabilities", "mask"
Encode = Callable[[Tensor], Tensor]


def refusal(adapted: AdaptedModel) -> str:
    """Why this model cannot become a file; "" where it can, as far as can be told before it is tried."""
    algorithm, task = adapted.learner.algorithm, adapted.federation.task
    if type(algorithm).predict is not Algorithm.predict or set(adapted.fitted) - {"theta", WEIGHTS}:
        return f"{algorithm.name} compares with the cases that it was adapted to, and they would be in the file"
    if adapted.federation.model.encoder.endswith(".onnx") and task.kind != "image":
        return "its encoder is an ONNX file, which is joined to a head for images alone"
    if any(each.ranks for each in (task, *task.inputs)):
        return "ranks within a patient are no operator of ONNX"
    return ""


def written_whole(adapted: AdaptedModel, encoder: bytes = b"") -> bytes:
    """The file. encoder: the agreed file, where that is ONNX.

    Raises: ConfigError: it cannot be one, with the reason, or onnx is missing.
    """
    if why := refusal(adapted):
        raise _cannot(adapted, why)
    installed(Path("model.onnx"))
    from wardround.onnx_files.join import joined

    loss, task = adapted.learner.loss, adapted.federation.task
    model = loss.model.model if isinstance(loss.model, Extended) else loss.model
    theta, shift, scale = (each.detach().cpu() for each in (loss.own(adapted.fitted["theta"]), loss.shift, loss.scale))
    fixed, weights = _fixed(model, theta), torch.from_numpy(weights_of(adapted.fitted, len(task.classes)))

    def answer(z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = loss.labels.probabilities(fixed.logits(theta, z, shift, scale))
        if not task.dense:
            return found
        maps = grids(found, task.cells)
        if task.labels != "mask":
            return maps
        size = (task.image_size_px, task.image_size_px)
        larger = interpolate(maps, size, mode="bilinear", align_corners=False)
        return maps, (larger * weights.view(1, -1, 1, 1)).argmax(1)

    try:
        if isinstance(model, EncoderHead) and isinstance(picture := _picture(model.encoder), OnnxEncoder):
            parts = _around(picture, model.encoder, encoder, task, answer)
        else:
            encode = _encoding(model.encoder) if isinstance(model, EncoderHead) else model.encode
            parts = [_part(lambda x: answer(encode(x)), *task.input_shape)]
            if task.kind == "image":
                parts.insert(0, _fit(task, lambda x: x))
        return joined(parts, described(adapted))
    except (RuntimeError, NotImplementedError) as error:  # torch.onnx's errors are RuntimeErrors
        raise _cannot(adapted, f"a part of its network is no operator of ONNX ({type(error).__name__})") from None


def _part(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], *shape: int, sizes: Mapping[int, str] | None = None
) -> bytes:
    """A function of [1, *shape] as a file, but for the axes of `sizes`."""
    from wardround.onnx_files.export import written

    given = torch.zeros(1, *shape)
    module, names = _Module(function), [OUTPUT, MASK]
    with torch.no_grad():
        names = names[: 1 if isinstance(module(given), Tensor) else 2]
    return written(module, given, input_name=INPUT, output_names=names, metadata={}, sizes=sizes)


def _fit(task: Task, then: Encode) -> bytes:
    """What takes an image of any size."""
    side = task.image_size_px
    return _part(lambda x: then(in_square(x, side)), task.channels, side, side, sizes={2: "height", 3: "width"})


def _around(
    picture: OnnxEncoder, encoder: Any, data: bytes, task: Task, answer: Callable[[Tensor], Any]
) -> list[bytes]:
    """An encoder's file between what is done to an image before and what comes after."""
    from wardround.onnx_files.session import only

    report, dense = picture.report, isinstance(encoder, Cells)
    output = (report.map_size, report.map_size) if dense else ()
    bounded = partial(torch.clamp, min=-GREATEST_VALUE, max=GREATEST_VALUE)
    return [
        _fit(task, lambda x: resized(x, report.side, report.resize).expand(-1, report.channels, -1, -1)),
        only(data, "maps" if dense else "features"),
        _part(lambda z: answer(encoder.of_maps(bounded(z)) if dense else bounded(z)), report.features, *output),
    ]


def _picture(encoder: Any) -> Any:
    """What sees one image."""
    return encoder.encoder if isinstance(encoder, Cells) else encoder


def described(adapted: AdaptedModel) -> dict[str, Any]:
    """What the file says of itself: nothing of a patient, of the hospital or of its computers."""
    task = adapted.federation.task
    inputs = {
        "table": "[1, features], in their order, NaN where one is missing",
        "image": "[1, channels, height, width] of any size, pixels square, in [0, 1] as a viewer shows them",
        "volume": "[1, channels, depth, side, side], as `wardround hospital predict` makes it",
        "inputs": "[1, numbers], the inputs one after another, NaN where one is missing",
    }
    cells = f"{OUTPUT} [1, classes, rows, columns], of cells of the image fitted into a square"
    pixels = f"{MASK} [1, {task.image_size_px}, {task.image_size_px}]: the class of each pixel of that square"
    outputs = {"mask": f"{cells}; {pixels}", "points": cells}
    return {
        "wardround": __version__,
        "input": inputs[task.kind] + (f"; {task.measured}" if task.measured else ""),
        "features": list(task.features),
        "output": outputs.get(task.labels, f"{OUTPUT} [1, classes]"),
        "classes": list(task.classes),
        "weights": weights_of(adapted.fitted, len(task.classes)).tolist() if task.dense else [],
        "intended use": "research; not a medical device",
    }


def _fixed(model: Any, theta: Tensor) -> Model:
    """The same model whose trained part is at theta: a network that is given its parameters cannot be traced."""
    name = "head" if isinstance(model, EncoderHead) else "network"
    network: Network = getattr(model, name)
    module = copy.deepcopy(network.module)
    module.load_state_dict(network.layout.unpack(theta))
    found: Model = replace(model, **{name: _At(network, module)})
    return found


@dataclass(frozen=True)
class _At:
    """A `Network` at one theta, whatever it is given."""

    network: Network
    module: nn.Module

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


class _Module(nn.Module):
    """A function, whose filters that ONNX lacks are written as matrices."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """As the function."""
        with _Matrices():
            return self.function(x)


class _Matrices(TorchFunctionMode):
    """Inside, `interpolate` with an anti-aliasing filter is two products with matrices, and asinh a logarithm."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is interpolate and kwargs.get("antialias"):
            size = kwargs["size"] if "size" in kwargs else args[1]
            return linearly(args[0], int(size[0]))
        if func is pad and kwargs.get("mode") == "replicate":  # of which the exporter does not know the size
            return _edged(args[0], args[1][0])
        if func is Tensor.movedim:  # which the exporter writes with an axis below zero
            axes = [*range(args[0].ndim)]
            axes.insert(args[2] % args[0].ndim, axes.pop(args[1] % args[0].ndim))
            return args[0].permute(axes)
        if func is Tensor.asinh:
            return args[0].sign() * (args[0].abs() + (args[0].square() + 1).sqrt()).log()
        return func(*args, **kwargs)


def _edged(x: Tensor, pixels: int) -> Tensor:
    """With its outermost rows and columns repeated so many times."""
    for axis in (2, 3):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat([*[first] * pixels, x, *[last] * pixels], axis)
    return x


def _encoding(encoder: Any) -> Encode:
    """A frozen encoder with operators that ONNX has. Raises: NotImplementedError."""
    if isinstance(encoder, BuiltinEncoder):
        return BuiltinModule(encoder)
    if isinstance(encoder, Slices):
        return _MaskedSlices(_encoding(encoder.encoder))
    if isinstance(encoder, Together):
        parts = tuple(part if isinstance(part, Columns) else _encoding(part) for part in encoder.parts)
        return Together(parts, encoder.shapes)  # type: ignore[arg-type]  # it only calls them
    found: Encode = encoder
    return found


class _MaskedSlices:
    """`Slices` without a choice that depends on the volume: black slices are encoded too, and then not counted."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [1, channels, depth, S, S] -> float32 [1, features]."""
        slices = x[0].transpose(0, 1)
        there = slices.flatten(1).amax(1) > 0
        first = torch.arange(slices.shape[0]) == 0
        counted = (there | (first & ~there.any())).to(x.dtype).unsqueeze(1)
        z = self.encode(slices)
        mean = (z * counted).sum(0) / counted.sum()
        return torch.cat([mean, torch.where(counted > 0, z, -torch.inf).amax(0)])[None]


def _cannot(adapted: AdaptedModel, why: str) -> ConfigError:
    return ConfigError(
        f"{adapted.name} cannot be exported: {why}",
        do="use `wardround hospital predict`, or adapt a model of another algorithm",
    )
