"""Random numbers that are the same on every machine and under every version of numpy and torch.

numpy guarantees the bits of a bit generator for ever, but not what its distributions make of them (NEP 19), so only
the bits are used: Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by the
SHA-256 of a name. None of this is ever used for privacy noise.
"""

from __future__ import annotations

import hashlib
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float64 tensor of `shape`, uniform in [0, 1): the stream called `name`, 53 random bits a number."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(prod(shape))
    return torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def he_uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 weights [outputs, inputs, ...] of variance 2 / fan-in (He et al. 2015, equation 10), uniform."""
    bound = sqrt(6 / prod(shape[1:]))
    return ((2 * uniform(name, shape) - 1) * bound).float()
