"""The built-in encoder as ONNX: the same numbers as torch's, for every size, and nothing but standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from wardround.models.encoder import BuiltinEncoder
from wardround.models.scattering import Scattering
from wardround.onnx_files.export import written
from wardround.onnx_files.real_waves import BuiltinModule, RealWaves, linearly
from wardround.onnx_files.session import Session


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (33, 3), (64, 1)])
def test_the_built_in_encoder_as_onnx_gives_torch_s_features(size: int, channels: int) -> None:
    encoder = BuiltinEncoder.of(size, channels, 8)
    x = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(size))
    x[1, :, : size // 2], x[2] = 0, 1  # edges, and a blank image
    data = written(BuiltinModule(encoder), x[:1], input_name="image", output_names=["features"], metadata={})
    session = Session(data, "features")
    found = np.concatenate([session(image[None].numpy()) for image in x])
    np.testing.assert_allclose(found, encoder(x).numpy(), atol=2e-4)
    assert {node.domain for node in onnx.ModelProto.FromString(data).graph.node} == {""}


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_waves_of_real_numbers_are_the_waves(scales: int, seed: int) -> None:
    waves = Scattering(2 ** (scales + 1), scales, 4)
    x = torch.randn(2, waves.size, waves.size, generator=torch.Generator().manual_seed(seed))
    if scales == 1:
        return  # there is no second order to compare
    (first, second), (ours, ours_second) = waves(x), RealWaves(waves)(x)
    for theirs, each in zip([*first, second], [*ours, ours_second], strict=True):
        torch.testing.assert_close(each, theirs, atol=1e-5, rtol=1e-4)


@given(st.integers(2, 70), st.integers(2, 70), st.integers(1, 64), st.booleans())
@settings(max_examples=40, deadline=None)
def test_two_matrices_resize_as_the_filter_does(height: int, width: int, side: int, antialias: bool) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))
    theirs = interpolate(x, (side, side), mode="bilinear", antialias=antialias, align_corners=False)
    torch.testing.assert_close(linearly(x, side, antialias=antialias), theirs, atol=1e-5, rtol=1e-5)
