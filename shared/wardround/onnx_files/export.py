"""A torch module written as one ONNX file: weights within, nothing of the maker's machine, checked as from outside."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wardround.onnx_files import Report, installed, look

OPSET = 17


def exported(module: nn.Module, *, channels: int, side: int, resize: str, path: Path) -> tuple[bytes, Report]:
    """A module that gives features [1, F], or features and maps, of an image [1, channels, side, side], as a file.

    resize: how an image comes to that side (`wardround.models.from_outside`). path: how errors call the file.

    Returns:
        Its bytes, and what a look at it found.

    Raises: ConfigError: onnx is missing, or the network needs an operator that no hospital would run.
    """
    installed(path)
    image = torch.zeros(1, channels, side, side)
    with torch.no_grad():
        names = ["features"] if isinstance(module.eval()(image), torch.Tensor) else ["features", "maps"]
    data = written(module, image, input_name="image", output_names=names, metadata={"resize": resize})
    return data, look(data, path)


def written(
    module: nn.Module,
    given: Tensor,
    *,
    input_name: str,
    output_names: Sequence[str],
    metadata: Mapping[str, object],
    opset: int = OPSET,
    sizes: Mapping[int, str] | None = None,
) -> bytes:
    """A module as a file.

    given: an input of the only shape that it takes, but for the axes of `sizes`, which have these names. metadata:
    under the key "wardround".
    """
    import onnx

    with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exported.onnx"
        warnings.simplefilter("ignore")  # that shapes are constants, which is what is wanted
        # The other exporter needs packages that are not ours.
        torch.onnx.export(
            module.eval(), (given,), file, dynamo=False, opset_version=opset,
            input_names=[input_name], output_names=[*output_names], dynamic_axes={input_name: sizes} if sizes else None,
        )  # fmt: skip
        model = onnx.ModelProto.FromString(_folded(file))
    for node in model.graph.node:
        node.doc_string = ""  # lines of the source, and where it lies
    del model.metadata_props[:]
    del model.opset_import[:]  # it names all that onnxruntime knows
    model.opset_import.add(domain="", version=opset)
    model.metadata_props.add(key="wardround", value=json.dumps(metadata))
    return model.SerializeToString(deterministic=True)


def _folded(file: Path) -> bytes:
    """The same graph without what can be computed beforehand, so that its shapes are numbers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    folded = file.with_name("folded.onnx")
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return folded.read_bytes()
