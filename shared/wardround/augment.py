"""Augmentation: the public and fixed variants of an image, from which learning learns besides the image itself.

An encoder is frozen and public, so a hospital encodes an image once; its variants are encoded beside it, also once. A
variant belongs to its image's patient, whose gradient is the mean over variants before it is clipped, so variants cost
no privacy (augmentation multiplicity: De, Berrada, Hayes, Smith and Balle, "Unlocking High-Accuracy Differentially
Private Image Classification through Scale", 2022, section 3.2). The paper draws the variants anew in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from wardround.task import VERSIONS, Augmentation

_SHIFT = 1 / 16  # of the image's side
_TONES = (0.0, 0.3, -0.3)  # as it is, brighter, darker
_STEPS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # down and right


def variants(x: Tensor, augment: Sequence[Augmentation]) -> Iterator[Tensor]:
    """Every combination of what `augment` names, `Task.variants` in all; the first is x itself.

    Args:
        x: float32 [n, channels, side, side] in [0, 1]; with nothing to augment, anything.
        augment: of a task.

    Yields:
        Float32 [n, channels, side, side] in [0, 1], of all n images one variant each.
    """
    for changes in product(*(_CHANGES[name] for name in augment)):
        changed = x
        for change in changes:
            changed = change(changed)
        yield changed


def made_by(augment: Sequence[Augmentation], allowed: Collection[Augmentation]) -> tuple[int, ...]:
    """Which of the `variants` by `augment` need no change but those allowed: their places, that of x itself first."""
    changes = product(*(range(VERSIONS[name]) for name in augment))
    return tuple(
        place
        for place, versions in enumerate(changes)
        if all(name in allowed for name, version in zip(augment, versions, strict=True) if version)
    )


def _shifted(x: Tensor, *, down: int, right: int) -> Tensor:
    """By _SHIFT of the side, at least a pixel, as often as said; what comes in repeats the edge."""
    height, width = x.shape[-2:]
    pixels = max(1, round(_SHIFT * height))
    wide = functional.pad(x, (pixels, pixels, pixels, pixels), mode="replicate")
    top, left = pixels * (1 - down), pixels * (1 - right)
    return wide[..., top : top + height, left : left + width]


def _toned(x: Tensor, *, by: float) -> Tensor:
    """Black stays black and white stays white; grey 0.5 becomes 0.5 + by / 4, much as by a power of 0.8 or 1.25.

    A power itself would be rounded one way or another by where an image lies among others, and so by who else is there
    (`wardround_client.batches`); sums and products are not.
    """
    return x + by * (x * (1 - x)) if by else x


_CHANGES: Mapping[Augmentation, tuple[Callable[[Tensor], Tensor], ...]] = {
    "flip-horizontal": (partial(torch.flip, dims=()), partial(torch.flip, dims=(-1,))),
    "flip-vertical": (partial(torch.flip, dims=()), partial(torch.flip, dims=(-2,))),
    "rotate-90": tuple(partial(torch.rot90, k=quarters, dims=(-2, -1)) for quarters in range(4)),
    "shift": tuple(partial(_shifted, down=down, right=right) for down, right in _STEPS),
    "intensity": tuple(partial(_toned, by=by) for by in _TONES),
}
