"""Where a finding is: masks, points and boxes end up where the pixels of their image do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.planes import UNKNOWN, classes_in, findings_in, plane_of, shares_of
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.pixels import fit
from wardround_client.intake.marks import Place, drawn, fitted, of_picture, places_in
from wardround_client.intake.recipe import ImageRecipe

CLASSES = ("none", "nodule", "grade 2", "grade 2 10")
sides = st.integers(8, 90)


@given(height=sides, width=sides, size=st.sampled_from([8, 32, 61]), aspect=st.floats(0.2, 5), seed=st.integers(0, 99))
def test_a_plane_lies_where_its_image_does(height: int, width: int, size: int, aspect: float, seed: int) -> None:
    """The image IS its mask, so each pixel of the stored plane must be what the stored image shows there."""
    generator = np.random.default_rng(seed)
    mask = generator.random((height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width] < 0.4
    image = fit(mask.astype(np.float32), ImageRecipe(size, 1), aspect)[0]
    plane = classes_in(fitted(plane_of(mask), size, aspect), 2)
    sure = np.abs(image - 0.5) > 1e-3
    assert np.array_equal((image > 0.5)[sure], (plane == 1)[sure])


@given(st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.integers(0, 9), st.integers(2, 5))
def test_what_classes_cover_adds_up(images: int, cell_px: int, seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    found = generator.integers(0, classes, (images, 16, 16))
    plane = np.where(generator.random(found.shape) < 0.2, UNKNOWN, plane_of(found)).astype(np.uint16)
    shares = shares_of(plane, classes, cell_px)
    assert shares.shape == (images * (16 // cell_px) ** 2, classes)
    known = (plane != UNKNOWN).reshape(images, 16 // cell_px, cell_px, 16 // cell_px, cell_px).mean((2, 4)).ravel()
    assert np.allclose(shares.sum(1), known)
    assert np.allclose(
        shares.sum(0), [(classes_in(plane, classes) == each).sum() / cell_px**2 for each in range(classes)]
    )


numbers = st.floats(0, 1000, allow_nan=False).map(lambda value: round(value, 3))
places = st.lists(
    st.builds(
        lambda label, x, y, box: Place(label, x, y, *box),
        st.integers(1, 3),
        numbers,
        numbers,
        st.one_of(st.just(()), st.tuples(numbers.filter(lambda n: n > 0), numbers.filter(lambda n: n > 0))),
    ),
    min_size=1,
    max_size=6,
)


@given(places, st.sampled_from(["; ", ";", " ;  "]))
def test_places_are_read_as_they_are_written(wanted: list[Place], between: str) -> None:
    def text(place: Place) -> str:
        box = [place.width, place.height] if place.width else []
        return " ".join([CLASSES[place.label], *map(str, [place.x, place.y, *box])])

    found = places_in(between.join(map(text, wanted)), CLASSES)
    assert found == wanted or "grade 2 10" in [CLASSES[place.label] for place in wanted]


def test_a_class_may_be_left_out_where_there_is_one() -> None:
    assert places_in("3 4; 5 6 7 8", ("none", "nodule")) == [Place(1, 3, 4), Place(1, 5, 6, 7, 8)]
    assert places_in("none", ("none", "nodule")) == []


@pytest.mark.parametrize(
    "cell", ["nodule", "nodule 1", "3 4", "lump 3 4", "nodule 1 nan", "nodule 1 2 0 3", "nodule a b"]
)
def test_a_place_that_cannot_be_read_is_refused(cell: str) -> None:
    with pytest.raises(UnusableError, match="cannot be read"):
        places_in(cell, CLASSES)


def test_findings_are_told_apart_and_small_ones_lie_on_large_ones() -> None:
    plane = drawn([Place(2, 4, 4, 40, 40), Place(1, 24, 24)], 64, 64)
    assert (classes_in(plane, 4)[24, 24], findings_in(plane)[24, 24]) == (1, 2)
    assert (classes_in(plane, 4)[24, 40], findings_in(plane)[24, 40]) == (2, 1)
    assert plane[4, 4] == 0, "an ellipse fills its box"
    with pytest.raises(UnusableError, match="outside"):
        drawn([Place(1, 65, 3)], 64, 64)


def test_pictures_of_masks_are_numbers_of_classes_or_black_and_white() -> None:
    assert np.array_equal(of_picture(np.array([[0, 255], [3, 240]]), 2), [[0, 256], [0, 256]])
    assert np.array_equal(of_picture(np.array([[0, 1], [1, 0]]), 2), [[0, 256], [256, 0]])
    assert np.array_equal(of_picture(np.array([[0, 2], [255, 1]]), 3), [[0, 512], [UNKNOWN, 256]])
    assert not of_picture(np.zeros((4, 4), np.int64), 2).any(), "nothing is there"
    with pytest.raises(UnusableError, match="none of the classes"):
        of_picture(np.array([[0, 7]]), 3)
