"""Maps of the frozen encoders: what lies around each pixel, on one grid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from wardround.errors import ConfigError
from wardround.models import own_encoder
from wardround.models.encoder import GREATEST_VALUE, BuiltinEncoder
from wardround.models.own_encoder import OwnEncoder
from wardround.models.portable import he_uniform
from wardround.models.public import MAP_SPREAD, fit_maps, images
from wardround.models.raw_maps import RawMaps


@settings(max_examples=25, deadline=None)
@given(size=st.integers(8, 300), channels=st.sampled_from([1, 3]), features=st.integers(2, 64))
def test_images_of_any_size_have_finite_maps_on_the_grid_that_is_said(size: int, channels: int, features: int) -> None:
    encoder = BuiltinEncoder.of(size, channels, features)
    for x in (torch.zeros(1, channels, size, size), torch.rand(1, channels, size, size)):
        maps = encoder.maps(x)
        assert maps.shape == (1, features, encoder.map_size, encoder.map_size)
        assert maps.isfinite().all() and maps.abs().max() <= GREATEST_VALUE


@pytest.mark.parametrize("channels", [1, 3])
def test_public_images_nobody_fitted_on_have_maps_of_about_the_documented_size(channels: int) -> None:
    maps = BuiltinEncoder.of(64, channels, 32).maps(images(40, 64, channels, "unseen"))
    assert maps.mean().abs() < 0.15
    assert maps.std().item() == pytest.approx(MAP_SPREAD, rel=0.25)


def test_the_fit_whitens_the_pixels_of_its_public_images() -> None:
    raw = RawMaps(32, 1)
    fitted = fit_maps(raw, 100)
    assert fitted["basis"].shape == (sum(raw.groups), 64)
    maps = BuiltinEncoder.of(32, 1, 64).raw_maps(images(100, 32, 1, "maps/0"))
    z = (maps.movedim(1, -1).flatten(0, 2) - fitted["mean"]) @ fitted["basis"]
    assert z[:, :8].std(0).mean().item() == pytest.approx(MAP_SPREAD, rel=0.2)


def test_maps_move_with_the_image() -> None:
    """A finding that lies elsewhere is seen elsewhere, and the same."""
    x = torch.full((1, 1, 256, 256), 0.3)
    x[:, :, 112:124, 112:120] = 0.9
    encoder = BuiltinEncoder.of(256, 1, 16)
    here, there = encoder.maps(x), encoder.maps(x.roll((16, 16), (2, 3)))
    torch.testing.assert_close(here[..., 26:34, 26:34], there[..., 30:38, 30:38], atol=1e-3, rtol=0)
    assert (here[..., 28:31, 28:30].mean((2, 3)) - here[..., 4:8, 4:8].mean((2, 3))).abs().max() > 1


def test_an_image_alone_and_in_company_has_the_same_maps() -> None:
    x = images(9, 64, 3)
    encoder = BuiltinEncoder.of(64, 3, 16)
    torch.testing.assert_close(encoder.maps(x)[7:8], encoder.maps(x[7:8]), rtol=1e-3, atol=1e-3)


def test_the_fingerprint_of_maps_says_what_they_are() -> None:
    encoders = [BuiltinEncoder.of(*each) for each in ((64, 1, 32), (64, 3, 32), (128, 1, 32), (64, 1, 33))]
    prints = {each.map_fingerprint for each in encoders} | {each.fingerprint for each in encoders}
    assert len(prints) == 8
    assert BuiltinEncoder.of(60, 1, 32).map_fingerprint == encoders[0].map_fingerprint


# A consortium's own file.

LAYERS: list[dict[str, Any]] = [
    {"kind": "conv", "name": "a", "stride": 2, "padding": "same"},
    {"kind": "relu"},
    {"kind": "tap"},
    {"kind": "conv", "name": "b", "stride": 2, "padding": "same"},
    {"kind": "tap"},
    {"kind": "linear", "name": "project"},
]


def tensors() -> dict[str, Tensor]:
    return {
        "a.weight": he_uniform("a", (4, 1, 3, 3)),
        "b.weight": he_uniform("b", (6, 4, 3, 3)),
        "project.weight": 0.1 * he_uniform("project", (3, 20)),
        "maps.weight": he_uniform("maps", (3, 10)),
        "maps.bias": torch.tensor([0.1, 0.2, 0.3]),
    }


def load(weights: dict[str, Tensor], layers: list[dict[str, Any]] = LAYERS, **more: Any) -> OwnEncoder:
    described = {"schema": 2, "channels": 1, "side": 16, "layers": layers} | more
    data = save(weights, metadata={"wardround": json.dumps(described)})
    sha256 = hashlib.sha256(data).hexdigest()
    return OwnEncoder.load(Path("own.safetensors"), sha256, channels=1, features=3, data=data)


def test_maps_of_a_file_are_its_taps_on_one_grid_projected() -> None:
    encoder, t, x = load(tensors()), tensors(), images(3, 16, 1)
    first = torch.conv2d(torch.nn.functional.pad(x, (0, 1, 0, 1)), t["a.weight"], stride=2).relu()
    second = torch.conv2d(torch.nn.functional.pad(first, (0, 1, 0, 1)), t["b.weight"], stride=2)
    upsampled = torch.nn.functional.interpolate(second, (8, 8), mode="bilinear", align_corners=False)
    expected = torch.conv2d(torch.cat([first, upsampled], 1), t["maps.weight"][:, :, None, None], t["maps.bias"])
    assert (encoder.map_size, encoder.map_fingerprint) == (8, encoder.fingerprint)
    torch.testing.assert_close(encoder.maps(x), expected.clamp(-GREATEST_VALUE, GREATEST_VALUE))


def test_with_all_copies_the_maps_of_a_mirror_image_are_mirrored() -> None:
    encoder, x = load(tensors(), copies=["h", "v", "hv"]), images(3, 16, 1)
    torch.testing.assert_close(encoder.maps(x.flip(-1)), encoder.maps(x).flip(-1), rtol=1e-4, atol=1e-5)


def test_a_file_that_projects_no_maps_has_none() -> None:
    assert load({name: each for name, each in tensors().items() if not name.startswith("maps")}).map_size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps.weight": torch.ones(3, 9)}, "does not fit"),
        ({"maps.weight": torch.ones(2, 10)}, "maps of 2 channels|does not fit"),
        ({"maps.weight": torch.ones(3, 10, 1)}, "does not fit"),
        ({"maps.weight": torch.ones(())}, "does not fit"),
        ({"maps.bias": torch.ones(2)}, "does not fit"),
        ({"maps.bias": torch.full((3,), torch.nan)}, "no numbers"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tensors() | change)


def test_a_projection_without_taps_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        load(tensors() | {"project.weight": torch.ones(3, 4)}, [LAYERS[0], {"kind": "meanpool"}, LAYERS[-1]])


def test_maps_of_all_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_encoder, "MOST_MAP_NUMBERS", 100)
    with pytest.raises(ConfigError, match="more than 100 numbers"):
        load(tensors())
