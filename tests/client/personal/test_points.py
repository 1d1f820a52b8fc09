"""What found places are worth: by hand, and by a plain loop over thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.planes import UNKNOWN, plane_of
from wardround_client.personal.found import Candidate, candidates, findings_of, hits
from wardround_client.personal.kinds.points import METRICS, RATES, Calls
from wardround_client.personal.maps import Planes, Seen

Array = npt.NDArray[Any]
SIDE, CELL = 4, 4
probabilities = st.integers(0, 8).map(lambda eighths: eighths / 8)


class Rows:
    """Rows of a cohort whose last channel is the plane."""

    def __init__(self, planes: Array) -> None:
        self.planes, self.shape = planes, planes.shape

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> Array:
        return self.planes[rows][:, None]


@st.composite
def seen(draw: st.DrawFn) -> Seen:
    """Images of one class beside the background, with findings of 4 x 4 pixels."""
    images = draw(st.integers(1, 4))
    planes = np.zeros((images, SIDE * CELL, SIDE * CELL), np.uint16)
    for plane in planes:
        cells = draw(st.lists(st.integers(0, SIDE * SIDE - 1), max_size=3, unique=True))
        for number, cell in enumerate(cells, start=1):
            y, x = (CELL * each for each in divmod(cell, SIDE))
            plane[y : y + CELL, x : x + CELL] = plane_of(np.array(1), number)
    p = torch.tensor(draw(st.lists(probabilities, min_size=images * SIDE**2, max_size=images * SIDE**2)))
    maps = torch.stack([1 - p, p], 1).view(images, SIDE, SIDE, 2).permute(0, 3, 1, 2)
    patient = torch.tensor(sorted(draw(st.integers(0, 1)) for _ in range(images)))
    patient = torch.unique(patient, return_inverse=True)[1]
    return Seen(maps, Planes(Rows(planes), np.arange(images)), patient)


def by_hand(what: Seen, threshold: float) -> tuple[int, int, int]:
    """Findings that are hit, false candidates and findings, at a threshold."""
    right = wrong = there = 0
    for cells, plane in zip(what.cells.numpy(), what.planes, strict=True):
        known = findings_of(plane, 2)
        there += len(known)
        called = [one for one in candidates(cells, np.ones(2)) if one.probability >= threshold]
        found = [hits(one, known, CELL) for one in called]
        right += len({each for each in found if each >= 0})
        wrong += sum(each < 0 for each in found)
    return right, wrong, there


@given(seen())
def test_sensitivity_at_a_rate_is_that_of_the_best_threshold_within_it(what: Seen) -> None:
    found = Calls.of(what, np.ones(2)).metrics(torch.ones(what.patients, 1, dtype=torch.float64))[0]
    metrics = dict(zip(METRICS, found.tolist(), strict=True))
    for rate in RATES:
        at = [by_hand(what, threshold / 8) for threshold in range(10)]
        there = at[0][2]
        best = max((right for right, wrong, _ in at if wrong <= rate * len(what.planes)), default=0)
        got = metrics[f"sensitivity_at_{rate:g}"]
        assert np.isnan(got) if not there else got == pytest.approx(best / there)


@given(seen())
def test_more_false_ones_are_never_less_sensitive_and_weights_are_repeats(what: Seen) -> None:
    calls = Calls.of(what, np.ones(2))
    twice = calls.metrics(torch.full((what.patients, 1), 2.0, dtype=torch.float64))
    once = calls.metrics(torch.ones(what.patients, 1, dtype=torch.float64))
    torch.testing.assert_close(once, twice, equal_nan=True)
    froc = once[0, 1 : 1 + len(RATES)]
    if not froc.isnan().any():
        assert (froc.diff() >= 0).all() and froc.min() >= 0 and froc.max() <= 1


def test_a_hit_is_within_the_drawn_area_or_the_radius() -> None:
    plane = np.zeros((32, 32), np.uint16)
    plane[4:12, 4:24] = plane_of(np.array(1), 1)  # wide: its middle is 14, 8, its radius sqrt(160 / pi) = 7.1
    plane[20:22, 20:22] = plane_of(np.array(2), 2)
    known = findings_of(plane, 3)

    def at(label: int, x: float, y: float) -> int:
        return hits(Candidate(label, x / 4, y / 4, 1, 1), known, 4)

    assert (at(1, 23, 11), at(1, 14, 14), at(1, 14, 16), at(2, 14, 8)) == (0, 0, -1, -1)
    assert (at(2, 22, 22), at(2, 24, 24)) == (1, -1), "half of a cell's diagonal is as near as cells can tell"


def test_a_map_that_is_the_same_everywhere_has_one_candidate() -> None:
    (only,) = candidates(np.full((2, 8, 8), 0.5), np.ones(2))
    assert (only.x, only.y, only.probability, only.called) == (4, 4, 0.5, False)


def test_a_candidate_where_nobody_looked_is_not_false() -> None:
    p = torch.zeros(1, 2, SIDE, SIDE)
    p[0, 1, 1, 1] = 0.9
    p[0, 0] = 1 - p[0, 1]
    for value, false in ((UNKNOWN, 0.0), (0, 1.0)):
        plane = np.full((1, SIDE * CELL, SIDE * CELL), value, np.uint16)
        calls = Calls.of(Seen(p, Planes(Rows(plane), np.arange(1)), torch.zeros(1, dtype=torch.long)), np.ones(2))
        rates = dict(zip(METRICS, calls.metrics(torch.ones(1, 1, dtype=torch.float64))[0].tolist(), strict=True))
        assert rates["false_findings_per_image"] == false
