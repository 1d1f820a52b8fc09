"""Encoders made of encoders: cells, slices, and several inputs side by side."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.config import Federation
from wardround.models import build_model
from wardround.models.columns import BOUND, Columns
from wardround.models.composed import Slices
from wardround.models.encoder import BuiltinEncoder

ENCODER = BuiltinEncoder.of(16, 1, 4)
TASK = {"label_column": "ill", "classes": ["no", "yes"], "image_size_px": 16}


def federation(**task: object) -> Federation:
    return Federation.model_validate({"name": "f", "task": {**TASK, **task}, "model": {"features": 4}})


def test_cells_stand_where_the_maps_do() -> None:
    agreed = federation(labels="mask", cell_px=2)
    x = torch.zeros(1, 1, 16, 16)
    x[..., 12:, :4] = 1  # below, on the left
    cells = build_model(agreed).encode(x).view(8, 8, 4)
    apart = (cells - cells[0, 7]).abs().sum(2)
    assert apart[7, 0] > 10 * apart[1, 6], "what changes is down on the left"


@given(st.integers(2, 9), st.integers(0, 9))
def test_the_order_of_slices_and_black_ones_change_nothing(depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, depth, 16, 16, generator=generator)
    slices = Slices(ENCODER)
    z = slices(x)
    assert z.shape == (1, 8)
    assert torch.allclose(slices(x[:, :, torch.randperm(depth, generator=generator)]), z, atol=1e-5)
    assert torch.allclose(slices(torch.cat([x, torch.zeros(1, 1, 3, 16, 16)], 2)), z, atol=1e-5)
    assert slices(torch.zeros_like(x)).isfinite().all(), "a volume of nothing"


def test_a_missing_input_is_its_public_mean_and_a_flag() -> None:
    inputs = [
        {"name": "front", "image_size_px": 16},
        {"name": "blood", "kind": "table", "features": ["a", "b"], "centre": [10, 0], "spread": [2, 1]},
    ]
    model = build_model(federation(kind="inputs", inputs=inputs))
    there = torch.cat([torch.rand(256), torch.tensor([12.0, math.nan])])[None]
    missing = there.clone()
    missing[:, :256] = math.nan
    both, one = model.encode(there)[0], model.encode(missing)[0]
    assert both[4:].tolist() == [1.0, 0.0, 1.0, 1.0], "in units of the guess; a gap is the guess; both are there"
    assert one.tolist() == [0.0] * 4 + [1.0, 0.0, 0.0, 1.0]
    assert model.encode(torch.full_like(there, math.nan)).isfinite().all()


def test_numbers_out_of_all_proportion_are_bounded() -> None:
    columns = Columns(1, (0.0,), (1e-9,), bound=BOUND)
    assert columns(torch.tensor([[1e30], [-1e30], [math.inf]])).abs().max() <= 6


def test_whatever_defines_an_encoder_is_in_its_fingerprint() -> None:
    agreements = [
        federation(),
        federation(kind="volume", depth=4),
        federation(labels="mask"),
        federation(labels="mask", cell_px=2),
        *(
            federation(kind="inputs", inputs=[{"name": "b", "kind": "table", "features": ["a"], **more}])
            for more in ({}, {"centre": [1.0]}, {"spread": [2.0]})
        ),
    ]
    assert len({build_model(each).fingerprint for each in agreements}) == len(agreements)
