"""SCAFFOLD against algorithm 1 of its paper, written here in numpy line by line; and over hospitals with ledgers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cohorts import LossOnly, SilentCohort
from torch import Tensor

from wardround.algorithms import Pooled
from wardround.algorithms.scaffold import Scaffold
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss
from wardround.reach import Reach
from wardround.vector import Layout

SIZE, HOSPITALS = 4, 3


@dataclass(frozen=True)
class Hospital(SilentCohort):
    """Its gradient is A y - b, with noise of its own that a generator makes."""

    a: Tensor
    b: Tensor
    noise: float
    generator: torch.Generator

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        drawn = self.noise * torch.randn(SIZE, generator=self.generator)
        # What an answer holds at c's place is noise that nobody may use.
        return torch.cat([self.a @ theta[:SIZE] - self.b + drawn, torch.full((SIZE,), 1e6)])


class Nothing(LossOnly):
    """The loss is the hospital's business: only theta's parts are asked for."""

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return {"c": theta[SIZE:]}


def hospitals(noise: float, seed: int) -> list[Hospital]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(HOSPITALS):
        root = torch.randn(SIZE, SIZE, generator=generator) / SIZE
        b = torch.randn(SIZE, generator=generator)
        made.append(Hospital(root @ root.T + torch.eye(SIZE), b, noise, torch.Generator().manual_seed(number)))
    return made


def ours(asked: list[list[int]], noise: float, seed: int, k: int, eta_l: float, eta_g: float) -> Tensor:
    """Theta after rounds in which these hospitals answer."""
    scaffold, optimizer, loss = (
        Scaffold(local_steps=k, local_learning_rate=eta_l), Sgd(learning_rate=eta_g, momentum=0.0), Nothing()
    )  # fmt: skip
    theta, everybody = torch.zeros(2 * SIZE), hospitals(noise, seed)
    state, sent = scaffold.start(theta, loss, optimizer), [torch.zeros(2 * SIZE) for _ in everybody]
    answered: set[int] = set()
    for who in asked:
        deltas = [scaffold.inner_after(sent[i], theta, everybody[i], loss) for i in who]
        for i, delta in zip(who, deltas, strict=True):
            sent[i] = sent[i] + delta
        answered |= set(who)
        pooled = Pooled(torch.stack(deltas).mean(0), share=len(who) / len(answered))
        state, theta = scaffold.outer(state, theta, pooled, loss, optimizer)
    return theta


def published(asked: list[list[int]], noise: float, seed: int, k: int, eta_l: float, eta_g: float) -> np.ndarray:
    """Algorithm 1, option II, with its line numbers."""
    everybody = hospitals(noise, seed)
    x, c, c_i = np.zeros(SIZE), np.zeros(SIZE), np.zeros((HOSPITALS, SIZE))
    answered: set[int] = set()
    for sampled in asked:  # 3: sample clients S
        answered |= set(sampled)
        moved, changed = [], []
        for i in sampled:
            y = x.copy()  # 5: communicate (x, c)
            for _ in range(k):
                at = torch.cat([torch.from_numpy(y).float(), torch.zeros(SIZE)])
                g = everybody[i].gradient(Nothing(), at).numpy()[:SIZE].astype(np.float64)  # 8
                y = y - eta_l * (g - c_i[i] + c)  # 10
            c_plus = c_i[i] - c + (x - y) / (k * eta_l)  # 12, option II
            moved.append(y - x)  # 13
            changed.append(c_plus - c_i[i])
            c_i[i] = c_plus  # 14
        x = x + eta_g * np.mean(moved, axis=0)  # 16, 17
        c = c + len(sampled) / len(answered) * np.mean(changed, axis=0)
    return np.concatenate([x, c])


rounds = st.lists(st.lists(st.integers(0, HOSPITALS - 1), min_size=1, max_size=HOSPITALS, unique=True), max_size=6)


@given(
    asked=rounds,
    noise=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
    k=st.integers(1, 5),
    eta_l=st.sampled_from([0.01, 0.2]),
    eta_g=st.sampled_from([0.5, 1.0]),
)
def test_it_is_algorithm_1_whoever_answers(
    asked: list[list[int]], noise: float, seed: int, k: int, eta_l: float, eta_g: float
) -> None:
    expected = torch.from_numpy(published(asked, noise, seed, k, eta_l, eta_g)).float()
    torch.testing.assert_close(ours(asked, noise, seed, k, eta_l, eta_g), expected, rtol=1e-4, atol=1e-4)


def test_it_arrives_where_averages_of_drifting_hospitals_do_not() -> None:
    """Many local steps of hospitals with different minima: FedAvg stays beside the federation's minimum."""
    everybody = hospitals(0.0, 5)
    minimum = torch.linalg.solve(sum(h.a for h in everybody), sum(h.b for h in everybody))
    everyone = [list(range(HOSPITALS))] * 200
    found = ours(everyone, 0.0, 5, 10, 0.1, 1.0)[:SIZE]
    torch.testing.assert_close(found, minimum, rtol=1e-3, atol=1e-3)
    drifted = torch.zeros(2 * SIZE)
    fedavg = Scaffold(local_steps=10, local_learning_rate=0.1)
    for _ in everyone:  # without memory and with c = 0 it is FedAvg
        drifted[:SIZE] += torch.stack([fedavg.inner(drifted, h, Nothing()) for h in everybody]).mean(0)[:SIZE]
    assert (drifted[:SIZE] - minimum).norm() > 0.02


@pytest.mark.parametrize("k", [1, 4])
def test_both_parts_of_a_reply_say_the_same(k: int) -> None:
    """So that a reply is as long as noise and gradients make it, whatever c the coordinator sends."""
    scaffold = Scaffold(local_steps=k, local_learning_rate=0.2)
    theta = torch.randn(2 * SIZE, generator=torch.Generator().manual_seed(1))
    theta[SIZE:] *= 1000
    delta = scaffold.inner_after(0.1 * torch.ones(2 * SIZE), theta, hospitals(1.0, 2)[0], Nothing())
    torch.testing.assert_close(delta[:SIZE], -k * 0.2 * delta[SIZE:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.isfinite(delta).all(), torch.tensor(True))


@given(k=st.integers(1, 6), noise=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99))
def test_no_honest_reply_is_longer_than_its_bound(k: int, noise: float, seed: int) -> None:
    """Gradients of length 1 that turn round between two rounds, from a c of any length."""
    generator, signal = torch.Generator().manual_seed(seed), torch.tensor([1.0, 0.0, 0.0, 0.0])

    class Turning(SilentCohort):
        sign = 1.0

        def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
            answer = self.sign * signal + noise * torch.randn(SIZE, generator=generator)
            return torch.cat([answer, torch.zeros(SIZE)])

    scaffold, cohort = Scaffold(local_steps=k, local_learning_rate=0.3), Turning()
    theta = torch.cat([torch.zeros(SIZE), 10 * torch.randn(SIZE, generator=generator)])
    first = scaffold.inner(theta, cohort, Nothing())
    cohort.sign = -1.0
    second = scaffold.inner_after(first, theta, cohort, Nothing())
    layout = Layout((("own", (SIZE,)), ("c", (SIZE,))))
    for delta in (first, second):
        for part, (size, longest) in zip(
            torch.split(delta, SIZE), scaffold.longest(layout, Reach(1.0, noise)), strict=True
        ):
            assert (len(part), True) == (size, float(part.norm()) <= longest)
    if not noise:
        assert float(second[SIZE:].norm()) > 0.99 * 2, "the bound is reached"
