"""A consortium's encoder as ONNX: an image's features follow from that image alone, bit for bit."""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from tests.onnx_graphs import FEATURES, SIDE, graph
from torch import Tensor
from torch.nn.functional import interpolate

from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.models import build_encoder, build_model
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.onnx_encoder import OnnxEncoder
from wardround.models.public import images
from wardround.task import Task

PATH = Path("theirs.onnx")


def load(data: bytes, channels: int = 1, features: int = FEATURES) -> OnnxEncoder:
    sha256 = hashlib.sha256(data).hexdigest()
    return OnnxEncoder.load(PATH, sha256, channels=channels, features=features, data=data)


def weights(data: bytes) -> tuple[Tensor, Tensor]:
    first, second = ModelProto.FromString(data).graph.initializer
    return (torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in (first, second))  # type: ignore[return-value]


def test_features_and_maps_are_what_the_graph_says() -> None:
    data = graph()
    w, b = weights(data)
    x = 0.5 * images(3, SIDE, 1)
    maps = torch.conv2d(x, w, b, stride=2, padding=1)
    assert maps.abs().max() < GREATEST_VALUE
    encoder = load(data)
    assert (encoder.features, encoder.map_size) == (FEATURES, SIDE // 2)
    assert encoder.fingerprint == encoder.map_fingerprint == hashlib.sha256(data).hexdigest()
    torch.testing.assert_close(encoder.maps(x), maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(x), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


@cache
def loaded() -> OnnxEncoder:
    """One for all examples."""
    return load(graph())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 9),
    place=st.integers(0, 8),
    offset=st.integers(0, 16),
    side=st.sampled_from([SIDE, 11, 28]),
)
def test_an_image_has_the_same_bits_in_any_company_and_anywhere_in_memory(
    seed: int, count: int, place: int, offset: int, side: int
) -> None:
    encoder, place = loaded(), place % count
    x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    memory = torch.empty(x[place].numel() + offset)
    alone = memory[offset:].view(1, 1, side, side)
    alone.copy_(x[place])
    assert torch.equal(encoder(x)[place], encoder(alone)[0])
    assert torch.equal(encoder.maps(x)[place], encoder.maps(alone)[0])


def test_two_threads_at_once_get_the_bits_of_one() -> None:
    encoder, x = load(graph()), images(40, SIDE, 1)
    expected, found = encoder(x), {}

    def work(number: int) -> None:
        found[number] = encoder(x)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(torch.equal(found[number], expected) for number in range(4))


def test_an_odd_image_is_nan_or_bounded_and_nothing_else() -> None:
    x = torch.stack([torch.full((1, SIDE, SIDE), value) for value in (0.0, 1e30, -1e30, float("nan"), float("inf"))])
    features = load(graph())(x)
    assert features[:3].abs().max() <= GREATEST_VALUE
    assert load(graph())(torch.zeros(0, 1, SIDE, SIDE)).shape == (0, FEATURES)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_images_come_to_the_graphs_side_as_its_metadata_say(resize: str) -> None:
    def change(model: ModelProto) -> None:
        model.metadata_props.add(key="wardround", value=f'{{"resize": "{resize}"}}')

    encoder, x = load(graph(change)), images(2, 28, 1)
    smaller = interpolate(x, (SIDE, SIDE), mode=resize, antialias=resize == "bilinear", align_corners=False)
    torch.testing.assert_close(encoder(x), encoder(smaller.clamp(0, 1)))


def test_a_grey_task_may_have_a_graph_for_colour_and_not_the_reverse() -> None:
    encoder, grey = load(graph(channels=3)), images(2, SIDE, 1)
    assert torch.equal(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ConfigError, match="takes 1 channels, the task has 3"):
        load(graph(), channels=3)


def test_a_graph_without_maps_is_an_encoder_without_maps() -> None:
    encoder = load(graph(lambda model: model.graph.output.pop()))
    assert encoder.map_size == 0 and encoder(images(1, SIDE, 1)).shape == (1, FEATURES)


def test_a_derivative_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="cannot be differentiated"):
        load(graph())(images(1, SIDE, 1).requires_grad_())


def agreement(data: bytes, features: int = FEATURES) -> Federation:
    choice = ModelChoice(encoder="theirs.onnx", encoder_sha256=hashlib.sha256(data).hexdigest(), features=features)
    return Federation(name="t", task=Task(label_column="y", classes=("a", "b"), image_size_px=28), model=choice)


def test_an_agreement_names_the_file_and_pins_its_bytes(tmp_path: Path) -> None:
    data = graph()
    (tmp_path / "theirs.onnx").write_bytes(data)
    model = build_model(agreement(data), tmp_path)
    assert model.encode(images(2, 28, 1)).shape == (2, FEATURES)
    assert build_encoder(agreement(data), tmp_path).fingerprint == hashlib.sha256(data).hexdigest()
    (tmp_path / "theirs.onnx").write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match="SHA-256"):
        build_model(agreement(data), tmp_path)
    with pytest.raises(ConfigError, match=r"set model\.features"):
        build_model(agreement(data, 4), weights=data)


def test_a_file_is_looked_at_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(data := graph())
    monkeypatch.setattr("wardround.models.onnx_encoder.look", lambda *_: pytest.fail("looked again"))
    assert load(data) is first
