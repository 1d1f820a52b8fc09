"""An ONNX file from a stranger: refused in words before it runs, and never at the price of a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzzed
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from tests.onnx_graphs import FEATURES, FLOAT, SIDE, before_features, graph

from wardround import onnx_files
from wardround.errors import ConfigError
from wardround.onnx_files import look, rules
from wardround.onnx_files.rules import Refused, checked

node = onnx.helper.make_node
PATH = Path("theirs.onnx")


def first(**attributes: object) -> Callable[[ModelProto], None]:
    """Attributes of the convolution."""

    def change(model: ModelProto) -> None:
        del model.graph.node[0].attribute[:]
        given = {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]} | attributes
        model.graph.node[0].attribute.extend(onnx.helper.make_attribute(k, v) for k, v in given.items())

    return change


def external(model: ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def side(*dims: int | str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", FLOAT, dims))

    return change


def weight(value: np.ndarray, name: str = "w") -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for each in model.graph.initializer:
            if each.name == name:
                each.CopyFrom(onnx.numpy_helper.from_array(value, name))

    return change


def short(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def named(what: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.node[0].op_type = what

    return change


def loop() -> bytes:
    body = onnx.helper.make_graph([node("Identity", ["c"], ["d"])], "body", [], [])
    return before_features(node("Loop", ["", "", "pooled"], ["x"], body=body), of="x")


W = np.ones((FEATURES, 1, 3, 3), np.float32)
I64 = np.int64
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "outputs|operator set|valid ONNX"),
    "text": (b"not a model at all", "not ONNX"),
    "another domain": (graph(lambda m: setattr(m.graph.node[0], "domain", "com.microsoft")), "com.microsoft"),
    "an operator that draws": (graph(named("RandomNormalLike")), "RandomNormalLike"),
    "an operator with an escape": (graph(named("\x1b[2J")), "operator"),
    "a loop": (loop(), "Loop"),
    "a condition": (before_features(node("If", ["pooled"], ["x"]), of="x"), "'If'"),
    "a function": (graph(lambda m: m.functions.add(name="f", domain="x")), "functions"),
    "training": (graph(lambda m: m.training_info.add()), "training"),
    "an old operator set": (graph(opset=7), "operator set 7"),
    "one of the future": (graph(opset=99), "operator set 99"),
    "weights in another file": (graph(external), "another file"),
    "weights that are not finite": (graph(weight(np.full_like(W, np.nan))), "not finite"),
    "a bias that is not finite": (graph(weight(np.full(FEATURES, np.inf, np.float32), "b")), "not finite"),
    "weights of fewer bytes": (graph(short), "other bytes"),
    "weights of text": (graph(weight(np.array(["a"], object), "b")), "of type"),
    "two inputs": (graph(lambda m: m.graph.input.append(m.graph.input[0])), "2 inputs|valid ONNX"),
    "sides that are not said": (graph(side("n", 1, "h", "w")), r"\?, \?"),
    "two channels": (graph(side("n", 2, 16, 16)), "n, 2, 16, 16"),
    "an image that is not square": (graph(side("n", 1, 16, 32)), "16, 32"),
    "a batch of 8": (graph(side(8, 1, 16, 16)), "batch of 8"),
    "an image of all memory": (graph(side("n", 1, 1 << 40, 1 << 40)), "allowed"),
    "other outputs": (graph(lambda m: setattr(m.graph.output[0], "name", "logits")), "logits|valid ONNX"),
    "nothing but maps": (graph(lambda m: m.graph.output.pop(0)), "outputs maps"),
    "a window of all memory": (graph(first(pads=[1 << 40] * 4)), "pads"),
    "a negative border": (graph(first(pads=[-9] * 4)), "pads"),
    "steps of nothing": (graph(first(strides=[0, 0])), "strides"),
    "groups of nothing": (graph(first(group=0)), "group"),
    "a training Dropout": (
        before_features(
            node("Dropout", ["pooled", "r", "t"], ["x"]),
            of="x",
            weights={"r": np.array(0.5, np.float32), "t": np.array(True)},
        ),
        "Dropout",
    ),
    "a batch normalisation that is training": (
        before_features(
            node("BatchNormalization", ["pooled", "b", "b", "b", "b"], ["x", "y", "z"], training_mode=1), of="x"
        ),
        "training",
    ),
    "integers of the image": (
        before_features(
            node("Cast", ["pooled"], ["i"], to=TensorProto.INT64),
            node("Div", ["one", "i"], ["j"]),
            node("Cast", ["j"], ["x"], to=FLOAT),
            of="x",
            weights={"one": np.array(1, I64)},
        ),
        "integers of an image",
    ),
    "a shape of the image": (
        before_features(
            node("Expand", ["pooled", "s"], ["x"]), of="x", weights={"s": np.array([1, FEATURES, 0, 1], I64)}
        ),
        "features|valid",
    ),
    "an expansion to all memory": (
        before_features(
            node("Expand", ["pooled", "s"], ["y"]),
            node("ReduceMean", ["y"], ["x"], axes=[2, 3], keepdims=1),
            of="x",
            weights={"s": np.array([1, FEATURES, 1 << 20, 1 << 20], I64)},
        ),
        "numbers on the way",
    ),
    "minutes of products": (
        before_features(
            node("Expand", ["pooled", "s"], ["y"]),
            node("MatMul", ["y", "y"], ["z"]),
            node("ReduceMean", ["z"], ["x"], axes=[2, 3], keepdims=1),
            of="x",
            weights={"s": np.array([1, FEATURES, 1 << 13, 1 << 13], I64)},
        ),
        "operations",
    ),
    "features that do not follow from the image": (
        before_features(
            node("Identity", ["c"], ["x"]), of="x", weights={"c": np.ones((1, FEATURES, 1, 1), np.float32)}
        ),
        "do not follow",
    ),
    "onnxruntime configured": (graph(lambda m: m.metadata_props.add(key="ort_config", value="{}")), "ort_config"),
    "metadata that are nested": (
        graph(lambda m: m.metadata_props.add(key="wardround", value="[" * 100_000)),
        "not JSON",
    ),
    "an unknown resize": (
        graph(lambda m: m.metadata_props.add(key="wardround", value='{"resize": "nearest"}')),
        "resize 'nearest'",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_encoder_is_refused_in_words_before_it_runs(kind: str) -> None:
    data, why = HOSTILE[kind]
    with pytest.raises(Refused, match=why):
        checked(data)


def test_a_refusal_in_the_child_is_one_line_without_escapes() -> None:
    with pytest.raises(ConfigError, match=r"theirs\.onnx: not an encoder that is run here") as refused:
        look(HOSTILE["an operator with an escape"][0], PATH)
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 800


def test_what_only_the_run_can_tell_is_refused_there() -> None:
    """A window that is not that of the weights passes the inference of shapes."""
    with pytest.raises(ConfigError, match="not an encoder that is run here"):
        look(graph(first(kernel_shape=[5, 5], pads=[2, 2, 2, 2])), PATH)


def test_features_that_are_not_finite_for_a_blank_image_are_refused() -> None:
    data = before_features(node("Log", ["zero"], ["l"]), node("Mul", ["pooled", "l"], ["x"]), of="x",
                           weights={"zero": np.zeros(1, np.float32)})  # fmt: skip
    with pytest.raises(ConfigError, match="not finite numbers"):
        look(data, PATH)


def test_a_file_that_takes_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="took more than 0 s"):
        look(graph(), PATH, limit_s=0.01)


def test_a_child_that_dies_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "CHILD", ("-c", "import os; os.abort()"))
    with pytest.raises(ConfigError, match="ended without a word"):
        look(graph(), PATH)


def test_without_the_extra_a_person_reads_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[onnx\]'"):
        look(graph(), PATH)


@fuzzed(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_bytes_exchanged_are_an_encoder_or_refused(data: st.DataObject) -> None:
    whole = bytearray(graph())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = checked(bytes(whole))
    except Refused:
        return
    assert found.facts["side"] == SIDE


OPERATORS = sorted(rules.OPERATORS)
nodes = st.lists(
    st.tuples(
        st.sampled_from(OPERATORS),
        st.lists(st.sampled_from(["image", "maps", "w", "b", "i", "x0", "x1", "x2"]), max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["axis", "axes", "perm", "kernel_shape", "strides", "pads", "keepdims", "to", "group", "value"]
            ),
            st.one_of(st.integers(-3, 20), st.lists(st.integers(-2, 9), min_size=1, max_size=4), st.floats(-3, 3)),
            max_size=2,
        ),
    ),
    max_size=3,
)


@fuzzed(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes)
def test_any_graph_of_allowed_operators_is_an_encoder_or_refused(
    drawn: list[tuple[str, list[str], dict[str, Any]]],
) -> None:
    def change(model: ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3, 1, 1], I64), "i"))
        made = [node(name, inputs, [f"x{at}"], **attributes) for at, (name, inputs, attributes) in enumerate(drawn)]
        last = model.graph.node.pop()
        last.input[0] = f"x{len(made) - 1}" if made else "pooled"
        model.graph.node.extend([*made, last])

    try:
        found = checked(graph(change))
    except Refused:
        return
    assert found.facts["features"] >= 2
