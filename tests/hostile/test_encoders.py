"""An encoder file from a stranger: what it would take is known before anything is computed; refusals are in words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzzed
from hypothesis import strategies as st
from safetensors.torch import save

from wardround.errors import ConfigError
from wardround.models.own_encoder import OwnEncoder

CONV = {"kind": "conv", "name": "a", "padding": "same"}
POOL = {"kind": "meanpool"}


def blob(layers: list[dict[str, Any]], tensors: dict[str, torch.Tensor], **description: object) -> bytes:
    told = {"schema": 2, "channels": 1, "side": 16, "layers": layers} | description
    return save(tensors, metadata={"wardround": json.dumps(told)})


def load(data: bytes) -> OwnEncoder:
    return OwnEncoder.load(Path("own.safetensors"), hashlib.sha256(data).hexdigest(), channels=1, features=4, data=data)


def weights(*shape: int) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full(shape, 0.01)}


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


HOSTILE: dict[str, bytes] = {
    "maps of 4,096 channels at 1,024 pixels": blob([CONV, POOL], weights(4096, 1, 1, 1), side=1024),
    "a convolution that takes minutes": blob(
        [{"kind": "conv", "name": "b", "padding": "same"}, *[CONV] * 8, POOL],
        weights(256, 256, 5, 5) | {"b.weight": torch.ones(256, 1, 1, 1)},
        side=256,
    ),
    "the same, by copies": blob(
        [{"kind": "conv", "name": "b", "padding": "same"}, *[CONV] * 2, POOL],
        weights(256, 256, 5, 5) | {"b.weight": torch.ones(256, 1, 1, 1)},
        side=256,
        copies=["h", "v", "hv"],
    ),
    "many maps that are each allowed": blob([CONV, *[{"kind": "relu"}] * 200, POOL], weights(64, 1, 1, 1), side=1024),
    "nothing but a name": blob([{"kind": "conv", "name": "\x1b"}], {}),
    "a tensor that is not there": blob([CONV, POOL], {}),
    "not finite": blob([CONV, POOL], {"a.weight": torch.full((4, 1, 1, 1), float("nan"))}),
    "complex": blob([CONV, POOL], {"a.weight": torch.ones(4, 1, 1, 1, dtype=torch.complex64)}),
    "no dimensions": blob([CONV, POOL], {"a.weight": torch.tensor(1.0)}),
    "an empty tensor": blob([CONV, POOL], {"a.weight": torch.ones(0, 1, 1, 1)}),
    "pooled to nothing": blob([*[{"kind": "maxpool", "size": 8}] * 3, POOL], {}),
    "added before it was kept": blob([{"kind": "add", "name": "x"}], {}),
    "nested": header(b'{"__metadata__":' + b"[" * 200_000),
    "nested within the description": save({}, metadata={"wardround": "[" * 200_000}),
    "a header of all memory": b"\xff" * 16,
    "a header that is said to be long": header(b"{}")[:8] + b"{}" * 4,
    "metadata that is no table": header(b'{"__metadata__": 3}'),
    "empty": b"",
    "short": b"\x01",
}


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_encoder_that_takes_too_much_or_is_none_is_refused_in_words(kind: str) -> None:
    if kind == "complex":  # its imaginary part is not there: an encoder like any other
        assert load(HOSTILE[kind]).features == 4
        return
    with pytest.raises(ConfigError, match=r"own\.safetensors") as refused:
        load(HOSTILE[kind])
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_an_honest_one_is_taken() -> None:
    encoder = load(blob([CONV, POOL], weights(4, 1, 3, 3)))
    assert encoder(torch.rand(3, 1, 16, 16)).shape == (3, 4)


KINDS = ["conv", "affine", "relu", "relu6", "maxpool", "meanpool", "linear", "keep", "add", "tap", "x"]
layers = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(KINDS)},
        optional={
            "name": st.sampled_from(["a", "b", ""]),
            "stride": st.integers(0, 9),
            "padding": st.one_of(st.just("same"), st.integers(-1, 17), st.lists(st.integers(0, 16), max_size=5)),
            "groups": st.integers(0, 8),
            "size": st.integers(1, 9),
        },
    ),
    max_size=8,
)
shapes = st.lists(st.integers(0, 9), max_size=5)


@fuzzed(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layers,
    shapes,
    shapes,
    st.sampled_from([*[8] * 6, *[16] * 3, 1024]),
    st.lists(st.sampled_from(["h", "v", "hv"]), max_size=3),
)
def test_any_layers_are_an_encoder_or_refused(
    given_layers: list[dict[str, Any]], a: list[int], b: list[int], side: int, copies: list[str]
) -> None:
    tensors = {"a.weight": torch.ones(a), "b.weight": torch.ones(b)}
    try:
        encoder = load(blob(given_layers, tensors, side=side, copies=copies))
    except ConfigError:
        return
    assert encoder(torch.rand(2, 1, side, side)).shape == (2, 4)


@fuzzed(max_examples=100, deadline=None)
@given(st.data())
def test_bytes_exchanged_in_an_encoder(data: st.DataObject) -> None:
    whole = bytearray(blob([CONV, POOL], weights(4, 1, 3, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        load(bytes(whole))
    except ConfigError as refused:
        assert "own.safetensors" in str(refused)
