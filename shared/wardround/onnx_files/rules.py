"""Which ONNX graphs are encoders: one image in, `features` and perhaps `maps` out, and nothing but arithmetic between.

What a graph computes, where in memory, and how much, must follow from the file and never from an image: then a look at
a blank image says what every image will take, and an image can neither end a hospital's process nor make it wait. So
beside a list of operators two rules hold: with a batch of 1 every shape is a number that inference finds, and no
integer follows from the image, because integers are places and lengths.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

OPSETS = range(11, 24)
# As of `own_encoder`: what one image may take, on shapes alone.
MOST_OPERATIONS, MOST_NUMBERS, MOST_MAP_NUMBERS = 5 * 10**11, 1 << 30, 1 << 25
MOST_NODES, MOST_FEATURES, GREATEST_WINDOW = 20_000, 4096, 1024
SIDES = range(8, 1025)
RESIZES = ("bilinear", "bicubic")
METADATA = "wardround"
# By point, linear, normalisations, pooling, reductions, and of shape.
OPERATORS = frozenset(
    " ".join(
        (
            "Abs Add And Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid",
            "HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal",
            "Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu Where",
            "Conv ConvTranspose Gemm MatMul",
            "BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LogSoftmax",
            "LpNormalization MeanVarianceNormalization RMSNormalization Softmax",
            "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool",
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum",
            "ReduceSumSquare",
            "Cast CastLike Concat Constant ConstantOfShape DepthToSpace Dropout Expand Flatten Gather Pad Range",
            "Reshape Resize Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
        )
    ).split()
)
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8}
TYPES = FLOATS | INTEGERS | {TensorProto.BOOL}
VALUES = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR,
    AttributeProto.FLOATS, AttributeProto.INTS,
}  # fmt: skip
WINDOWS = {
    "kernel_shape",
    "strides",
    "dilations",
    "pads",
    "output_padding",
    "output_shape",
    "group",
    "size",
    "blocksize",
}


class Refused(Exception):
    """A file is no encoder that may be run; the message says why, and may quote names of the file."""


@dataclass(frozen=True)
class Found:
    """A graph that may be run. facts: a Report's, but for what is measured."""

    facts: dict[str, Any]

    def blank(self) -> NDArray[np.float32]:
        """An image of zeros, as the graph takes it."""
        return np.zeros((1, self.facts["channels"], self.facts["side"], self.facts["side"]), np.float32)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        return ("features", "maps") if self.facts["map_size"] else ("features",)

    def check_output(self, name: str, values: NDArray[np.float32]) -> None:
        """Of the blank image. Raises: Refused."""
        features, size = self.facts["features"], self.facts["map_size"]
        shape = (1, features) if name == "features" else (1, features, size, size)
        if values.shape != shape or values.dtype != np.float32:
            raise Refused(f"{name} is {values.dtype} {list(values.shape)}, not float32 {list(shape)}")
        if not np.isfinite(values).all():
            raise Refused(f"{name} of a blank image are not finite numbers")


def checked(data: bytes) -> Found:
    """Every rule but the run. Raises: Refused."""
    try:
        model = ModelProto.FromString(data)
    except Exception as error:  # protobuf's own, or memory
        raise Refused(f"it is not ONNX: {type(error).__name__}") from None
    opset = _opset(model)
    graph = model.graph
    _check_nodes(graph)
    parameters = _check_weights(graph)
    _check_valid(model)
    channels, side = _check_input(graph)
    _check_names(graph)
    shapes = _inferred(model)
    _check_integers(graph, shapes)
    sizes = _sizes(graph, shapes)
    numbers, operations = sum(math.prod(sizes[name]) for node in graph.node for name in node.output if name), 0
    if numbers > MOST_NUMBERS:
        raise Refused(f"one image makes {numbers:,} numbers on the way, at most {MOST_NUMBERS:,} are allowed")
    for node in graph.node:
        operations += _operations(node, sizes)
        _check_mirrored(node, sizes)
    if operations > MOST_OPERATIONS:
        raise Refused(f"one image takes {operations:.2g} operations, at most {MOST_OPERATIONS:.0e} are allowed")
    facts = {
        "channels": channels,
        "side": side,
        **_check_outputs(graph, shapes, sizes),
        "resize": _resize(model),
        "opset": opset,
        "operators": dict(Counter(node.op_type for node in graph.node)),
        "parameters": parameters,
        "operations": operations,
        "numbers": numbers,
    }
    return Found(facts)


