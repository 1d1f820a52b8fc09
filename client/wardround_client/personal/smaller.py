"""A smaller ONNX file: weights of one byte, and small weights left out. What that costs is measured, not assumed.

int8: each weight of at least LEAST numbers is kept as whole numbers from -127 to 127 and a scale for each row, largest
first (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
2018, section 2, symmetric and by channel), and becomes float32 again when a file is loaded: a fourth of the bytes, and
the same time. Nothing is calibrated, so nothing of a patient's images gets into the file.

pruning: of each weight the smallest numbers are set to zero (Han et al., "Learning both weights and connections for
efficient neural networks", 2015), for files that are compressed; onnxruntime is no faster for zeros.

Fourier matrices are left as they are: they are no weights, and an error in them is an error everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

LEAST = 256  # numbers of a weight that is worth it
Floats = NDArray[np.float32]


def pruned(data: bytes, share: float) -> bytes:
    """The file without that share of each weight, in [0, 1)."""
    model = onnx.ModelProto.FromString(data)
    for weight in _weights(model):
        values = numpy_helper.to_array(weight).copy()
        out = int(share * values.size)
        if out:
            smallest = np.argpartition(np.abs(values), out - 1, axis=None)[:out]
            values.reshape(-1)[smallest] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return _bytes(model)


def quantised(data: bytes) -> bytes:
    """The file with weights of one byte."""
    model = onnx.ModelProto.FromString(data)
    nodes: list[Any] = []
    for weight in list(_weights(model)):
        values = numpy_helper.to_array(weight)
        axis = int(np.argmax(values.shape)) if values.ndim == 2 else 0
        others = tuple(each for each in range(values.ndim) if each != axis)
        scale = np.maximum(np.abs(values).max(axis=others) / 127, 1e-12).astype(np.float32)
        shape = [-1 if each == axis else 1 for each in range(values.ndim)]
        whole = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
        name = weight.name
        model.graph.initializer.remove(weight)
        model.graph.initializer.extend(
            [numpy_helper.from_array(whole, f"{name}/int8"), numpy_helper.from_array(scale, f"{name}/scale")]
        )
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{name}/int8", f"{name}/scale"], [name], axis=axis))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    return _bytes(model)


def _weights(model: Any) -> list[Any]:
    found = []
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT and np.prod(each.dims) >= LEAST and len(each.dims) > 1:
            values = numpy_helper.to_array(each)
            if not _fourier(values):
                found.append(each)
    return found


def _fourier(values: Floats) -> bool:
    """Whether a matrix is its own transpose, as those of cosines and sines are and weights are not."""
    return values.ndim == 2 and values.shape[0] == values.shape[1] and bool((values == values.T).all())


def _bytes(model: Any) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data
