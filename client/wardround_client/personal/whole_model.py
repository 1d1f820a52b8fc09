"""An adapted model as one ONNX graph: what is done to an input, the encoder, the head, and probabilities at the end.

Only models that end in a classifier become a file. Methods that compare with their cases keep these, and a file that
holds a patient is none that may go to a ward's computer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from wardround import __version__
from wardround.algorithms import Algorithm
from wardround.errors import ConfigError
from wardround.models import Model
from wardround.models.columns import Columns
from wardround.models.composed import Slices, Together
from wardround.models.encoder import BuiltinEncoder
from wardround.models.extended import Extended
from wardround.models.head import EncoderHead
from wardround.models.network import Network
from wardround.onnx_files import installed
from wardround.onnx_files.in_square import in_square
from wardround.onnx_files.real_waves import BuiltinModule, linearly
from wardround.task import Task
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.maps import WEIGHTS

INPUT, OUTPUT = "input", "probabilities"
Encode = Callable[[Tensor], Tensor]


def refusal(adapted: AdaptedModel) -> str:
    """Why this model cannot become a file; "" where it can, as far as can be told before it is tried."""
    algorithm, task = adapted.learner.algorithm, adapted.federation.task
    if type(algorithm).predict is not Algorithm.predict or set(adapted.fitted) - {"theta", WEIGHTS}:
        return f"{algorithm.name} compares with the cases that it was adapted to, and they would be in the file"
    if adapted.learner.loss.labels.dense:
        return "masks and places are made of an image's cells outside of the network"
    if adapted.federation.model.encoder.endswith(".onnx"):
        return "its encoder is an ONNX file already, which is not joined to a head yet"
    if any(each.ranks for each in (task, *task.inputs)):
        return "ranks within a patient are no operator of ONNX"
    return ""


def written_whole(adapted: AdaptedModel) -> bytes:
    """The file. Raises: ConfigError: it cannot be one, with the reason, or onnx is missing."""
    if why := refusal(adapted):
        raise _cannot(adapted, why)
    installed(Path("model.onnx"))
    from wardround.onnx_files.export import written

    loss, task = adapted.learner.loss, adapted.federation.task
    model = loss.model.model if isinstance(loss.model, Extended) else loss.model
    theta, shift, scale = (each.detach().cpu() for each in (loss.own(adapted.fitted["theta"]), loss.shift, loss.scale))

    fixed = _fixed(model, theta)

    def answer(z: Tensor) -> Tensor:
        return loss.labels.probabilities(fixed.logits(theta, z, shift, scale))

    given, metadata = torch.zeros(1, *task.input_shape), described(adapted)
    try:
        encode = model.encode if not isinstance(model, EncoderHead) else _encoding(model.encoder)
        before, sizes = fitting(task)
        module = _Module(lambda x: answer(encode(before(x))))
        return written(module, given, input_name=INPUT, output_names=[OUTPUT], metadata=metadata, sizes=sizes)
    except (RuntimeError, NotImplementedError) as error:  # torch.onnx's errors are RuntimeErrors
        raise _cannot(adapted, f"a part of its network is no operator of ONNX ({type(error).__name__})") from None


def fitting(task: Task) -> tuple[Encode, dict[int, str]]:
    """How an input becomes one of the cohort, and which of its axes may have any length."""
    if task.kind != "image":
        return lambda x: x, {}
    return lambda x: in_square(x, task.image_size_px), {2: "height", 3: "width"}


def described(adapted: AdaptedModel) -> dict[str, Any]:
    """What the file says of itself: nothing of a patient, of the hospital or of its computers."""
    task = adapted.federation.task
    inputs = {
        "table": "[1, features], in their order, NaN where one is missing",
        "image": "[1, channels, height, width] of any size, pixels square, in [0, 1] as a viewer shows them",
        "volume": "[1, channels, depth, side, side], as `wardround hospital predict` makes it",
        "inputs": "[1, numbers], the inputs one after another, NaN where one is missing",
    }
    return {
        "wardround": __version__,
        "input": inputs[task.kind] + (f"; {task.measured}" if task.measured else ""),
        "features": list(task.features),
        "output": f"{OUTPUT} [1, classes]",
        "classes": list(task.classes),
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

    def __init__(self, function: Encode) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """As the function."""
        with _Matrices():
            return self.function(x)


class _Matrices(TorchFunctionMode):
    """Inside, `interpolate` with an anti-aliasing filter is two products with matrices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is interpolate and kwargs.get("antialias"):
            size = kwargs["size"] if "size" in kwargs else args[1]
            return linearly(args[0], int(size[0]))
        return func(*args, **kwargs)


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
