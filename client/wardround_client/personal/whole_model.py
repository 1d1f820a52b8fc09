"""An adapted model as one ONNX graph: what is done to an input, the encoder, the head, and probabilities at the end.

Only models that end in a classifier become a file. Methods that compare with their cases keep these, and a file that
holds a patient is none that may go to a ward's computer.
"""

from __future__ import annotations

import copy
import json
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
from wardround.models.encoder import GREATEST_VALUE, BuiltinEncoder
from wardround.models.extended import Extended
from wardround.models.from_outside import resized
from wardround.models.head import EncoderHead
from wardround.models.network import Network
from wardround.models.onnx_encoder import OnnxEncoder
from wardround.onnx_files import installed
from wardround.onnx_files.real_waves import BuiltinModule, linearly
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.maps import WEIGHTS

INPUT, OUTPUT = "input", "probabilities"
Encode = Callable[[Tensor], Tensor]


def refusal(adapted: AdaptedModel) -> str:
    """Why this model cannot become a file; "" where it can, as far as can be told before it is tried."""
    algorithm, task = adapted.learner.algorithm, adapted.federation.task
    if type(algorithm).predict is not Algorithm.predict or set(adapted.fitted) - {"theta", WEIGHTS}:
        return f"{algorithm.name} compares with the cases that it was adapted to, and they would be in the file"
    if adapted.learner.loss.labels.places:
        return "what finds places among the cells of an image is no network"
    if any(each.ranks for each in (task, *task.inputs)):
        return "ranks within a patient are no operator of ONNX"
    return ""


def written_whole(adapted: AdaptedModel, encoder: Path) -> bytes:
    """The file. encoder: the folder of the federation's own, where it has one.

    Raises: ConfigError: it cannot be one, with the reason, or onnx is missing.
    """
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
        if isinstance(model, EncoderHead) and isinstance(model.encoder, OnnxEncoder):
            file = (encoder / adapted.federation.model.encoder).read_bytes()
            return _around(file, model.encoder, given, answer, metadata=metadata)
        encode = model.encode if not isinstance(model, EncoderHead) else _encoding(model.encoder)
        module = _Module(lambda x: answer(encode(x)))
        return written(module, given, input_name=INPUT, output_names=[OUTPUT], metadata=metadata)
    except (RuntimeError, NotImplementedError) as error:  # torch.onnx's errors are RuntimeErrors
        raise _cannot(adapted, f"a part of its network is no operator of ONNX ({type(error).__name__})") from None


def described(adapted: AdaptedModel) -> dict[str, Any]:
    """What the file says of itself: nothing of a patient, of the hospital or of its computers."""
    task = adapted.federation.task
    table = "columns in the order of `features`, NaN where one is missing"
    return {
        "wardround": __version__,
        "input": table if task.kind == "table" else "intensities in [0, 1], made as `wardround hospital predict` does",
        "features": list(task.features),
        "output": f"{OUTPUT} [k, classes], k the cells of an image, row by row; 1 where it has none",
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
            return linearly(args[0], int(args[1][0]))
        return func(*args, **kwargs)


def _encoding(encoder: Any) -> Encode:
    """A frozen encoder with operators that ONNX has. Raises: NotImplementedError."""
    if isinstance(encoder, OnnxEncoder):
        raise NotImplementedError("an ONNX encoder within another")
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


def _around(file: bytes, encoder: OnnxEncoder, given: Tensor, answer: Encode, *, metadata: dict[str, Any]) -> bytes:
    """A graph from outside, with what comes before and after it."""
    import onnx

    from wardround.onnx_files.export import written
    from wardround.onnx_files.session import only

    report = encoder.report

    def before(x: Tensor) -> Tensor:
        return resized(x, report.side, report.resize).expand(-1, report.channels, -1, -1)

    def after(z: Tensor) -> Tensor:
        return answer(z.clamp(-GREATEST_VALUE, GREATEST_VALUE))

    features = torch.zeros(1, report.features)
    named: dict[str, Any] = {"metadata": {}, "opset": report.opset}
    start = written(_Module(before), given, input_name=INPUT, output_names=["image"], **named)
    end = written(_Module(after), features, input_name="features", output_names=[OUTPUT], **named)
    parts = [onnx.ModelProto.FromString(each) for each in (start, only(file, "features"), end)]
    graph = onnx.GraphProto(name="adapted")
    for number, part in enumerate(parts):
        within, last = f"part{number}/", number == len(parts) - 1
        known = {part.graph.input[0].name: INPUT if number == 0 else f"between{number}"}
        known[part.graph.output[0].name] = OUTPUT if last else f"between{number + 1}"
        for node in part.graph.node:
            for side in (node.input, node.output):
                side[:] = [known.get(name, within + name) if name else "" for name in side]
        for weight in part.graph.initializer:
            weight.name = within + weight.name
        graph.node.extend(part.graph.node)
        graph.initializer.extend(part.graph.initializer)
    graph.input.add().CopyFrom(parts[0].graph.input[0])
    graph.output.add().CopyFrom(parts[-1].graph.output[0])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", report.opset)])
    model.ir_version = max(each.ir_version for each in parts)
    model.metadata_props.add(key="wardround", value=json.dumps(metadata))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _cannot(adapted: AdaptedModel, why: str) -> ConfigError:
    return ConfigError(
        f"{adapted.name} cannot be exported: {why}",
        do="use `wardround hospital predict`, or adapt a model of another algorithm",
    )
