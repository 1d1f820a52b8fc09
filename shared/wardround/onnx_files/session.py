"""One ONNX graph, run by onnxruntime so that an image's numbers follow from that image alone, bit for bit.

One image at a time, one thread, and inputs and results in memory that onnxruntime allocates, whose alignment is always
the same. Rewrites of the graph happen once, when it is loaded, and know nothing of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

QUIET = 4  # onnxruntime's own log: fatal errors alone, because its words may quote a file


class Session:
    """One output of a graph, in memory.

    Args:
        data: the file's bytes, checked before (`rules`).
        output: which; what only others need is taken out, because onnxruntime would compute it.
        providers: onnxruntime's, in the order of preference.
    """

    def __init__(self, data: bytes, output: str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = QUIET
        self._session = onnxruntime.InferenceSession(only(data, output), options, providers=list(providers))
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output]

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One image float32 [1, channels, side, side] -> the output, [1, ...].

        Raises: RuntimeError, or another of onnxruntime's, where it cannot be computed.
        """
        given = {self._input: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(image))}
        (found,) = self._session.run_with_ort_values(self._outputs, given)
        array: NDArray[np.float32] = found.numpy()
        return array


def only(data: bytes, output: str) -> bytes:
    """The graph of one output, for a batch of 1."""
    graph = (model := onnx.ModelProto.FromString(data)).graph
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    if len(nodes) < len(graph.node):
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
        del graph.node[:]
        graph.node.extend(kept)
    for values in (graph.output, graph.initializer):
        for at in reversed(range(len(values))):
            if values[at].name not in needed:
                del values[at]
    return model.SerializeToString()
