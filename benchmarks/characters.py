"""Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): characters, of which few-shot episodes are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from wardround.errors import DataError
from wardround.questions import Shots

CHARACTERS, DRAWINGS, SIZE_PX, TURNS = 1623, 20, 28, 4
TRAINING, VALIDATION = 1200, 100  # characters; the last 100 of the 1200 validate
SPLIT_SEED = 1623  # the same characters in every run

Episode = tuple[Shots, Shots]


class Omniglot:
    """Drawings of characters, of which classes are made by turning them.

    drawings: float32 [characters, 20, 28, 28], 1 = ink.
    """

    def __init__(self, drawings: Tensor) -> None:
        self.drawings = drawings

    @classmethod
    def read(cls, path: Path) -> Self:
        """All 1623 characters, in the file's order. Raises: DataError."""
        if not path.exists():
            raise DataError(
                f"there is no Omniglot at {path}",
                allowed="an .npz with X, uint8 [32460, 98]: 1623 characters x 20 drawings, 28 x 28 bits each, 1 = ink",
                do="say in --data or WARDROUND_DATA in which folder omniglot/omni28bits.npz is",
            )
        with np.load(path) as file:
            bits = np.unpackbits(file["X"], axis=1)[:, : SIZE_PX**2]
        return cls(torch.from_numpy(bits).view(CHARACTERS, DRAWINGS, SIZE_PX, SIZE_PX).float())

    def split(self) -> tuple[Self, Self, Self]:
        """Characters to train on, to validate with and to test with; the same in every run."""
        order = torch.randperm(len(self.drawings), generator=torch.Generator().manual_seed(SPLIT_SEED))
        parts = order.tensor_split([TRAINING - VALIDATION, TRAINING])
        training, validation, test = (type(self)(self.drawings[part]) for part in parts)
        return training, validation, test

    def episode(self, ways: int, shots: int, queries: int, generator: torch.Generator) -> Episode:
        """Support and query of `ways` classes; each drawing is a patient's."""
        classes = torch.randperm(TURNS * len(self.drawings), generator=generator)[:ways]
        chosen = torch.rand(ways, DRAWINGS, generator=generator).argsort(1)[:, : shots + queries]
        drawings = self.drawings[classes.unsqueeze(1) // TURNS, chosen]
        x = torch.stack([d.rot90(turns, (1, 2)) for d, turns in zip(drawings, (classes % TURNS).tolist(), strict=True)])
        return _shots(x[:, :shots]), _shots(x[:, shots:])


def _shots(drawings: Tensor) -> Shots:
    """Of drawings [ways, n, 28, 28]."""
    ways, n = drawings.shape[:2]
    x = drawings.reshape(ways * n, 1, SIZE_PX, SIZE_PX).contiguous(memory_format=torch.channels_last)
    return Shots(x, torch.arange(ways).repeat_interleave(n), torch.arange(ways * n), torch.ones(ways * n))
