"""The deal of few-shot episodes: one patient, one episode, one side, whoever else is there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.client.privacy.generated import CLASSES, cohort
from torch import Tensor

from wardround.config import Privacy
from wardround.questions import Shots
from wardround_client.cohort.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.episodes import Deal, deal, episodes_of

SHARES = st.sampled_from([0.1, 0.5, 0.9])
ALARM = 1e-9  # how often a statistical test may fail by chance


def numbered(images: list[int], seed: int = 0) -> Examples:
    """Image number i is the number i, so that a loss can tell which images it was shown."""
    n = sum(images)
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images, dtype=torch.int64))
    patient = patient[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    z = torch.arange(n, dtype=torch.float32).unsqueeze(1)
    return Examples(z, torch.arange(n) % CLASSES, patient, z, CLASSES)


def episodes_shown(examples: Examples, privacy: Privacy, rate: float = 1.0) -> list[tuple[Shots, Shots]]:
    """The episodes of one answer."""
    shown: list[tuple[Shots, Shots]] = []

    def looking(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        shown.append((support, query))
        return theta

    cohort(examples, privacy, rate=rate).episode_gradient(looking, torch.zeros(2))
    return shown


@given(
    images=st.lists(st.integers(1, 5), max_size=30),
    limit=st.integers(1, 4),
    per_episode=st.sampled_from([2, 5, 25, 100]),
    share=SHARES,
    rate=st.sampled_from([1.0, 0.6]),
    seed=st.integers(0, 1000),
)
def test_a_patient_is_in_one_episode_at_most_and_there_on_one_side(
    images: list[int], limit: int, per_episode: int, share: float, rate: float, seed: int
) -> None:
    """P15: "every sampled patient is in exactly one episode"; "Support and query never share a patient"."""
    examples = numbered(images, seed)
    privacy = Privacy(images_per_patient=limit, patients_per_episode=per_episode, support_share=share)
    shown = episodes_shown(examples, privacy, rate)
    seen: list[int] = []
    for sides in shown:
        for side in sides:
            rows = side.x.flatten().long()
            owners = examples.patient[rows]
            assert torch.equal(side.y, examples.y[rows])
            assert len(torch.unique(rows)) == len(rows), "an image twice"
            distinct, inverse, counts = torch.unique(owners, return_inverse=True, return_counts=True)
            # The side's own numbers of its patients say the same as the cohort's: equal where those are equal.
            assert len(torch.unique(side.patient * len(images) + owners)) == len(distinct)
            assert counts.max() <= limit
            torch.testing.assert_close(side.weight, 1 / counts[inverse].float())
            seen += distinct.tolist()
    assert len(set(seen)) == len(seen), "a patient in two episodes, or on both sides of one"
    assert len(shown) <= privacy.episodes(50)


def test_every_sampled_patient_is_dealt_once() -> None:
    dealt = deal(10_000, 7, 0.3)
    assert dealt.episode.shape == dealt.support.shape == (10_000,)
    assert dealt.episode.min() == 0
    assert dealt.episode.max() == 6


@contextmanager
def drawing(*streams: Tensor) -> Iterator[None]:
    """`mechanism.uniform` gives these numbers, one stream a call."""
    left = list(streams)

    def uniform(size: int) -> Tensor:
        stream = left.pop(0)
        assert len(stream) == size
        return stream.clone()

    with patch.object(mechanism, "uniform", uniform):
        yield
    assert not left, "fewer draws than patients and two"


@settings(max_examples=200)
@given(
    patients=st.integers(1, 40), episodes=st.integers(1, 9), share=SHARES, seed=st.integers(0, 10_000), data=st.data()
)
def test_without_one_patient_everybody_else_is_dealt_as_before(
    patients: int, episodes: int, share: float, seed: int, data: st.DataObject
) -> None:
    """P15: "Assign each sampled patient to an episode, and to support or query, independently".

    The draws are independent and uniform, two for each patient. A patient's place is a function of that patient's own
    two; so the places of the others have the same distribution, draw by draw, whether or not the patient is there.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(patients, generator=generator, dtype=torch.float64) for _ in range(2))
    others = torch.arange(patients) != data.draw(st.integers(0, patients - 1))
    with drawing(first, second):
        all_ = deal(patients, episodes, share)
    with drawing(first[others], second[others]):
        fewer = deal(patients - 1, episodes, share)
    assert torch.equal(all_.episode[others], fewer.episode)
    assert torch.equal(all_.support[others], fewer.support)


