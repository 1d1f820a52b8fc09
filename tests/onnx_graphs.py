"""ONNX graphs for tests: an honest encoder, and what can be changed about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

SIDE, FEATURES = 16, 3
FLOAT = TensorProto.FLOAT


def graph(change: Callable[[ModelProto], object] | None = None, *, channels: int = 1, opset: int = 17) -> bytes:
    """An encoder: a convolution with stride 2, its means as features, itself as maps; `change` changes it."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(FEATURES, channels, 3, 3)).astype(np.float32),
        "b": rng.normal(size=FEATURES).astype(np.float32),
    }
    nodes = [
        make_node("Conv", ["image", "w", "b"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        make_node("Flatten", ["pooled"], ["features"], axis=1),
    ]
    made = make_model(
        make_graph(
            nodes,
            "encoder",
            [make_tensor_value_info("image", FLOAT, ["n", channels, SIDE, SIDE])],
            [make_tensor_value_info("features", FLOAT, ["n", FEATURES]), make_tensor_value_info("maps", FLOAT, None)],
            [from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[make_opsetid("", opset)],
        ir_version=8,
    )
    made.graph.output[1].CopyFrom(make_tensor_value_info("maps", FLOAT, ["n", FEATURES, SIDE // 2, SIDE // 2]))
    if change:
        change(made)
    data: bytes = made.SerializeToString()
    return data


def before_features(*nodes: NodeProto, of: str = "pooled", weights: dict[str, np.ndarray] | None = None) -> bytes:
    """The encoder with nodes between the pooled map [n, FEATURES, 1, 1] and "features", which read `of` last."""

    def change(model: ModelProto) -> None:
        model.graph.initializer.extend(from_array(value, name) for name, value in (weights or {}).items())
        last = model.graph.node.pop()
        last.input[0] = of
        model.graph.node.extend([*nodes, last])

    return graph(change)


__all__ = ["FEATURES", "FLOAT", "SIDE", "before_features", "graph", "onnx"]
