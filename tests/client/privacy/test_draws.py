"""The random numbers themselves: normal, on the public grid, from the system alone; samples Poisson and independent.

Every statistical test here fails by chance less than once in ten million runs, at any draw of the system's.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from wardround_client.privacy import mechanism

ALARM = 1e-9


@pytest.mark.parametrize("std", [1e-12, 0.37, 1.0, 5e3, 3e20])
@pytest.mark.parametrize("total", [0.0, 7.5])
def test_noise_is_normal_at_every_scale(std: float, total: float) -> None:
    """Kolmogorov-Smirnov, after the sum that it stands on is taken away again."""
    size = 100_000
    noise = (mechanism.noised(torch.full((size,), total * std, dtype=torch.float64), std).double() / std) - total
    assert stats.kstest(noise.numpy(), "norm").pvalue > ALARM
    # Kolmogorov-Smirnov is weak in the tails, which delta is about.
    for sigmas in (2.0, 3.0, 3.7):
        expected = size * 2 * stats.norm.sf(sigmas)
        assert abs(int((noise.abs() > sigmas).sum()) - expected) < 6 * math.sqrt(expected) + 6


def test_no_bytes_of_the_system_end_the_stream_early() -> None:
    """A block counter that began at 2^32 - 1 would run out after 64 bytes."""
    with patch.object(os, "urandom", lambda size: b"\xff" * size):
        assert mechanism.uniform(1000).isfinite().all()


def test_two_answers_share_nothing() -> None:
    one, two = (mechanism.noised(torch.zeros(100_000), 1.0).double() for _ in range(2))
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1].item()) < 6 / math.sqrt(100_000)
    assert not torch.isin(one, two).all()


@settings(max_examples=100)
@given(
    std=st.floats(1e-8, 1e8),
    totals=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
)
def test_the_sum_is_rounded_to_the_public_grid_before_anything_sees_it(std: float, totals: list[float]) -> None:
    """The grid is a power of two from sigma alone: neither the sum nor the patients move it.

    In float64 every number is an exact multiple of the grid. The cast to float32 rounds it once more, to 24 bits; a
    multiple of a power of two that is rounded to 24 bits is a multiple of it still. Both are post-processing.
    """
    grid = 2.0 ** (math.floor(math.log2(std)) - mechanism.GRID_BITS)
    assert 2.0**-21 * std < grid <= 2.0**-20 * std
    seen: list[Tensor] = []
    round_to_integer = torch.Tensor.round_

    def rounding(values: Tensor) -> Tensor:
        seen.append(round_to_integer(values))
        return seen[-1]

    with patch.object(torch.Tensor, "round_", rounding):
        answer = mechanism.noised(torch.tensor(totals, dtype=torch.float64) * std, std)
    (multiples,) = seen  # the integers by which the grid is multiplied, in place, before the cast
    assert multiples.dtype == torch.float64
    steps = multiples / grid
    assert torch.equal(steps, steps.round())
    assert steps.abs().max() < 2**53, "float64 holds each of these integers exactly"
    assert answer.dtype == torch.float32
    assert torch.equal(answer, multiples.float())
    steps = answer.double() / grid
    assert torch.equal(steps, steps.round())


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.9])
def test_patients_are_sampled_independently_of_each_other(rate: float) -> None:
    """P7: "Poisson-sample patients: each independently". Chi-square over pairs, near and far apart."""
    n, samples = 40, 20_000
    drawn = torch.zeros(samples, n)
    for row in drawn:
        row[mechanism.poisson_sample(n, rate)] = 1
    pairs = [(0, 1), (5, 6), (0, n - 1), (12, 30), (7, 8)]
    for one, other in pairs:
        table = torch.bincount((2 * drawn[:, one] + drawn[:, other]).long(), minlength=4).numpy()
        both = [(1 - rate) ** 2, rate * (1 - rate), rate * (1 - rate), rate**2]
        expected = [share * samples for share in both]
        assert stats.chisquare(table, expected).pvalue > ALARM
    # One sample after another, for the same patient.
    later = torch.bincount((2 * drawn[:-1, 3] + drawn[1:, 3]).long(), minlength=4)[[0, 3]]
    for found, share in zip(later.tolist(), [(1 - rate) ** 2, rate**2], strict=True):
        assert abs(found - share * samples) < 6 * math.sqrt(3 * share * (1 - share) * samples) + 6


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.99])
def test_the_rate_is_met_and_the_size_is_binomial(rate: float) -> None:
    """A sample of fixed size would be another mechanism, with another price."""
    n, samples = 500, 4000
    sizes = torch.tensor([len(mechanism.poisson_sample(n, rate)) for _ in range(samples)]).double()
    variance = n * rate * (1 - rate)
    assert abs(sizes.mean().item() - n * rate) < 6 * math.sqrt(variance / samples)
    fourth = 3 + (1 - 6 * rate * (1 - rate)) / variance
    assert abs(sizes.var().item() / variance - 1) < 6 * math.sqrt((fourth - 1) / samples)


@pytest.mark.parametrize("rate", [1.0, 0.5, 1e-12])
def test_a_patient_is_in_the_sample_exactly_when_its_own_number_is_below_the_rate(rate: float) -> None:
    numbers = torch.tensor([rate / 2, rate, 0.999999, rate / 3], dtype=torch.float64)
    with patch.object(mechanism, "uniform", lambda n: numbers):
        assert mechanism.poisson_sample(4, rate).tolist() == ([0, 1, 2, 3] if rate == 1 else [0, 3])


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_every_subset_of_a_patients_images_is_equally_likely(limit: int) -> None:
    """P9: "one random image of each sampled patient", and no favourite."""
    patients, images = 60_000, 4
    chosen = mechanism.choose_images(torch.full((patients,), images), limit)
    subsets = torch.zeros(patients, images, dtype=torch.int64).scatter_(1, chosen, 1)
    codes = (subsets * 2 ** torch.arange(images)).sum(1)
    counts = torch.unique(codes, return_counts=True)[1].numpy()
    assert len(counts) == math.comb(images, limit)
    assert counts.sum() == patients
    if len(counts) > 1:
        assert stats.chisquare(counts).pvalue > ALARM


def test_uniform_numbers_fill_the_open_interval_evenly() -> None:
    numbers = mechanism.uniform(400_000)
    assert numbers.dtype == torch.float64
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > ALARM
    low = (numbers * 2**52).long() & 1  # the last bit as well
    assert abs(low.double().mean().item() - 0.5) < 6 * 0.5 / math.sqrt(400_000)


def test_all_randomness_is_the_systems() -> None:
    """With `os.urandom` held fixed the noise repeats: there is no other source. Without, it never does."""
    with patch.object(os, "urandom", lambda size: bytes(range(size))):
        one, two = (mechanism.noised(torch.zeros(50), 1.0) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(mechanism.noised(torch.zeros(50), 1.0), mechanism.noised(torch.zeros(50), 1.0))


FORK = """
import json, os, random, warnings
import numpy, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from wardround_client.privacy import mechanism
random.seed(0); numpy.random.seed(0); torch.manual_seed(0)
for child in range(2):
    read, write = os.pipe()
    if os.fork() == 0:
        draws = [mechanism.noised(torch.zeros(4), 1.0), mechanism.uniform(4)]
        os.write(write, json.dumps([draw.tolist() for draw in draws]).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 4096).decode())
torch.manual_seed(0)
print(json.dumps([mechanism.noised(torch.zeros(4), 1.0).tolist(), mechanism.uniform(4).tolist()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_neither_a_seed_nor_a_fork_repeats_noise() -> None:
    """P50: "Noise comes from OS entropy." Two children of one process, and their parent, all seeded alike."""
    lines = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=600
    ).stdout.splitlines()
    noises, uniforms = zip(*[json.loads(line) for line in lines], strict=True)
    assert len({tuple(noise) for noise in noises}) == 3
    assert len({number for numbers in uniforms for number in numbers}) == 12