@pytest.mark.parametrize("rate", [1.0, 0.4])
@settings(max_examples=100)
@given(images=st.lists(st.integers(1, 6), min_size=1, max_size=15), seed=st.integers(0, 10_000), data=st.data())
def test_without_one_patient_everybody_else_is_sampled_and_shows_the_same_images(
    rate: float, images: list[int], seed: int, data: st.DataObject
) -> None:
    """Poisson sampling and the choice of images, in the same sense: each patient's own draws alone decide."""
    n, generator = len(images), torch.Generator().manual_seed(seed)
    gone = data.draw(st.integers(0, n - 1))
    others = torch.arange(n) != gone
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    counts = torch.tensor(images)
    with drawing(*[uniform] * (rate < 1)):
        sample = mechanism.poisson_sample(n, rate)
    with drawing(*[uniform[others]] * (rate < 1)):
        fewer = mechanism.poisson_sample(n - 1, rate)
    renumbered = others.nonzero().flatten()[fewer]
    assert torch.equal(sample[sample != gone], renumbered)

    with drawing(uniform):
        one = mechanism.choose_images(counts, 1)
    with drawing(uniform[others]):
        assert torch.equal(one[others], mechanism.choose_images(counts[others], 1))

    # Of several images each has a number of its own; the matrix is as wide as the most images need.
    numbers = torch.rand(n, max(images), generator=generator, dtype=torch.float64)
    most = int(counts[others].max()) if n > 1 else 0
    with drawing(numbers.flatten()):
        many = mechanism.choose_images(counts, 3)
    with drawing(numbers[others, :most].flatten()):
        rest = mechanism.choose_images(counts[others], 3)
    assert torch.equal(many[others, : rest.shape[1]], rest)
    assert (many[others, rest.shape[1] :] == -1).all()


def test_episodes_and_sides_are_drawn_uniformly_and_apart() -> None:
    """Chi-square over episode x side, of 120,000 patients at a share of 0.3."""
    patients, episodes, share = 120_000, 6, 0.3
    dealt = deal(patients, episodes, share)
    cells = torch.bincount(dealt.episode * 2 + dealt.support.long(), minlength=2 * episodes)
    expected = torch.tensor([1 - share, share] * episodes) * patients / episodes
    assert stats.chisquare(cells.numpy(), expected.double().numpy() * (patients / expected.sum().item())).pvalue > ALARM


def test_neighbours_in_the_cohort_are_dealt_independently() -> None:
    """Chi-square over the pairs of episodes of patients 2i and 2i + 1."""
    pairs, episodes = 100_000, 5
    dealt = deal(2 * pairs, episodes, 0.5).episode.view(pairs, 2)
    table = torch.bincount(dealt[:, 0] * episodes + dealt[:, 1], minlength=episodes**2).view(episodes, episodes)
    assert stats.chi2_contingency(table.numpy()).pvalue > ALARM


def test_sizes_are_what_privacy_patients_per_episode_says() -> None:
    """Support and query together hold that many patients on average, the support its share of them."""
    episodes = Privacy(patients_per_episode=20).episodes(100_000)
    assert episodes == 5000
    dealt = deal(100_000, episodes, 0.25)
    sizes = torch.bincount(dealt.episode, minlength=episodes).double()
    assert len(sizes) == episodes
    assert abs(sizes.var().item() / 20 - 1) < 6 * math.sqrt(2 / 5000)  # binomial, nearly Poisson
    assert abs(dealt.support.double().mean().item() - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 100_000)


def test_an_episode_with_one_side_only_counts_as_zero() -> None:
    examples = numbered([1, 1, 1, 1])
    rows = torch.arange(4).unsqueeze(1)
    dealt = Deal(torch.tensor([0, 0, 1, 2]), torch.tensor([True, True, False, True]))
    assert list(episodes_of(examples, rows, rows >= 0, dealt)) == []
    dealt = Deal(torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, True]))
    assert len(list(episodes_of(examples, rows, rows >= 0, dealt))) == 2
