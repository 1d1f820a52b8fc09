"""FedRep whose head follows from released sums: beside plain autograd, and beside what it must not depend on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.client.privacy.generated import CLASSES, Identity
from tests.cohorts import SilentCohort
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy, one_hot

from wardround.algorithms import Pooled
from wardround.algorithms.fedrep import LENGTHS, BodyAndSums, FedRep, with_head_of
from wardround.errors import ConfigError
from wardround.models import Objective
from wardround.models.conv4 import Conv4
from wardround.models.head import EncoderHead
from wardround.models.tabular import Tabular
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss, Shots

FEATURES, EMBEDDING = 6, 4
SHIFT, SCALE = torch.linspace(-0.3, 0.3, FEATURES), torch.linspace(0.5, 2.0, FEATURES)
PRIOR = torch.tensor([0.2, 0.3, 0.5]).log()


def loss_of(algorithm: FedRep) -> Objective:
    model = algorithm.extended(EncoderHead.of(Identity(FEATURES), CLASSES, embedding=EMBEDDING))
    return Objective(model, SHIFT, SCALE, PRIOR)


def patients(seed: int, n: int = 240) -> tuple[Tensor, Tensor]:
    """Three classes that lie apart, elsewhere at each hospital."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = 1.5 * torch.randn(CLASSES, FEATURES, generator=generator)
    return SHIFT + SCALE * (centres[y] + torch.randn(n, FEATURES, generator=generator)), y


@dataclass
class Mean(SilentCohort):
    """The exact mean of all patients' gradients, by plain autograd; or, for a loss that can, by its own `gradients`."""

    x: Tensor
    y: Tensor
    elementary: bool = False

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        if self.elementary:
            return loss.gradients(theta, self.x, self.y).mean(0).float()  # type: ignore[attr-defined, no-any-return]
        exact: Tensor = grad(loss)(theta, self.x, self.y)
        return exact


def in_two_rounds(algorithm: FedRep, loss: Objective, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What a hospital sent in its first round, and theta after that."""
    theta = loss.model.initial()
    sent = algorithm.inner(theta, Mean(*patients(seed)), loss)
    return sent, theta + sent


def test_in_the_first_round_sums_are_sent_and_no_body() -> None:
    algorithm = FedRep(local_learning_rate=0.5)
    loss = loss_of(algorithm)
    sent, _ = in_two_rounds(algorithm, loss)
    assert not loss.own(sent).any()
    x, y = patients(0)
    f, shown = loss.standardised(x).float(), one_hot(y, CLASSES).float()
    torch.testing.assert_close(loss.extras(sent)["sums"], LENGTHS["sums"] * 0.5 * shown.T @ f / len(y))
    torch.testing.assert_close(loss.extras(sent)["counts"], LENGTHS["counts"] * 0.5 * shown.mean(0))


@pytest.mark.parametrize("elementary", [False, True])
def test_a_body_s_step_is_the_gradient_at_the_head_of_the_hospital_s_own_means(elementary: bool) -> None:
    """Algorithm 1 with plain modules: discriminant analysis on embedded means, then the body at that head."""
    algorithm = FedRep(local_learning_rate=0.5)
    loss = loss_of(algorithm)
    sent, theta = in_two_rounds(algorithm, loss)
    theta = loss.with_body(theta, loss.body(theta) + 0.1 * torch.randn(loss.body(theta).shape))
    x, y = patients(0)
    delta = algorithm.inner_after(sent, theta, Mean(x, y, elementary), loss)

    body = loss.body(theta).view(EMBEDDING, FEATURES).clone().requires_grad_()
    f = loss.standardised(x).float()
    means = torch.stack([f[y == k].mean(0) for k in range(CLASSES)])
    with torch.no_grad():
        c = means @ body.T
        weight, bias = FEATURES * c, -FEATURES * c.square().sum(1) / 2
    (slope,) = torch.autograd.grad(cross_entropy(f @ body.T @ weight.T + bias + PRIOR, y), body)
    expected = -0.5 * slope.flatten() / weight.norm()
    torch.testing.assert_close(loss.body(delta), expected, rtol=1e-3, atol=1e-5)
    assert not torch.cat([each.flatten() for each in loss.head(delta)]).any(), "the head's place is zero"


def test_the_head_is_the_hospital_s_own_and_neither_theta_s_nor_its_patients() -> None:
    """The same answers give the same delta, whatever head and sums theta brings: only the body and `sent` count."""
    algorithm = FedRep(local_learning_rate=0.5)
    loss = loss_of(algorithm)
    sent, theta = in_two_rounds(algorithm, loss)
    other = torch.cat([loss.body(theta), 9 * torch.randn(len(theta) - len(loss.body(theta)))])
    cohort = Mean(*patients(0))
    one, same = (algorithm.inner_after(sent, each, cohort, loss) for each in (theta, other))
    torch.testing.assert_close(one, same)
    elsewhere, _ = in_two_rounds(algorithm, loss, seed=1)
    assert not torch.allclose(loss.body(one), loss.body(algorithm.inner_after(elsewhere, theta, cohort, loss)))


def test_the_shared_head_is_that_of_all_sums() -> None:
    algorithm, optimizer = FedRep(local_learning_rate=0.5), Sgd(learning_rate=3.0, momentum=0.0)
    loss = loss_of(algorithm)
    theta = loss.model.initial()
    deltas = [algorithm.inner(theta, Mean(*patients(seed)), loss) for seed in (0, 1)]
    state = algorithm.start(theta, loss, optimizer)
    _, theta = algorithm.outer(state, theta, Pooled(torch.stack(deltas).mean(0)), loss, optimizer)
    f = torch.cat([loss.standardised(patients(seed)[0]).float() for seed in (0, 1)])
    y = torch.cat([patients(seed)[1] for seed in (0, 1)])
    c = torch.stack([f[y == k].mean(0) for k in range(CLASSES)]) @ loss.body(theta).view(EMBEDDING, FEATURES).T
    weight, bias = loss.head(theta)
    torch.testing.assert_close(weight, FEATURES * c, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, -FEATURES * c.square().sum(1) / 2, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_the_body_is_about_one_long_whatever_the_head_is() -> None:
    algorithm = FedRep()
    loss = loss_of(algorithm)
    sent, theta = in_two_rounds(algorithm, loss)
    x, y = patients(2)
    for factor in (1e-3, 1.0, 1e3):
        sums = loss.with_extras(sent, sums=factor * loss.extras(sent)["sums"])
        own = with_head_of(sums, theta, loss)
        asked = BodyAndSums(loss, float(loss.head(own)[0].norm()))
        found = asked.gradients(own, x, y)[:, : len(loss.body(own))]
        assert float(found.norm(dim=1).max()) < 2**0.5 * float(loss.standardised(x).norm(dim=1).max())


def test_at_home_the_body_stays() -> None:
    algorithm = FedRep(adapt_pull=0.01)
    loss = loss_of(algorithm)
    _, theta = in_two_rounds(algorithm, loss)
    x, y = patients(3, n=9)
    fitted = algorithm.adapt(with_head_of(theta, theta, loss), Shots(x, y, torch.arange(9), torch.ones(9)), loss)
    assert torch.equal(loss.body(fitted["theta"]), loss.body(theta))
    assert float((algorithm.predict(fitted, x, loss).argmax(1) == y).float().mean()) > 0.8


def test_a_model_without_a_body_or_with_features_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="learns an embedding"):
        FedRep().extended(Tabular.logistic(FEATURES, CLASSES))
    with pytest.raises(ConfigError, match="the model makes these itself"):
        FedRep().extended(Conv4.of(1, 4, CLASSES))
