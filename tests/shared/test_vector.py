from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.vector import Layout

layouts = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5).map(
    lambda shapes: Layout(tuple((f"t{i}", shape) for i, shape in enumerate(shapes)))
)


@given(layouts, st.integers(0, 99))
def test_unpack_then_pack_changes_nothing(layout: Layout, seed: int) -> None:
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    tensors = layout.unpack(vector)
    assert [(name, tuple(t.shape)) for name, t in tensors.items()] == list(layout.tensors)
    assert torch.equal(layout.pack(tensors), vector)
    assert Layout.of(tensors) == layout


def test_unpacking_is_differentiable() -> None:
    layout = Layout((("weight", (2, 2)), ("bias", (2,))))
    vector = torch.ones(6, requires_grad=True)
    layout.unpack(vector)["bias"].sum().backward()  # type: ignore[no-untyped-call]
    assert vector.grad is not None
    assert vector.grad.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("length", [5, 7])
def test_a_vector_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="layout of 6"):
        Layout((("weight", (2, 2)), ("bias", (2,)))).unpack(torch.zeros(length))


def test_missing_or_misshapen_tensors_are_refused() -> None:
    layout = Layout((("weight", (2, 2)), ("bias", (2,))))
    with pytest.raises(ValueError, match="layout"):
        layout.pack({"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="layout"):
        layout.pack({"weight": torch.zeros(4), "bias": torch.zeros(2)})
