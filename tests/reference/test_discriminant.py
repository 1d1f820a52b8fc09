"""The shared metric against linear discriminant analysis written out, and what it is for: a disease that nobody had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.algorithms.discriminant import LENGTHS, RIDGE, SHRINKAGE, Discriminant, metric
from wardround.algorithms.fedavg import FedAvg
from wardround.meta.class_sums import WithSums
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround.questions import Loss, Shots

FEATURES, CLASSES = 8, 3
SCATTER, SUMS, COUNTS = LENGTHS.values()
METHOD = Discriminant(local_learning_rate=0.5, adapt_pull=0.3)


def objective(classes: int = CLASSES) -> Objective:
    model = METHOD.extended(Tabular.logistic(FEATURES, classes))
    return Objective(model, *no_scaling(FEATURES))


def patients(seed: int, classes: int = CLASSES, n: int = 300, nuisance: float = 6.0) -> tuple[Tensor, Tensor]:
    """Classes that differ in the last half of the features; the first half is noise, and far larger."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, FEATURES // 2, generator=generator)
    x = torch.randn(n, FEATURES, generator=generator)
    x[:, : FEATURES // 2] *= nuisance
    x[:, FEATURES // 2 :] = 1.5 * centres[y] + 0.5 * x[:, FEATURES // 2 :]
    return x, y


class Mean(SilentCohort):
    """Answers with the mean gradient of its patients, who have one image each."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        gradient: Tensor = torch.func.grad(loss)(theta, self.x, self.y)
        return gradient


def learned(x: Tensor, y: Tensor, rounds: int = 20) -> Tensor:
    loss = objective()
    theta = loss.model.initial()
    for _ in range(rounds):
        theta = theta + METHOD.inner(theta, Mean(x, y), loss)
    return theta


def test_what_is_learned_beside_the_head_are_the_sums() -> None:
    x, y = patients(0)
    loss = objective()
    f = loss.embed(loss.model.initial(), x)
    beside = loss.extras(learned(x, y, rounds=3))
    one_hot = torch.nn.functional.one_hot(y, CLASSES).float()
    steps = 3 * METHOD.local_learning_rate / len(y)
    torch.testing.assert_close(beside["scatter"], SCATTER * steps * f.T @ f)
    torch.testing.assert_close(beside["sums"], SUMS * steps * one_hot.T @ f)
    torch.testing.assert_close(beside["counts"], COUNTS * steps * one_hot.sum(0))


def test_the_head_is_that_of_fedavg() -> None:
    x, y = patients(1)
    plain = Objective(Tabular.logistic(FEATURES, CLASSES), *no_scaling(FEATURES))
    theta = plain.model.initial()
    for _ in range(5):
        theta = theta + FedAvg(local_learning_rate=0.5).inner(theta, Mean(x, y), plain)
    torch.testing.assert_close(learned(x, y, rounds=5)[: len(theta)], theta)


def test_the_metric_is_that_of_discriminant_analysis() -> None:
    """In float64 numpy: the covariance within classes, its ridge, the head's directions."""
    x, y = patients(2)
    loss, theta = objective(), learned(x, y)
    f = loss.embed(theta, x).double().numpy()
    n = len(y)
    q = f.T @ f / n
    between = np.zeros_like(q)
    for label in range(CLASSES):
        members = f[y.numpy() == label]
        total = members.sum(0)
        between += np.outer(total, total) / (n * (len(members) + SHRINKAGE * n))
    values, vectors = np.linalg.eigh(q - between)
    root = vectors @ np.diag((values + RIDGE * values.mean()) ** -0.5) @ vectors.T
    weight = loss.head(theta)[0].double().numpy()
    _, s, v = np.linalg.svd(weight - weight.mean(0), full_matrices=False)
    expected = root @ (np.eye(FEATURES) + v.T @ np.diag(s / s[0]) @ v)
    expected *= np.sqrt(np.trace(q) / np.trace(expected.T @ q @ expected))
    np.testing.assert_allclose(metric(theta, loss).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_before_anything_is_learned_the_metric_is_the_identity() -> None:
    loss = objective()
    assert torch.equal(metric(loss.model.initial(), loss), torch.eye(FEATURES))


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([1e-3, 1.0, 1e3, 1e12]))
def test_no_noise_makes_a_metric_that_cannot_be_used(seed: int, noise: float) -> None:
    loss = objective()
    theta = noise * torch.randn(loss.model.layout.size, generator=torch.Generator().manual_seed(seed))
    found = metric(theta, loss)
    assert bool(found.isfinite().all())
    assert torch.linalg.matrix_rank(found) == FEATURES
    x, y = patients(seed, n=6)
    support = Shots(x, y, torch.arange(6), torch.ones(6))
    fitted = METHOD.adapt(loss.model.initial() + theta.clamp(-9, 9), support, loss)
    assert bool(METHOD.predict(fitted, x, loss).isfinite().all())


def test_a_patient_s_vector_is_the_head_s_gradient_and_the_three_sums() -> None:
    loss, x, y = objective(), *patients(3, n=1)
    theta = torch.zeros(loss.model.layout.size)
    gradient = torch.func.grad(WithSums(loss, LENGTHS))(theta, x, y)
    f = loss.embed(theta, x)[0]
    parts = loss.extras(gradient)
    torch.testing.assert_close(parts["scatter"], -SCATTER * torch.outer(f, f))
    torch.testing.assert_close(parts["sums"][y[0]], -SUMS * f)
    torch.testing.assert_close(gradient[: loss.model.body_size], torch.zeros(loss.model.body_size))
    assert parts["counts"].tolist() == pytest.approx([-COUNTS if k == y[0] else 0.0 for k in range(CLASSES)])


def test_with_no_shots_worth_it_the_adapted_model_is_the_shared_one() -> None:
    """A strong pull keeps the head that theta holds: in the metric it predicts as without."""
    x, y = patients(4)
    loss, theta = objective(), learned(x, y)
    support = Shots(x[:3], y[:3], torch.arange(3), torch.ones(3))
    held = METHOD.model_copy(update={"adapt_pull": 1e6}).adapt(theta, support, loss)
    torch.testing.assert_close(METHOD.predict(held, x, loss), loss.logits(theta, x), rtol=1e-3, atol=1e-3)


def test_new_classes_are_told_apart_by_fewer_patients() -> None:
    """Two diseases that nobody had: five patients of each, in the federation's metric and without it."""
    theirs, ours = objective(), objective(2)
    theta = learned(*patients(5))
    start = ours.model.initial()
    moved = METHOD.for_classes(theta, theirs, ours, start, torch.zeros(2, CLASSES))
    torch.testing.assert_close(metric(moved, ours), metric(theta, theirs))
    assert not ours.head(moved)[0].any()
    right = {"with": 0.0, "without": 0.0}
    for seed in range(10):
        x, y = patients(100 + seed, classes=2)
        support = Shots(x[:10], y[:10], torch.arange(10), torch.ones(10))
        for name, at in (("with", moved), ("without", start)):
            fitted = METHOD.adapt(at, support, ours)
            right[name] += float((METHOD.predict(fitted, x[10:], ours).argmax(1) == y[10:]).float().mean()) / 10
    assert 1 - right["with"] < 0.6 * (1 - right["without"])
