"""What a mask is worth, against other people's implementations and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from wardround_client.personal.kinds.mask import Tally, surface_distances

Array = npt.NDArray[Any]
SIDES = st.tuples(st.integers(2, 9), st.integers(2, 9))


@st.composite
def pairs(draw: st.DrawFn, classes: int = 3) -> tuple[Array, Array]:
    """Two images of classes."""
    shape = draw(SIDES)
    return tuple(draw(arrays(np.int64, shape, elements=st.integers(0, classes - 1))) for _ in range(2))  # type: ignore[return-value]


def edge(mask: Array) -> Array:
    """Places, by hand."""
    padded = np.pad(mask, 1)
    inner = [
        (y, x)
        for y, x in zip(*np.nonzero(padded), strict=True)
        if not (padded[y - 1, x] and padded[y + 1, x] and padded[y, x - 1] and padded[y, x + 1])
    ]
    return np.array(inner)


@given(pairs(classes=2))
def test_distances_are_those_of_brute_force(pair: tuple[Array, Array]) -> None:
    a, b = (each > 0 for each in pair)
    if not (a.any() and b.any()):
        return
    of_a, of_b = surface_distances(a, b)
    between = cdist(edge(a), edge(b))
    np.testing.assert_allclose(of_a, between.min(1))
    np.testing.assert_allclose(np.sort(of_b), np.sort(between.min(0)))


@given(pairs())
def test_overlap_and_volume_are_those_of_simpleitk(pair: tuple[Array, Array]) -> None:
    taken, there = pair
    tally = Tally(3)
    tally.add(taken, there)
    dice, _, volume = tally.metrics()
    measured: Any = SimpleITK.LabelOverlapMeasuresImageFilter()  # type: ignore[no-untyped-call]
    measured.Execute(*(SimpleITK.GetImageFromArray(each.astype(np.uint8)) for each in (there, taken)))
    for label in (1, 2):
        if (there == label).any():
            assert dice[label - 1] == pytest.approx(measured.GetDiceCoefficient(label), abs=1e-9)
            missing = (taken == label).sum() / (there == label).sum() - 1
            assert volume[label - 1] == pytest.approx(abs(missing))
        elif (taken == label).any():
            assert dice[label - 1] == 0 and np.isnan(volume[label - 1])
        else:
            assert np.isnan(dice[label - 1]) and np.isnan(volume[label - 1])


@given(pairs(), pairs())
def test_all_images_of_a_patient_count_together(first: tuple[Array, Array], second: tuple[Array, Array]) -> None:
    tally, size = Tally(3), (20, 20)
    whole = np.zeros((2, 20, 40), np.int64)
    for number, pair in enumerate((first, second)):
        tally.add(*pair)
        for of, image in zip(whole, pair, strict=True):
            of[: image.shape[0], number * size[1] : number * size[1] + image.shape[1]] = image
    together = Tally(3)
    together.add(*whole)
    np.testing.assert_allclose(tally.metrics()[[0, 2]], together.metrics()[[0, 2]])


@given(pairs(), st.data())
def test_what_nobody_looked_at_counts_nowhere(pair: tuple[Array, Array], data: st.DataObject) -> None:
    taken, there = pair
    unknown = data.draw(arrays(bool, there.shape))
    one, other = Tally(3), Tally(3)
    one.add(taken, np.where(unknown, -1, there))
    other.add(data.draw(arrays(np.int64, there.shape, elements=st.integers(0, 2))) * unknown + taken * ~unknown,
              np.where(unknown, -1, there))  # fmt: skip
    np.testing.assert_array_equal(one.metrics(), other.metrics())


@given(pairs())
def test_a_mask_is_worth_the_most_to_itself_and_the_same_mirrored(pair: tuple[Array, Array]) -> None:
    taken, there = pair
    same, mirrored, plain = Tally(3), Tally(3), Tally(3)
    same.add(there, there)
    plain.add(taken, there)
    mirrored.add(taken[:, ::-1], there[:, ::-1])
    for label in range(2):
        if (there == label + 1).any():
            assert same.metrics()[:, label].tolist() == [1, 0, 0]
    np.testing.assert_allclose(plain.metrics(), mirrored.metrics())
