"""Episodes whose support is nobody, beside plain autograd; class means, beside what they are estimated from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.chosen import UNITS, fitting
from tests.cohorts import SilentCohort
from torch import Tensor
from torch.func import grad

from wardround.algorithms import Pooled
from wardround.algorithms.centroids import LENGTHS, Centroids
from wardround.algorithms.generative import LENGTHS as DRAWN
from wardround.algorithms.generative import Generative, covariance
from wardround.meta import stand_ins
from wardround.meta.base import Episodic
from wardround.meta.class_sums import BLANKS, ClassMeans
from wardround.models import Objective
from wardround.models.head import EncoderHead
from wardround.models.tabular import Tabular
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss, Shots

FEATURES, CLASSES, PATIENTS = 6, 3, 240
METHODS = [name for name, units in UNITS.items() if "stand-ins" in units]
AFFINE = [name for name in METHODS if fitting(name).affine]  # type: ignore[attr-defined]
PRIOR = torch.tensor([0.2, 0.3, 0.5]).log()
SHIFT, SCALE = torch.linspace(-0.3, 0.3, FEATURES), torch.linspace(0.5, 2.0, FEATURES)


class Plain:
    """An encoder of features that are features already."""

    features, fingerprint = FEATURES, "plain"

    def __call__(self, x: Tensor) -> Tensor:
        return x


def method(name: str, **settings: object) -> Episodic:
    found = fitting(name, tasks="stand-ins", local_learning_rate=0.5, local_steps=2, **settings)
    assert isinstance(found, Episodic)
    return found


def loss_of(algorithm: Episodic) -> Objective:
    return Objective(algorithm.extended(EncoderHead.of(Plain(), CLASSES, embedding=4)), SHIFT, SCALE, PRIOR)


def patients(seed: int = 0, n: int = PATIENTS) -> tuple[Tensor, Tensor]:
    """Three classes that lie apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    return SHIFT + SCALE * (centres[y] + torch.randn(n, FEATURES, generator=generator)), y


@dataclass
class Mean(SilentCohort):
    """The exact mean of all patients' gradients, by plain autograd or in closed form."""

    x: Tensor
    y: Tensor

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        exact: Tensor = grad(loss)(theta, self.x, self.y)
        return exact


def at_known_means(algorithm: Episodic, loss: Objective) -> Tensor:
    """Theta after one round, in which the sums arrived, and with a body that is not its start."""
    x, y = patients()
    theta = loss.model.initial()
    theta = theta + algorithm.inner(theta, Mean(x, y), loss)
    assert stand_ins.class_means(theta, loss).known.all()
    return loss.with_body(theta, loss.body(theta) + 0.1 * torch.randn(loss.body(theta).shape))