def _opset(model: ModelProto) -> int:
    if model.functions or model.training_info or model.graph.sparse_initializer or model.graph.quantization_annotation:
        raise Refused("it holds functions, training, sparse or quantised parts; allowed: one plain graph")
    if any(each.key == "ort_config" for each in model.metadata_props):
        raise Refused("its metadata configure onnxruntime (ort_config)")
    found = {each.domain: each.version for each in model.opset_import}
    if unknown := sorted(set(found) - {"", "ai.onnx"} - _unused(model, found)):
        raise Refused(f"operators of {', '.join(map(repr, unknown[:3]))}; allowed: the standard domain ai.onnx alone")
    version = found.get("", found.get("ai.onnx", 0))
    if version not in OPSETS:
        raise Refused(f"operator set {version}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    return version


def _unused(model: ModelProto, domains: Iterable[str]) -> set[str]:
    """Domains that an exporter names and no node uses."""
    return set(domains) - {node.domain for node in model.graph.node}


def _check_nodes(graph: GraphProto) -> None:
    if len(graph.node) > MOST_NODES:
        raise Refused(f"{len(graph.node):,} nodes; allowed: {MOST_NODES:,}")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise Refused(f"operator {node.op_type!r}" + (f" of {node.domain!r}" if node.domain else ""))
        for attribute in node.attribute:
            _check_attribute(node, attribute)
        if node.op_type == "Dropout" and any(node.input[2:]):
            raise Refused("Dropout that may be training")
        if node.op_type == "BatchNormalization" and len([each for each in node.output if each]) > 1:
            raise Refused("BatchNormalization that is training")


def _check_attribute(node: NodeProto, attribute: AttributeProto) -> None:
    what = f"{node.op_type}.{attribute.name}"
    if attribute.type not in VALUES or attribute.ref_attr_name or attribute.HasField("g") or attribute.graphs:
        raise Refused(f"{what} is neither numbers, text nor a tensor")
    if attribute.name == "training_mode" and attribute.i:
        raise Refused(f"{what}: an encoder is not training")
    numbers = list(attribute.ints) if attribute.type == AttributeProto.INTS else [attribute.i]
    if attribute.name in WINDOWS:
        most = 1 << 20 if attribute.name in ("group", "output_shape") else GREATEST_WINDOW
        least = 0 if "pad" in attribute.name else 1
        if not all(least <= each <= most for each in numbers):
            raise Refused(f"{what} = {numbers[:8]}; allowed: {least} to {most:,}")
    if not all(math.isfinite(each) for each in (attribute.f, *attribute.floats)):
        raise Refused(f"{what} is not finite")


def _check_weights(graph: GraphProto) -> int:
    """How many numbers they are."""
    parameters = 0
    for tensor in _tensors(graph):
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data or tensor.HasField("segment"):
            raise Refused(f"{tensor.name!r} lies in another file; allowed: all weights within this one")
        if tensor.data_type not in TYPES:
            raise Refused(f"{tensor.name!r} is of type {tensor.data_type}; allowed: floats, integers and truth values")
        if len(tensor.dims) > 8 or any(not 0 <= each <= 1 << 31 for each in tensor.dims):
            raise Refused(f"{tensor.name!r} has dimensions {list(tensor.dims)[:8]}")
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except Exception:
            raise Refused(f"{tensor.name!r} holds other bytes than its dimensions say") from None
        if tensor.data_type in FLOATS and not np.isfinite(array).all():
            raise Refused(f"{tensor.name!r} holds numbers that are not finite")
        parameters += array.size
    return parameters


def _tensors(graph: GraphProto) -> Iterable[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def _check_input(graph: GraphProto) -> tuple[int, int]:
    """Channels and side of an image; the batch becomes 1."""
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise Refused(f"{len(inputs)} inputs; allowed: one, the image")
    tensor = inputs[0].type.tensor_type
    dims = tensor.shape.dim
    if tensor.elem_type != TensorProto.FLOAT or len(dims) != 4:
        raise Refused("its input is not float32 [n, channels, side, side]")
    channels, height, width = (each.dim_value if each.HasField("dim_value") else 0 for each in dims[1:])
    if dims[0].HasField("dim_value") and dims[0].dim_value != 1:
        raise Refused(f"its input is a batch of {dims[0].dim_value}; allowed: 1, or any number")
    if channels not in (1, 3) or height != width or height not in SIDES:
        raise Refused(
            f"its input is [n, {channels or '?'}, {height or '?'}, {width or '?'}]; allowed: [n, 1 or 3, side, side],"
            f" of fixed sides, {SIDES[0]} to {SIDES[-1]} pixels"
        )
    dims[0].dim_value = 1
    return channels, height


def _check_names(graph: GraphProto) -> None:
    outputs = [each.name for each in graph.output]
    if outputs not in (["features"], ["features", "maps"], ["maps", "features"]):
        raise Refused(f"outputs {', '.join(outputs[:8])}; allowed: features, and maps beside them")
    # What the file says of shapes does not count: inference says it, or nobody.
    del graph.value_info[:]
    for each in graph.output:
        each.type.tensor_type.ClearField("shape")


def _check_valid(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise _invalid(error) from None


def _invalid(error: Exception) -> Refused:
    lines = str(error).strip().splitlines()
    return Refused(f"it is not valid ONNX: {lines[0] if lines else type(error).__name__}")


def _inferred(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """The type of every value, by name."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:
        raise _invalid(error) from None
    found: dict[str, TypeProto.Tensor] = {
        each.name: each.type.tensor_type for each in (*graph.input, *graph.value_info, *graph.output)
    }
    for tensor in graph.initializer:
        of_weight = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        found[tensor.name] = of_weight.type.tensor_type
    return found


def _sizes(graph: GraphProto, types: Mapping[str, TypeProto.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every value."""
    sizes = {}
    made = {name: node for node in graph.node for name in node.output if name}
    for name in (*made, *(each for each in types if each not in made)):
        node = made.get(name)
        what = f"the output of {node.op_type} {name!r}" if node else repr(name)
        dims = types[name].shape.dim if name in types and types[name].HasField("shape") else None
        if dims is None or not all(each.HasField("dim_value") and each.dim_value >= 0 for each in dims):
            raise Refused(
                f"the shape of {what} does not follow from the file; export for fixed sides and a batch of 1, and fold"
                " constants"
            )
        sizes[name] = tuple(each.dim_value for each in dims)
    return sizes


def _check_integers(graph: GraphProto, types: Mapping[str, TypeProto.Tensor]) -> None:
    weights = {each.name for each in graph.initializer}
    of_image = {each.name for each in graph.input if each.name not in weights}
    for node in graph.node:  # in an order of computation, as the checker made sure
        if node.op_type in ("Shape", "Size") or not of_image & set(node.input):
            continue
        for name in filter(None, node.output):
            of_image.add(name)
            kind = types[name].elem_type if name in types else TensorProto.UNDEFINED
            if kind not in FLOATS | {TensorProto.BOOL}:
                raise Refused(
                    f"{node.op_type} {name!r} makes integers of an image; allowed: integers of the file alone"
                )
    if missing := {each.name for each in graph.output} - of_image:
        raise Refused(f"{', '.join(sorted(missing))} do not follow from the image")


def _check_mirrored(node: NodeProto, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """A border that mirrors or repeats an image may not be wider than the image, or it is read beside it."""
    mode = next((each.s for each in node.attribute if each.name == "mode"), b"constant")
    if node.op_type == "Pad" and mode != b"constant":
        for before, after in zip(sizes[node.input[0]], sizes[node.output[0]], strict=True):
            if after - before > max(0, before - 1):
                raise Refused(f"Pad by {after - before} of {before} pixels; allowed: fewer than there are")


def _operations(node: NodeProto, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Floating point operations of one image, at least one a number that is read or written."""
    inputs, outputs = [sizes[each] for each in node.input if each], [sizes[each] for each in node.output if each]
    out = math.prod(outputs[0])
    if node.op_type == "Conv":
        return 2 * out * math.prod(inputs[1][1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type == "MatMul":
        return 2 * out * inputs[0][-1]
    if node.op_type == "Gemm":
        return 2 * out * (math.prod(inputs[0]) // max(1, outputs[0][0]))
    window = next((math.prod(each.ints) for each in node.attribute if each.name == "kernel_shape"), 1)
    window *= next((each.i for each in node.attribute if each.name == "size"), 1)  # of LRN
    return window * (out + sum(math.prod(each) for each in inputs))


def _check_outputs(
    graph: GraphProto, types: Mapping[str, TypeProto.Tensor], sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    outputs = {each.name: sizes[each.name] for each in graph.output}
    features, maps = outputs["features"], outputs.get("maps")
    if any(types[each.name].elem_type != TensorProto.FLOAT for each in graph.output):
        raise Refused("its outputs are not float32")
    if len(features) != 2 or features[0] != 1 or not 2 <= features[1] <= MOST_FEATURES:
        raise Refused(f"features are {list(features)}; allowed: [n, 2 to {MOST_FEATURES}]")
    if maps is None:
        return {"features": features[1], "map_size": 0}
    square = len(maps) == 4 and maps[:2] == features and maps[2] == maps[3]
    if not square or math.prod(maps) > MOST_MAP_NUMBERS:
        raise Refused(
            f"maps are {list(maps)}; allowed: [n, {features[1]}, size, size], as many channels as there are features,"
            f" at most {MOST_MAP_NUMBERS:,} numbers"
        )
    return {"features": features[1], "map_size": maps[2]}


def _resize(model: ModelProto) -> str:
    """How an image comes to the graph's side: the metadata's "wardround", JSON with one key."""
    text = next((each.value for each in model.metadata_props if each.key == METADATA), "{}")
    try:
        resize = dict(json.loads(text)).pop("resize", RESIZES[0])
    except (ValueError, TypeError, RecursionError):
        raise Refused(f"its metadata {METADATA} are not JSON") from None
    if resize not in RESIZES:
        raise Refused(f"resize {str(resize)[:40]!r}; allowed: {' or '.join(RESIZES)}")
    return str(resize)
