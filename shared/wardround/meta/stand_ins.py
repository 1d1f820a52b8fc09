"""Few-shot episodes whose support is nobody: drawn from what the hospitals released, and judged by their patients.

An episode of patients moves by 2 C when one of them goes, and a hospital has few episodes, so that an episode's answer
bears tens of times the noise of a sum over patients. Here only the query is private. The support is drawn around the
noised class means of all hospitals (`wardround.meta.class_sums`), which is post-processing; the loss of ONE patient
after learning from it has a gradient of one patient, so that a round asks one `cohort.gradient`, at FedAvg's price.

Most methods end, on a model that is linear in its features, in a linear classifier: logits G (x, 1), where G [classes,
d + 1] is a function of theta and of the support, and of no patient. Then a patient's gradient in theta is J' g, with g
that in G, and J, the Jacobian of G, public. The cohort is asked for g, the gradient of a plain linear head, whose
every bit is proved to be the patient's own; J' times the noised sum is post-processing. For the others the whole loss
is asked about, patient by patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wardround import elementary
from wardround.errors import ConfigError
from wardround.meta.class_sums import BLANKS, ClassMeans, linear_term, parts, with_places
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.models.objective import Objective
from wardround.questions import Cohort, Shots

if TYPE_CHECKING:
    from wardround.meta.base import Episodic

# Beside a head's gradient, which is about 1 long: means that noise has moved cost more than a gradient that it has.
LENGTHS = {"sums": 2.0, "counts": 0.6, "blanks": 0.0}


def extended(model: Model, method: str) -> Extended:
    """The model, with the sums of its features beside it. Raises: ConfigError, for one without features."""
    if model.hidden == "deep":
        raise ConfigError(
            f'algorithm.tasks = "stand-ins" of {method} draws features, and the model makes them itself',
            allowed='model.family "encoder-head", "logistic" or "mlp"',
            do='take one of these, or tasks = "episodes"',
        )
    return with_places(model, model.scaling_size, LENGTHS)


def class_means(theta: Tensor, loss: Objective) -> ClassMeans:
    """Of the standardised features."""
    return ClassMeans.of(loss.extras(theta), LENGTHS)


def encoded(loss: Objective, standardised: Tensor) -> Tensor:
    """What has these standardised features [n, d]: float32 [n, d], as an encoder gives them."""
    return (loss.shift + loss.scale * sqrt(standardised.shape[1]) * standardised).float()


def drawn(means: ClassMeans, theta: Tensor, loss: Objective, shots: int) -> Shots:
    """A support of nobody: so many patients of each class around its mean, which vary as all patients do.

    The draws follow from theta, so that they are public, and others in every round. What is unknown weighs nothing.
    """
    bits = theta.detach().cpu().view(torch.int32).to(torch.int64)
    generator = torch.Generator().manual_seed(abs(int((bits * torch.arange(1, 1 + len(bits))).sum())))
    classes, d = means.means.shape
    y = torch.arange(classes).repeat_interleave(shots)
    noise = torch.randn(len(y), d, generator=generator).to(theta.device) / sqrt(d)
    y = y.to(theta.device)
    weight = means.known.to(theta.dtype)[y]
    return Shots(encoded(loss, means.means[y] + noise), y, torch.arange(len(y), device=theta.device), weight)


def centres(theta: Tensor, loss: Objective) -> Shots:
    """One stand-in of each class, at its mean: what there is to learn from without a shot."""
    means = class_means(theta, loss)
    y = torch.arange(len(means.means), device=theta.device)
    return Shots(encoded(loss, means.means), y, y, means.known.to(theta.dtype))


def mean_step(method: Episodic, theta: Tensor, cohort: Cohort, loss: Objective) -> Tensor:
    """The gradient in theta float32 [P] of the patients' mean loss after learning from stand-ins, and their sums."""
    means = class_means(theta, loss)
    support = drawn(means, theta, loss, method.stand_ins)
    if not method.affine or loss.model.hidden == "tanh":
        return cohort.gradient(OfQuery(method, loss, support, means.known), theta)
    classes, d = means.means.shape
    basis = encoded(loss, torch.cat([theta.new_zeros(1, d), torch.eye(d).to(theta)]))

    def classifier(at: Tensor) -> Tensor:
        """G, as weight [classes, d] and bias [classes], float32."""
        logits = method.predict(method.fit(at, support, loss), basis, loss)
        return torch.cat([(logits[1:] - logits[:1]).T.flatten(), logits[0]])

    with torch.enable_grad():
        at = theta.detach().requires_grad_()
        g = classifier(at)
        asked = LinearHead(loss, means.known, classes)
        places = loss.extras(theta)
        point = torch.cat([g.detach(), *(places[name].flatten() for name in LENGTHS)])
        answer = cohort.gradient(asked, point)
        head, sums = answer[: g.numel()], answer[g.numel() :]
        (pulled,) = torch.autograd.grad(g, at, head, allow_unused=True) if g.requires_grad else (None,)
    pulled = torch.zeros_like(theta) if pulled is None else torch.nan_to_num(pulled, nan=0.0, posinf=0.0, neginf=0.0)
    # Never longer than what was asked for, so that the length of an honest answer is known.
    pulled = pulled * (head.norm() / pulled.norm().clamp_min(1e-12)).clamp(max=1.0)
    beside = {name: each.view(places[name].shape) for name, each in zip(LENGTHS, _split(sums, classes, d), strict=True)}
    return loss.with_extras(pulled, **beside)