@pytest.mark.parametrize("name", AFFINE)
def test_the_gradient_through_the_classifier_is_the_whole_loss_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """J' g, beside autograd through support, classifier and the patient's loss together."""
    torch.manual_seed(0)
    algorithm = method(name)
    loss = loss_of(algorithm)
    theta = at_known_means(algorithm, loss)
    x, y = patients(1, n=30)
    through = stand_ins.mean_step(algorithm, theta, Mean(x, y), loss)
    monkeypatch.setattr(type(algorithm), "affine", False)
    whole = stand_ins.mean_step(algorithm, theta, Mean(x, y), loss)
    for each in stand_ins.LENGTHS:
        torch.testing.assert_close(loss.extras(through)[each], loss.extras(whole)[each], rtol=1e-4, atol=1e-6)
    # As far as its length is bounded.
    one, other = loss.body(through), loss.body(whole)
    assert torch.cosine_similarity(one, other, 0) > 1 - 1e-4
    assert one.norm() <= other.norm() * (1 + 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_what_comes_in_first_are_the_sums_and_nothing_else_moves(name: str) -> None:
    algorithm = method(name)
    loss, (x, y) = loss_of(algorithm), patients()
    theta = loss.model.initial()
    delta = algorithm.inner(theta, Mean(x, y), loss)
    assert not loss.own(delta).abs().sum() > 0, "no class is known yet, so nothing can be learned"
    f = loss.standardised(x).float()
    shown = torch.nn.functional.one_hot(y, CLASSES).float()
    scale = algorithm.local_learning_rate / len(y)
    beside = loss.extras(delta)
    torch.testing.assert_close(beside["sums"], stand_ins.LENGTHS["sums"] * scale * shown.T @ f)
    torch.testing.assert_close(beside["counts"], stand_ins.LENGTHS["counts"] * scale * shown.sum(0))
    assert beside["blanks"].tolist() == [0.0] * BLANKS


def test_a_support_is_drawn_around_the_means_and_other_draws_follow_another_theta() -> None:
    algorithm = method("prototypical", stand_ins=400)
    loss = loss_of(algorithm)
    theta = at_known_means(algorithm, loss)
    means = stand_ins.class_means(theta, loss)
    support = stand_ins.drawn(means, theta, loss, 400)
    assert torch.equal(support.x, stand_ins.drawn(means, theta, loss, 400).x)
    assert not torch.equal(support.x, stand_ins.drawn(means, theta + 1e-3, loss, 400).x)
    f = loss.standardised(support.x)
    found = torch.stack([f[support.y == k].mean(0) for k in range(CLASSES)])
    torch.testing.assert_close(found, means.means, rtol=0, atol=4 / (400 * FEATURES) ** 0.5)
    assert float((f - means.means[support.y]).var() * FEATURES) == pytest.approx(1, abs=0.05)


def test_a_class_that_nobody_has_weighs_nothing() -> None:
    algorithm = method("ridge")
    loss, (x, y) = loss_of(algorithm), patients()
    theta = loss.model.initial()
    theta = theta + algorithm.inner(theta, Mean(x[y > 0], y[y > 0]), loss)
    means = stand_ins.class_means(theta, loss)
    assert means.known.tolist() == [False, True, True]
    assert stand_ins.drawn(means, theta, loss, 3).shares(CLASSES).sum(0).tolist() == [0, 3, 3]
    alone = algorithm.inner(theta, Mean(x[y == 0], y[y == 0]), loss)
    assert not loss.body(alone).abs().sum() > 0, "who is of an unknown class teaches no embedding"


def beside(noise: float, counts: list[float], seed: int, d: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """Places after noise, and the true means."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.4 * torch.nn.functional.normalize(torch.randn(len(counts), d, generator=generator))
    n = torch.tensor(counts)
    clean = {"sums": means * n.unsqueeze(1), "counts": n, "blanks": torch.zeros(BLANKS)}
    scales = {"sums": LENGTHS["sums"], "counts": LENGTHS["counts"], "blanks": 1.0}
    return {
        name: scales[name] * each + noise * torch.randn(each.shape, generator=generator) for name, each in clean.items()
    }, means


def test_without_noise_means_are_what_they_are() -> None:
    places, means = beside(0.0, [30.0, 300.0], 0)
    found = ClassMeans.of(places, LENGTHS)
    torch.testing.assert_close(found.means.float(), means)


def test_shrunk_means_are_nearer_to_the_truth_than_plain_ones_whatever_the_noise() -> None:
    for noise in (3.0, 10.0, 30.0):
        gained = []
        for seed in range(40):
            places, means = beside(noise, [120.0, 400.0, 3000.0, 150.0], seed)
            found = ClassMeans.of(places, LENGTHS)
            plain = (places["sums"] / LENGTHS["sums"]) / (places["counts"] / LENGTHS["counts"]).unsqueeze(1)
            there = found.known
            gained.append(float((plain - means)[there].square().sum() - (found.means - means)[there].square().sum()))
        assert sum(gained) > 0, noise
        assert sum(each > -0.05 for each in gained) > 35


def test_a_count_that_noise_alone_could_be_is_no_class() -> None:
    known = [ClassMeans.of(beside(30.0, [0.0, 5000.0], seed)[0], LENGTHS).known.tolist() for seed in range(50)]
    assert sum(first for first, _ in known) <= 5 and all(second for _, second in known)


def test_the_head_of_centroids_is_that_of_a_discriminant_analysis_with_public_covariance() -> None:
    """Beside the densities themselves: log N(f; m_k, I / d) up to what all classes share."""
    algorithm, (x, y) = Centroids(), patients()
    model = algorithm.extended(Tabular.logistic(FEATURES, CLASSES))
    loss = Objective(model, SHIFT, SCALE)
    theta, optimizer = model.initial(), Sgd(learning_rate=3.0)
    state = algorithm.start(theta, loss, optimizer)
    for _ in range(3):
        delta = algorithm.inner(theta, Mean(x, y), loss)
        state, theta = algorithm.outer(state, theta, Pooled(delta), loss, optimizer)
    f = loss.standardised(x).float()
    m = torch.stack([f[y == k].mean(0) for k in range(CLASSES)])
    log_density = -FEATURES / 2 * torch.cdist(f, m).square()
    found = loss.logits(theta, x)
    torch.testing.assert_close(found - found[:, :1], log_density - log_density[:, :1], rtol=1e-3, atol=1e-3)


def test_noise_at_the_model_s_own_place_goes_nowhere() -> None:
    algorithm, (x, y) = Centroids(), patients()
    model = algorithm.extended(Tabular.logistic(FEATURES, CLASSES))
    loss, optimizer = Objective(model, SHIFT, SCALE), Sgd()
    theta = model.initial()
    state = algorithm.start(theta, loss, optimizer)
    delta = algorithm.inner(theta, Mean(x, y), loss)
    noisy = loss.with_own(delta, loss.own(delta) + 5.0)
    _, one = algorithm.outer(state, theta, Pooled(delta), loss, optimizer)
    _, other = algorithm.outer(state, theta, Pooled(noisy), loss, optimizer)
    assert torch.equal(one, other)


def generative_at(rounds: int) -> tuple[Generative, Objective, Tensor]:
    algorithm, (x, y) = Generative(adapt_steps=50), patients()
    loss = Objective(algorithm.extended(Tabular.logistic(FEATURES, CLASSES)), SHIFT, SCALE)
    theta = loss.model.initial()
    for _ in range(rounds):
        theta = theta + algorithm.inner(theta, Mean(x, y), loss)
    return algorithm, loss, theta


def test_a_covariance_without_noise_is_the_pooled_one() -> None:
    _, loss, theta = generative_at(3)
    (x, y) = patients()
    f = loss.standardised(x)
    centred = torch.cat([f[y == k] - f[y == k].mean(0) for k in range(CLASSES)])
    expected = centred.T @ centred / len(y)
    values, vectors = torch.linalg.eigh(expected)
    expected = (vectors * values.clamp_min(0.05 * values.mean())) @ vectors.T
    torch.testing.assert_close(covariance(theta, loss), expected, rtol=1e-3, atol=1e-5)


def test_a_covariance_that_is_all_noise_is_round_and_one_without_patients_too() -> None:
    _, loss, theta = generative_at(1)
    noisy = theta + 3.0 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.eigvalsh(covariance(noisy, loss))
    assert float(values.max() / values.min()) < 30
    torch.testing.assert_close(covariance(loss.model.initial(), loss), torch.eye(FEATURES).double() / FEATURES)


def test_draws_lie_around_what_is_known_of_a_class_and_weigh_half() -> None:
    algorithm, loss, theta = generative_at(2)
    algorithm = algorithm.model_copy(update={"draws": 4000, "adapt_prior": 3.0})
    x, y = patients(5, n=2)
    shots = Shots(loss.embed(theta, x), y, torch.arange(2), torch.ones(2))
    found = algorithm.with_draws(shots, theta, loss)
    known = ClassMeans.of(loss.extras(theta), DRAWN).means
    for k in range(2):
        drawn = found.x[2:][found.y[2:] == k].double()
        expected = (3 * known[k] + shots.x[k].double()) / 4
        torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.03)
        torch.testing.assert_close(torch.cov(drawn.T), covariance(theta, loss), rtol=0, atol=0.03)
    assert not (found.y == 2).any(), "a class without a shot has no draws"
    torch.testing.assert_close(found.shares(CLASSES).sum(0), shots.shares(CLASSES).sum(0))
    assert torch.equal(found.x, algorithm.with_draws(shots, theta, loss).x)


def test_another_task_gets_the_covariance_and_no_class() -> None:
    algorithm, loss, theta = generative_at(2)
    ours = Objective(algorithm.extended(Tabular.logistic(FEATURES, 2)), SHIFT, SCALE)
    moved = algorithm.for_classes(theta, loss, ours, ours.model.initial(), torch.zeros(2, CLASSES))
    torch.testing.assert_close(covariance(moved, ours), covariance(theta, loss), rtol=1e-5, atol=1e-6)
    assert not ClassMeans.of(ours.extras(moved), DRAWN).known.any()
    x, y = patients(6, n=4)
    fitted = algorithm.adapt(moved, Shots(x, y % 2, torch.arange(4), torch.ones(4)), ours)
    assert algorithm.predict(fitted, x, ours).isfinite().all()
