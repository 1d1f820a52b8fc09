"""MR-MTL against the recursion of its paper, written here in numpy; and what an honest reply can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.algorithms import Pooled
from wardround.algorithms.mr_mtl import LONGEST_PULL, MrMtl
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss
from wardround.reach import Reach

HOSPITALS = 3
MODEL = Tabular.mlp(2, 2, 1)  # its start is not zero
SIZE = MODEL.layout.size
LOSS = Objective(MODEL, *no_scaling(2))


@dataclass(frozen=True)
class Hospital(SilentCohort):
    """Its gradient is A w - b, with noise of its own that a generator makes."""

    a: Tensor
    b: Tensor
    noise: float
    generator: torch.Generator

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        return self.a @ theta - self.b + self.noise * torch.randn(SIZE, generator=self.generator)


def hospitals(noise: float, seed: int) -> list[Hospital]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(HOSPITALS):
        root = torch.randn(SIZE, SIZE, generator=generator) / SIZE
        b = torch.randn(SIZE, generator=generator)
        made.append(Hospital(root @ root.T + torch.eye(SIZE), b, noise, torch.Generator().manual_seed(number)))
    return made


def ours(asked: list[list[int]], noise: float, seed: int, choice: MrMtl) -> tuple[Tensor, list[Tensor]]:
    """Theta, and each hospital's sum of what it sent, after rounds in which these answer."""
    optimizer = Sgd(learning_rate=7.0, momentum=0.9)  # which has no part in it
    theta, everybody = MODEL.initial(), hospitals(noise, seed)
    state, sent = choice.start(theta, LOSS, optimizer), [torch.zeros(SIZE) for _ in everybody]
    answered: set[int] = set()
    for who in asked:
        deltas = [choice.inner_after(sent[i], theta, everybody[i], LOSS) for i in who]
        for i, delta in zip(who, deltas, strict=True):
            sent[i] = sent[i] + delta
        answered |= set(who)
        pooled = Pooled(torch.stack(deltas).mean(0), share=len(who) / len(answered))
        state, theta = choice.outer(state, theta, pooled, LOSS, optimizer)
    return theta, sent


def published(rounds: int, noise: float, seed: int, choice: MrMtl) -> tuple[np.ndarray, list[np.ndarray]]:
    """Liu et al., algorithm 1: each w_h by steps of its private gradient and lambda (w_h - w); then w is their mean."""
    everybody, start = hospitals(noise, seed), MODEL.initial().numpy().astype(np.float64)
    own, mean = [start.copy() for _ in everybody], start
    for _ in range(rounds):
        for i, hospital in enumerate(everybody):
            for _ in range(choice.local_steps):
                g = hospital.gradient(LOSS, torch.from_numpy(own[i]).float()).numpy()
                own[i] = own[i] - choice.local_learning_rate * (g + choice.pull * (own[i] - mean))
        mean = np.mean(own, axis=0)
    return mean, own


@given(
    rounds=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
    k=st.integers(1, 4),
    eta=st.sampled_from([0.02, 0.2]),
    pull=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_what_was_sent_makes_the_models_and_the_mean_of_the_paper(
    rounds: int, noise: float, seed: int, k: int, eta: float, pull: float
) -> None:
    choice = MrMtl(local_steps=k, local_learning_rate=eta, pull=pull)
    theta, sent = ours([list(range(HOSPITALS))] * rounds, noise, seed, choice)
    mean, own = published(rounds, noise, seed, choice)
    torch.testing.assert_close(theta.double(), torch.from_numpy(mean), rtol=1e-4, atol=1e-4)
    for i in range(HOSPITALS):
        torch.testing.assert_close((MODEL.initial() + sent[i]).double(), torch.from_numpy(own[i]), rtol=1e-4, atol=1e-4)


Rounds = st.lists(st.lists(st.integers(0, HOSPITALS - 1), min_size=1, unique=True), min_size=1, max_size=8)


@given(asked=Rounds, seed=st.integers(0, 99))
def test_theta_is_the_mean_of_the_models_whoever_answers(asked: list[list[int]], seed: int) -> None:
    """Of those that have ever answered; from the moment when they all have, their later absences change nothing."""
    everybody = list(range(HOSPITALS))
    theta, sent = ours([everybody, *asked], 0.3, seed, MrMtl(local_learning_rate=0.1, pull=1.0))
    torch.testing.assert_close(theta, MODEL.initial() + torch.stack(sent).mean(0), rtol=1e-4, atol=1e-4)


def test_with_little_pull_each_arrives_at_its_own_minimum_and_with_much_at_the_mean() -> None:
    everybody = hospitals(0.0, 3)
    minima = torch.stack([torch.linalg.solve(h.a, h.b) for h in everybody])
    apart = []
    for pull in (0.0, 1.0, 5.0):
        _, sent = ours([list(range(HOSPITALS))] * 300, 0.0, 3, MrMtl(local_learning_rate=0.1, pull=pull))
        models = MODEL.initial() + torch.stack(sent)
        apart.append(float((models - models.mean(0)).norm()))
        if not pull:
            torch.testing.assert_close(models, minima, rtol=1e-3, atol=1e-3)
    assert apart[0] > 1.5 * apart[1] > 3 * apart[2] > 0


@given(
    k=st.integers(1, 6),
    noise=st.sampled_from([0.0, 0.5]),
    far=st.sampled_from([0.0, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_no_honest_reply_is_longer_than_its_bound_wherever_theta_is(
    k: int, noise: float, far: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(SIZE, generator=generator), dim=0)

    class Agreeing(SilentCohort):
        def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
            return direction + noise * torch.randn(SIZE, generator=generator)

    choice = MrMtl(local_steps=k, local_learning_rate=0.3, pull=3.0)
    delta = choice.inner_after(torch.zeros(SIZE), MODEL.initial() - far * direction, Agreeing(), LOSS)
    ((size, longest),) = choice.longest(MODEL.layout, Reach(1.0, noise))
    assert (size, True) == (SIZE, float(delta.norm()) <= longest)
    if far > 100 and not noise:
        assert float(delta.norm()) > 0.99 * k * 0.3 * (1 + LONGEST_PULL), "the bound is reached"


def test_a_pull_that_overshoots_is_refused() -> None:
    with pytest.raises(ValueError, match="overshoots the mean"):
        MrMtl(local_learning_rate=10.0, pull=0.2)
