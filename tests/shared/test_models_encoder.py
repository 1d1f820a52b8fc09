"""The frozen encoders: scattering by its definition, public components, and a consortium's own file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.models import Model, build_model, encoder
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.own_encoder import Layer
from wardround.models.portable import he_uniform, uniform
from wardround.models.public import SPREAD, fit_all, images
from wardround.models.raw import RawFeatures
from wardround.models.scattering import Scattering, morlet
from wardround.task import Task


def test_portable_numbers_are_these_for_ever() -> None:
    """From numpy's Philox bits, which NEP 19 promises never to change."""
    expected = [0.8239104246940656, 0.31044252001618866, 0.015124111679323371]
    assert uniform("wardround", (3,)).tolist() == expected


def test_portable_weights_have_hes_variance() -> None:
    weights = he_uniform("test", (64, 32, 3, 3))
    assert weights.var().item() == pytest.approx(2 / (32 * 9), rel=0.03)
    assert weights.mean().abs() < 0.001


def test_a_wavelet_ignores_brightness_and_answers_best_to_its_own_wave() -> None:
    response = morlet(64, 1, 0.0, 1.0)
    assert abs(response[0, 0].item()) < 1e-6
    column = int(response[0].argmax())
    assert 2 * math.pi * column / 64 == pytest.approx(3 * math.pi / 8, abs=2 * math.pi / 64)


def test_first_order_is_the_modulus_of_the_convolution_at_every_scale() -> None:
    x = images(2, 64, 1)[:, 0]
    first, _ = Scattering(64, 4, 4)(x)
    for scale, maps in enumerate(first):
        for k in range(4):
            wavelet = morlet(64, scale, math.pi * k / 4, 1.0)
            direct = torch.fft.ifft2(torch.fft.fft2(x.double()) * wavelet).abs()[:, :: 2**scale, :: 2**scale]
            torch.testing.assert_close(maps[:, k].double(), direct, atol=1e-3 * direct.max().item(), rtol=0)


def test_second_order_counts_its_paths_in_the_documented_order() -> None:
    scattering = Scattering(32, 3, 4)
    x = images(1, 32, 1)[:, 0]
    first, second = scattering(x)
    assert second.shape == (1, scattering.second_order) == (1, 16 * 3)
    # The first path: scale 0 at angle 0, then scale 1 at angle 0.
    direct = torch.fft.ifft2(torch.fft.fft2(first[0][:, 0].double()) * morlet(32, 1, 0.0, 1.0)).abs()
    assert second[0, 0].item() == pytest.approx(direct[:, ::2, ::2].mean().item(), rel=1e-3)


def test_scattering_means_do_not_see_a_shift() -> None:
    x = images(3, 64, 1)[:, 0]
    _, here = Scattering(64, 4, 4)(x)
    _, there = Scattering(64, 4, 4)(torch.roll(x, (8, 24), (1, 2)))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)


def test_window_settings_move_only_the_features_of_brightness() -> None:
    x = 0.4 + 0.2 * images(4, 64, 1)
    raw = RawFeatures.of(64, 1)
    one, other = raw(x), raw(0.9 * x + 0.05)
    assert (one - other)[:, 2:].abs().max() < 0.1
    assert (one - other)[:, :2].abs().max() > 0.02


def test_an_image_alone_and_in_a_batch_is_encoded_alike() -> None:
    x = images(20, 28, 3)
    raw = RawFeatures.of(28, 3)
    torch.testing.assert_close(raw(x)[17:18], raw(x[17:18]), rtol=1e-3, atol=1e-4)
    assert raw(x).shape == (20, sum(raw.groups))


def test_the_fit_whitens_its_public_images() -> None:
    raw = RawFeatures(32, 1)
    fitted = fit_all(raw, 200)
    drawn = torch.cat([raw(images(100, 32, 1, f"public/{at}")) for at in (0, 100)])
    z = (drawn - fitted["mean"]) @ fitted["basis"]
    torch.testing.assert_close(torch.cov(z.T), SPREAD**2 * torch.eye(z.shape[1]), atol=5e-3, rtol=0)