def _split(sums: Tensor, classes: int, d: int) -> tuple[Tensor, ...]:
    return torch.split(sums, [classes * d, classes, BLANKS])


@dataclass(frozen=True)
class LinearHead:
    """The loss of a linear head on standardised features, and what a patient adds to the sums beside it.

    Implements `ElementaryLoss`. Its vector: weight [classes, d], bias [classes], and the places of the sums. seen: bool
    [classes]; a patient of another class has no loss, since nothing can be learned about it.
    """

    loss: Objective
    seen: Tensor
    classes: int

    @property
    def elementary(self) -> bool:
        """Where the labels permit it."""
        return self.loss.labels.elementary

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        x = self.loss.standardised(x)
        weight, bias = self.head(theta.double(), x.shape[1])
        logits = elementary.linear(x, weight, bias)
        if self.loss.log_prior is not None:
            logits = logits + self.loss.log_prior.double()
        shown = self.loss.labels.targets(y, self.classes).double()
        there = elementary.total(shown * self.seen.double()).unsqueeze(1)
        errors = self.loss.labels.errors(logits, y) * there
        return torch.cat([(errors.unsqueeze(2) * x.unsqueeze(1)).flatten(1), errors, -parts(x, shown, LENGTHS)], 1)

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m] -> float32 []."""
        x = self.loss.standardised(x).float()
        weight, bias = self.head(theta, x.shape[1])
        shown = self.loss.labels.targets(y, self.classes)
        each = self.loss.of_logits(x @ weight.T + bias, y) * (shown @ self.seen.to(shown.dtype))
        places = theta[self.classes * (x.shape[1] + 1) :]
        return (each - parts(x, shown, LENGTHS) @ places).mean()

    def head(self, theta: Tensor, d: int) -> tuple[Tensor, Tensor]:
        """Weight [classes, d] and bias [classes]."""
        size = self.classes * d
        return theta[:size].view(self.classes, d), theta[size : size + self.classes]


@dataclass(frozen=True)
class OfQuery:
    """The loss of ONE patient after learning from a support of nobody, and what the patient adds to the sums."""

    method: Episodic
    loss: Objective
    support: Shots
    seen: Tensor

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m] -> float32 []."""
        one, each = torch.zeros_like(y), theta.new_full((len(y),), 1 / len(y))
        query = Shots(x, y, one, each).among(self.seen)
        learned = self.method.episode_loss(theta, self.support, query, self.loss)
        shown, f = self.loss.labels.targets(y, self.loss.classes), self.loss.standardised(x).float()
        return learned - linear_term(self.loss.extras(theta), f, shown, LENGTHS).mean()
