"""Graphs one after another, as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from onnx import ModelProto
from onnx.compose import add_prefix, merge_models
from onnx.version_converter import convert_version


def joined(parts: Sequence[bytes], metadata: Mapping[str, object]) -> bytes:
    """Files of one input, each of which is given the first output of the one before -> a file of all.

    It has the first one's input and the last one's outputs, under their names, and the newest operators of any.
    """
    models = [ModelProto.FromString(part) for part in parts]
    opset = max(map(_opset, models))
    models = [_of(model, opset) for model in models]
    whole = add_prefix(models[0], "part-0/", rename_inputs=False, rename_outputs=len(models) > 1)
    for number, model in enumerate(models[1:], 1):
        last = number == len(models) - 1
        then = add_prefix(model, f"part-{number}/", rename_outputs=not last)
        outputs = [each.name for each in then.graph.output]
        meets = [(whole.graph.output[0].name, then.graph.input[0].name)]
        whole = merge_models(whole, then, io_map=meets, outputs=outputs)
    whole.metadata_props.add(key="wardround", value=json.dumps(metadata))
    data: bytes = whole.SerializeToString(deterministic=True)
    return data


def _opset(model: ModelProto) -> int:
    imported = {each.domain: each.version for each in model.opset_import}
    return int(imported.get("", imported.get("ai.onnx", 0)))


def _of(model: ModelProto, opset: int) -> ModelProto:
    weights = {each.name for each in model.graph.initializer}
    given = [each for each in model.graph.input if each.name not in weights]  # old files name weights as inputs, too
    del model.graph.input[:]
    model.graph.input.extend(given)
    if _opset(model) != opset:
        model = convert_version(model, opset)
    del model.metadata_props[:], model.opset_import[:]
    model.opset_import.add(domain="", version=opset)
    model.ir_version = IR
    return model


IR = 10  # of the files themselves: read by onnxruntime 1.18 and newer
