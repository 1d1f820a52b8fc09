"""How outlines are judged: Dice at the images' own resolution, for cells whose probabilities are interpolated to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from hospitals import DRAWS, Predictor, Target
from real_data import Outlined
from wardround.labels import LABEL_KINDS
from wardround.planes import UNKNOWN, plane_of, shares_of
from wardround_client.cohort.examples import Examples

CUTS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Probabilities among which a hospital chooses, on its support, from where on a pixel is inside."""
PLAIN_CUT = 0.5  # where there is no support
SUPPORT_CELLS = 256
"""Of an image, how many cells, drawn once, a support holds: what is left out saves hours."""
MOST_JUDGED = 48  # patients; more change a mean by less than a support does
_AT_ONCE = 64  # images


@dataclass(frozen=True)
class OutlinedTarget(Target):
    """A target whose examples are the cells of images. side: of an image's grid of cells."""

    truth: Outlined
    side: int


def shares(outlined: Outlined, cell_px: int) -> Tensor:
    """What of each cell is outside and inside: float32 [n cells, 2]."""
    plane = np.where(outlined.known, plane_of(outlined.inside), UNKNOWN)
    return torch.from_numpy(shares_of(plane, 2, cell_px))


def cells_of(z: Tensor, y: Tensor, patient: NDArray[np.int64], side: int, drawn: int) -> Examples:
    """Images as examples: z [n side^2, d] and y [n side^2, 2], an image's cells row by row."""
    return Examples(
        z=z,
        y=y,
        patient=torch.from_numpy(patient).repeat_interleave(side**2),
        summary=z,
        classes=2,
        labels=LABEL_KINDS["mask"],
        cells=side**2,
        drawn=drawn,
    )


def thinned(examples: Examples, images: Tensor, kept: int, seed: int) -> Examples:
    """Some images, int64 [m], with so many of their cells each, drawn once."""
    kept = min(kept, examples.cells)
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(examples.cells, generator=generator)[:kept].sort().values for _ in images]
    cells = torch.stack(drawn) if drawn else images.new_zeros(0, kept)
    rows = (images.unsqueeze(1) * examples.cells + cells).flatten()
    z, patient = examples.z[rows], torch.unique(examples.patient[rows], return_inverse=True)[1]
    return replace(examples, z=z, y=examples.y[rows], patient=patient, summary=z, cells=kept)


def dice(predictor: Predictor, target: Target, shots: int, seed: int) -> dict[str, float]:
    """The mean over patients of their Dice coefficients, each of all the pixels of a patient's images together.

    Shots are patients who have something outlined. From which probability on a pixel is inside is what does best on the
    support, by the same rule for everybody; without a support, from one half on. Whoever asks with the same target,
    shots and seed is judged on the same supports and queries.
    """
    assert isinstance(target, OutlinedTarget)
    generator = torch.Generator().manual_seed(seed * 1009 + shots)
    shown = _by_patient(torch.from_numpy(target.truth.inside.sum((1, 2))), target.truth.patient) > 0
    able, found = torch.nonzero(shown).flatten(), []
    for draw in range(DRAWS if shots else 1):
        order = able[torch.randperm(len(able), generator=generator)]
        chosen, others = order[: min(shots, len(able) // 2)], order[min(shots, len(able) // 2) :][:MOST_JUDGED]
        images = _images_of(target, chosen)
        support = thinned(target.examples, images, SUPPORT_CELLS, seed * 31 + draw)
        probabilities = predictor(support if shots else support.nobody)
        cut = PLAIN_CUT
        if shots:
            by_cut = _scores(probabilities, target, images, CUTS)
            cut = CUTS[int(by_cut.mean(0).argmax())]
        found.append(float(_scores(probabilities, target, _images_of(target, others), (cut,)).mean()))
    return {"dice": fmean(found)}


def _images_of(target: OutlinedTarget, patients: Tensor) -> Tensor:
    return torch.nonzero(torch.isin(torch.from_numpy(target.truth.patient), patients)).flatten()


def _by_patient(values: Tensor, patient: NDArray[np.int64]) -> Tensor:
    """Sums of values [n, ...] over each patient's images: [patients, ...]."""
    numbers = torch.from_numpy(patient)
    return values.new_zeros(int(numbers.max()) + 1, *values.shape[1:]).index_add_(0, numbers, values)


def _scores(
    probabilities: Callable[[Tensor], Tensor], target: OutlinedTarget, images: Tensor, cuts: Sequence[float]
) -> Tensor:
    """Dice by patient and cut, float64 [patients of these images, cuts]."""
    truth, rows = target.truth, images.numpy()
    counts = torch.cat([_overlaps(part, probabilities, target, cuts) for part in torch.split(images, _AT_ONCE)])
    of = np.unique(truth.patient[rows], return_inverse=True)[1].astype(np.int64)
    both, either = _by_patient(counts, of).unbind(-1)
    return 2 * both / either.clamp_min(1)


def _overlaps(
    images: Tensor, probabilities: Callable[[Tensor], Tensor], target: OutlinedTarget, cuts: Sequence[float]
) -> Tensor:
    """Of each image and cut, pixels inside both outlines, and in one plus in the other: float64 [n, cuts, 2]."""
    side, truth, rows = target.side, target.truth, images.numpy()
    z = target.examples.z.view(-1, side**2, *target.examples.z.shape[1:])[images].flatten(0, 1)
    grid = probabilities(z)[:, 1].view(-1, 1, side, side)
    size = truth.inside.shape[1:]
    fine = interpolate(grid, size, mode="bilinear", align_corners=False).squeeze(1)
    inside, known = torch.from_numpy(truth.inside[rows]), torch.from_numpy(truth.known[rows])
    both, either = [], []
    for cut in cuts:
        said = (fine >= cut) & known
        both.append((said & inside).sum((1, 2)))
        either.append(said.sum((1, 2)) + (inside & known).sum((1, 2)))
    return torch.stack([torch.stack(both, 1), torch.stack(either, 1)], -1).double()
