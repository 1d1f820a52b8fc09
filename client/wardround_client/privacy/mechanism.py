"""Poisson sampling and Gaussian noise. Every random bit comes from the operating system; there is no seed.

Floating point (Mironov, "On significance of the least significant bits for differential privacy", 2012; Jin et al.,
"Are we there yet? Timing and floating-point attacks on differential privacy systems", 2022). Two defences are stacked:

1. Each normal number is a scaled sum of two float64 Box-Muller draws from independent uniforms, so that undoing one
   means solving for four 53-bit unknowns from two outputs (Holohan and Braghin, "Secure random sampling in
   differential privacy", 2021, section 4; Opacus' secure mode sums four numbers for the same purpose).
2. The noised sum is computed in float64 and rounded to a PUBLIC grid, a power of two about a millionth of the noise's
   standard deviation, before anything sees it. The low bits, on which those attacks live, are gone; rounding is
   post-processing, and each grid point is reached from an astronomical number of draws.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

GRID_BITS = 20  # the grid is 2^-20 of the noise's standard deviation: its own error is a millionth of the noise


def uniform(size: int) -> Tensor:
    """Float64 [size] in the open interval (0, 1), 52 bits each, never 0 or 1.

    A ChaCha20 keystream under a fresh 256-bit key from `os.urandom`: as unpredictable as the system's own generator,
    and twice as fast. Nothing is kept between calls, so neither a fork nor a snapshot can repeat a stream.
    """
    key, nonce = os.urandom(32), os.urandom(12)
    stream = bytearray(8 * size + 1)  # torch wants memory that it may write to; numpy wants a byte even for size 0
    # Blocks are counted from 0: a random first four bytes would let the counter run out once in 2^32 / blocks calls.
    Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), None).encryptor().update_into(bytes(8 * size), stream)
    bits = torch.from_numpy(np.frombuffer(stream, dtype=np.int64, count=size))
    # The bits become the fraction of a float64 in [1, 2); half a step above its lower end is taken from it. Exact.
    return bits.bitwise_and_((1 << 52) - 1).bitwise_or_(1023 << 52).view(torch.float64).sub_(1 - 2.0**-53)


def standard_normal(size: int) -> Tensor:
    """Float64 [size], N(0, 1): the sum of two independent Box-Muller draws over sqrt 2 (module docstring).

    With t the tangent of half the angle, the cosine is 2 / (1 + t^2) - 1 and the sine 2 t / (1 + t^2): one
    transcendental function instead of two. numpy's logarithm and tangent are the fastest float64 ones at hand.
    """
    half = (size + 1) // 2
    radius, tangent = uniform(4 * half).numpy().reshape(2, 2, half)  # of each: two draws
    np.log(radius, out=radius)
    np.sqrt(np.negative(radius, out=radius), out=radius)  # that of a normal pair over sqrt 2
    tangent -= 0.5
    tangent *= math.pi
    np.tan(tangent, out=tangent)
    scaled = np.square(tangent)
    scaled += 1
    np.divide(radius, scaled, out=scaled)
    scaled *= 2
    # Cosine and sine of one pair are independent normals; each output sums over two pairs.
    draws = np.empty((2, half))
    np.subtract(scaled, radius, out=radius).sum(0, out=draws[0])
    np.multiply(scaled, tangent, out=tangent).sum(0, out=draws[1])
    return torch.from_numpy(draws.reshape(-1)[:size])


def noised(total: Tensor, std: float) -> Tensor:
    """The only exit for a private sum: total [P] plus N(0, std^2), on the public grid; float32 [P], on total's device.

    Noise is drawn on the CPU whatever the device, because that is where the system's entropy is.

    Raises: ValueError, if std is not positive and finite.
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"a noise of standard deviation {std} is no noise")
    grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)
    values = standard_normal(total.numel()).mul_(std).add_(total.detach().to("cpu", torch.float64))
    return values.div_(grid).round_().mul_(grid).float().to(total.device)


def poisson_sample(n: int, rate: float) -> Tensor:
    """int64 indices, ascending, of those of n patients that are in a Poisson sample: each alone with the same rate.

    The rate is met to 2^-52. Raises: ValueError, if rate is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a sampling rate of {rate} is not in (0, 1]")
    if rate == 1:
        return torch.arange(n)
    return torch.nonzero(uniform(n) < rate).flatten()


def choose_images(images: Tensor, limit: int) -> Tensor:
    """For each patient i, who has images[i] images: which to use, int64 [patients, limit], -1 where there are no more.

    At most `limit` different images each, every subset equally likely. Time and memory grow with all images.
    """
    patients = len(images)
    most = int(images.max()) if patients else 0
    if limit == 1:
        return (uniform(patients) * images).long().clamp_max_(images - 1).unsqueeze(1)
    # Random keys, absent images last; the `limit` smallest keys of each patient are a uniform subset.
    keys = uniform(patients * most).view(patients, most)
    keys[torch.arange(most) >= images.unsqueeze(1)] = 2.0
    smallest, chosen = keys.topk(min(limit, most), dim=1, largest=False)
    chosen[smallest > 1] = -1
    return chosen


def choose_cells(shown: Tensor, limit: int) -> Tensor:
    """Which cells of each image to use, int64 [images, min(limit, cells)]: half of them, or as many as there are,
    among those that show something, and the rest among all others, every such subset equally likely.

    Mostly a lesion is a hundredth of an image: of cells drawn alike, the mean gradient says that nothing is anywhere,
    and privacy's noise drowns the rest. An image's draw depends on that image alone.

    Args:
        shown: bool [images, cells]: whether there is more to see than what is left over.
        limit: how many of an image.
    """
    images, cells = shown.shape
    limit = min(limit, cells)
    # Two draws of keys: what lost in the first is as likely in the second as any other.
    among, keys = uniform(2 * images * cells).view(2, images, cells)
    first, chosen = torch.where(shown, among, 2.0).topk(limit // 2, dim=1, largest=False)
    keys.scatter_(1, chosen, torch.where(first > 1, keys.gather(1, chosen), first - 1))
    drawn: Tensor = keys.topk(limit, dim=1, largest=False).indices
    return drawn
