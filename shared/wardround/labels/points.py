"""Findings at places, points or boxes: y as of a mask in which each finding is drawn, and judged finding by finding."""

from __future__ import annotations

from wardround.labels.mask import Mask


class Points(Mask):
    """Classes of cells, of which the first is where no finding is."""

    described = "findings at places of an image"
    unknown = "correct the points and ingest again; images of which the CSV says nothing are not used"
    places = True


kind = Points()