def test_the_shipped_components_fit_these_features() -> None:
    """Public images nobody fitted on have features of about the documented size."""
    built_in = encoder.BuiltinEncoder.of(64, 1, 32)
    z = built_in(images(60, 64, 1, "unseen"))
    assert z.std().item() == pytest.approx(SPREAD, rel=0.25)
    assert z.mean().abs() < 0.1


@pytest.mark.parametrize("file", ["BASES_SHA256", "MAP_BASES_SHA256"])
def test_a_damaged_installation_is_noticed(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr(encoder, file, "0" * 64)
    with pytest.raises(ConfigError, match="damaged"):
        encoder.BuiltinEncoder.of(64, 1, 32)


# A consortium's own encoder.

LAYERS: list[dict[str, Any]] = [
    {"kind": "conv", "name": "conv0", "stride": 2, "padding": 1},
    {"kind": "affine", "name": "norm0"},
    {"kind": "relu"},
    {"kind": "maxpool", "size": 2},
    {"kind": "meanpool"},
    {"kind": "linear", "name": "project"},
]


def tensors() -> dict[str, Tensor]:
    return {
        "conv0.weight": he_uniform("conv0", (5, 1, 3, 3)),
        "norm0.weight": torch.full((5,), 2.0),
        "norm0.bias": torch.full((5,), 0.1),
        "project.weight": he_uniform("project", (4, 5)),
        "project.bias": torch.zeros(4),
    }


def encoder_file(
    folder: Path,
    *,
    layers: list[dict[str, Any]] = LAYERS,
    text: str | None = None,
    weights: dict[str, Tensor] | None = None,
    **more: Any,
) -> str:
    description = json.dumps({"schema": 1, "channels": 1, "side": 16, "layers": layers} | more)
    data = save(weights or tensors(), metadata={"wardround": description if text is None else text})
    (folder / "ours.safetensors").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def with_encoder(sha256: str, *, features: int = 4, channels: int = 1) -> Federation:
    task = {"label_column": "y", "classes": ["a", "b"], "image_size_px": 28, "channels": channels}
    model = ModelChoice(encoder="ours.safetensors", encoder_sha256=sha256, features=features)
    return Federation(name="t", task=Task.model_validate(task), model=model)


def test_a_consortiums_encoder_does_what_its_description_says(tmp_path: Path) -> None:
    sha256 = encoder_file(tmp_path)
    model = build_model(with_encoder(sha256), tmp_path)
    x = images(3, 16, 1)
    t = tensors()
    y = torch.conv2d(x, t["conv0.weight"], stride=2, padding=1) * 2 + 0.1
    y = torch.max_pool2d(y.relu(), 2).mean((-2, -1)) @ t["project.weight"].T
    torch.testing.assert_close(model.encode(x), y)
    assert model.fingerprint == sha256


def test_another_file_than_the_agreed_one_is_refused(tmp_path: Path) -> None:
    encoder_file(tmp_path)
    with pytest.raises(ConfigError, match="SHA-256"):
        build_model(with_encoder("0" * 64), tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ours\.safetensors"):
        build_model(with_encoder("0" * 64), tmp_path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"kind": "conv", "name": "absent"}], "do not fit together"),
        ([{"kind": "meanpool"}, {"kind": "linear", "name": "project"}], "do not fit together"),
        (LAYERS[:-1], r"gives \[5\] features"),
        (LAYERS[:1], "features"),
        ([{"kind": "python", "name": "os.system"}], "not an encoder file"),
    ],
)
def test_a_description_that_does_not_work_is_refused(
    tmp_path: Path, layers: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(with_encoder(encoder_file(tmp_path, layers=layers)), tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json"])
def test_a_file_without_a_description_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not an encoder file"):
        build_model(with_encoder(encoder_file(tmp_path, text=text)), tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "ours.safetensors")
    sha256 = hashlib.sha256((tmp_path / "ours.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="not an encoder file"):
        build_model(with_encoder(sha256), tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    sha256 = encoder_file(tmp_path, weights=tensors() | {"project.bias": torch.full((4,), torch.nan)})
    with pytest.raises(ConfigError, match="not finite"):
        build_model(with_encoder(sha256), tmp_path)


def test_an_encoder_for_grey_images_does_not_take_colour(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 channels, the task has 3"):
        build_model(with_encoder(encoder_file(tmp_path), channels=3), tmp_path)


# Schema 2: residual networks, taps, mirror images.

RESIDUAL: list[dict[str, Any]] = [
    {"kind": "affine", "name": "input"},
    {"kind": "conv", "name": "stem", "stride": 2, "padding": "same"},
    {"kind": "relu6"},
    {"kind": "tap"},
    {"kind": "keep", "name": "block"},
    {"kind": "conv", "name": "deep", "padding": [2, 2, 1, 1], "groups": 4},
    {"kind": "add", "name": "block"},
    {"kind": "tap"},
    {"kind": "linear", "name": "project"},
]
MIRRORED = {"h": (-1,), "v": (-2,), "hv": (-2, -1)}


def residual_tensors() -> dict[str, Tensor]:
    return {
        "input.weight": torch.full((3,), 2.0),
        "input.bias": torch.full((3,), -1.0),
        "stem.weight": 4 * he_uniform("stem", (4, 3, 3, 3)),
        "stem.bias": torch.full((4,), 0.5),
        "deep.weight": he_uniform("deep", (4, 1, 3, 5)),
        "project.weight": 0.3 * he_uniform("tapped", (4, 16)),
    }


def residual_encoder(folder: Path, channels: int = 3, **more: Any) -> Model:
    described: dict[str, Any] = {"schema": 2, "channels": 3, "layers": RESIDUAL, "weights": residual_tensors()} | more
    return build_model(with_encoder(encoder_file(folder, **described), channels=channels), folder)


def test_a_residual_network_with_taps_does_what_its_description_says(tmp_path: Path) -> None:
    x = images(3, 16, 3)
    t = residual_tensors()
    # On an even side, TensorFlow pads nothing on the left and one pixel on the right for a kernel of 3 in steps of 2.
    early = torch.conv2d(torch.nn.functional.pad(2 * x - 1, (0, 1, 0, 1)), t["stem.weight"], t["stem.bias"], 2)
    early = early.clamp(0, 6)
    late = early + torch.conv2d(early, t["deep.weight"], padding=(1, 2), groups=4)
    pooled = [statistic for each in (early, late) for statistic in (each.mean((2, 3)), each.std((2, 3), correction=0))]
    expected = torch.cat(pooled, 1) @ t["project.weight"].T
    assert early.amax() == 6 and expected.abs().amax() < GREATEST_VALUE
    torch.testing.assert_close(residual_encoder(tmp_path).encode(x), expected, rtol=1e-4, atol=1e-5)


@given(size=st.integers(1, 40), kernel=st.integers(1, 7), stride=st.integers(1, 4))
def test_same_padding_gives_a_map_of_the_strided_size_and_is_almost_even(size: int, kernel: int, stride: int) -> None:
    layer = Layer(kind="conv", name="c", stride=stride, padding="same")
    weight = torch.ones(1, 1, kernel, 1)
    map_ = layer.apply(torch.ones(1, 1, size, 3 * stride), {"c.weight": weight})
    assert map_.shape == (1, 1, math.ceil(size / stride), 3)
    # Every output counts the pixels that it sees: the border that lies outside is split evenly, the rest comes after.
    column = map_[0, 0, :, 0]
    total = max((len(column) - 1) * stride + kernel - size, 0)
    assert kernel - column[0].item() >= total // 2
    assert kernel - column[-1].item() >= total - total // 2
    if size >= kernel:
        assert (kernel - column[0].item(), kernel - column[-1].item()) == (total // 2, total - total // 2)


@pytest.mark.parametrize("mirrored", MIRRORED)
def test_with_all_copies_an_image_and_its_mirror_image_are_one(tmp_path: Path, mirrored: str) -> None:
    x = images(3, 16, 3)
    plain = residual_encoder(tmp_path)
    copies = residual_encoder(tmp_path, copies=list(MIRRORED))
    assert (plain.encode(x) - plain.encode(x.flip(MIRRORED[mirrored]))).abs().max() > 0.01
    torch.testing.assert_close(copies.encode(x), copies.encode(x.flip(MIRRORED[mirrored])))


def test_features_are_the_mean_over_the_image_and_the_copies_that_are_named(tmp_path: Path) -> None:
    x = images(3, 16, 3)
    plain = residual_encoder(tmp_path).encode
    one = residual_encoder(tmp_path, copies=["h"]).encode(x)
    torch.testing.assert_close(one, (plain(x) + plain(x.flip(-1))) / 2)


def test_bicubic_enlarges_without_leaving_the_range_of_an_image(tmp_path: Path) -> None:
    x = (images(3, 8, 3) > 0.5).float()
    larger = torch.nn.functional.interpolate(x, (16, 16), mode="bicubic", align_corners=False)
    assert larger.amin() < 0 and larger.amax() > 1
    model = residual_encoder(tmp_path, resize="bicubic")
    torch.testing.assert_close(model.encode(x), model.encode(larger.clamp(0, 1)))


def test_a_grey_task_may_have_an_encoder_for_colour(tmp_path: Path) -> None:
    grey = images(3, 16, 1)
    model = residual_encoder(tmp_path, channels=1)
    torch.testing.assert_close(model.encode(grey), model.encode(grey.repeat(1, 3, 1, 1)))


def test_whatever_the_weights_features_are_bounded(tmp_path: Path) -> None:
    loud = residual_tensors()
    loud["project.weight"] *= 1e6
    z = residual_encoder(tmp_path, weights=loud).encode(images(3, 16, 3))
    assert z.abs().max() == GREATEST_VALUE


def test_in_schema_2_an_image_alone_and_in_a_batch_is_encoded_alike(tmp_path: Path) -> None:
    x = images(20, 16, 3)
    model = residual_encoder(tmp_path, copies=list(MIRRORED))
    torch.testing.assert_close(model.encode(x)[17:18], model.encode(x[17:18]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "say schema 2"),
        ({"schema": 1, "layers": LAYERS, "copies": ["h"]}, "say schema 2"),
        ({"schema": 1, "layers": LAYERS, "resize": "bicubic"}, "say schema 2"),
        ({"schema": 3}, "schema: Input should be 1 or 2"),
        ({"copies": ["h", "h"]}, "name one twice"),
        ({"copies": ["turned"]}, r"copies\.0: Input should be"),
        ({"resize": "nearest"}, "resize: Input should be"),
        ({"layers": [{"kind": "conv", "name": "stem", "padding": [1, 1, 1]}, *RESIDUAL[2:]]}, "not an encoder file"),
        ({"layers": [{"kind": "conv", "name": "stem", "padding": -1}, *RESIDUAL[2:]]}, "not an encoder file"),
        ({"layers": [each for each in RESIDUAL if each["kind"] != "keep"]}, "do not fit together .*block"),
        ({"layers": [RESIDUAL[4], *RESIDUAL[:4], *RESIDUAL[5:]]}, r"a map of \[3, 16, 16\] is added to .*\[4, 8, 8\]"),
        ({"layers": [{"kind": "meanpool"}, {"kind": "tap"}]}, "do not fit together"),
        ({"layers": [{"kind": "tap"}, {"kind": "conv", "name": "stem"}]}, "do not fit together"),
        ({"layers": [{"kind": "tap"}]}, r"gives \[6\] features"),
    ],
)
def test_a_description_of_schema_2_that_does_not_work_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        residual_encoder(tmp_path, **change)
