"""Features drawn at home, where there are too few patients: what a federation knows of how a disease varies.

Hariharan and Girshick, "Low-shot visual recognition by shrinking and hallucinating features", 2017: images of a class
with many examples show how images of ANY class vary, and one shot of a new class is made into many. Yang, Liu and Xu,
"Free lunch for few-shot learning: distribution calibration", 2021, draw them from a Gaussian (their equations 5 to 7).
Here the federation learns FedAvg's head and, in the same clipped vector, each class's mean and one covariance within
classes (`wardround.meta.class_sums`). At home, for an embedded image f of class k, n_k patients of it in the support,

    f ~ N(mu_k, Sigma),   mu_k = (n_0 m_k + sum of the support's f) / (n_0 + n_k)

with m_k the federation's mean of a class that it knows (n_0 = 0 for others), `draws` of each class are drawn, and the
head is trained on them and on the support. What differs, and why: Yang et al. move the mean of a new class towards the
nearest known ones; diseases have few neighbours, and noised means are worse ones. Their power transform is left out,
because features are standardised, and may be negative.

Nothing of it leaves, and what it starts from was released already: no new charge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from wardround.algorithms import Fitted
from wardround.meta.class_sums import ClassMeans, covariance_within
from wardround.meta.head import HeadAlone
from wardround.meta.summed import Summed
from wardround.questions import FewShotLoss, Shots
from wardround.settings import AtHome, HomeStrength

# Beside a head's gradient, which is about 1 long.
LENGTHS = {"scatter": 0.4, "sums": 0.6, "counts": 0.2, "blanks": 0.0}


class Generative(Summed):
    """FedAvg's head, and densities to draw from. draws: of each class; adapt_prior: n_0."""

    lengths = LENGTHS

    name: str = "generative"
    draws: Annotated[int, Field(ge=0, le=10_000), AtHome()] = 50
    adapt_prior: HomeStrength = 2.0

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor, like: Tensor) -> Tensor:
        """The body, and the covariance at the scatter's place; no class has been counted, and the head is zero."""
        anew = super().for_classes(theta, theirs, ours, start, like)
        return ours.with_extras(anew, scatter=covariance(theta, theirs).to(theta.dtype))

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """A head that is fine-tuned on the support and on what is drawn around it."""
        alone = HeadAlone(theta, loss)
        embedded = alone.embedded(support)
        return {"theta": alone.around(self.tuned(alone.own(), self.with_draws(embedded, theta, loss), alone))}

    def with_draws(self, embedded: Shots, theta: Tensor, loss: FewShotLoss) -> Shots:
        """Embedded shots, x [n, e], and draws, which together weigh as much: half of each class's weight is theirs."""
        shares = embedded.shares(loss.classes).double()
        patients, known = shares.sum(0), ClassMeans.of(loss.extras(theta), LENGTHS)
        prior = self.adapt_prior * known.known
        total = patients + prior
        present = torch.nonzero(patients > 0).flatten()
        if not self.draws or not len(present):
            return embedded
        means = (prior.unsqueeze(1) * known.means + shares.T @ embedded.x.double()) / total.clamp_min(1e-6).unsqueeze(1)
        y = present.repeat_interleave(self.draws)
        drawn = y.to(embedded.y) if embedded.y.dim() == 1 else one_hot(y, loss.classes).to(embedded.y)  # cells
        root = torch.linalg.cholesky_ex(covariance(theta, loss))[0]
        # Public, and the same each time: adapting twice gives the same model.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(y), len(root), generator=generator).to(root)
        x = (means[y] + noise @ root.T).to(embedded.x.dtype)
        weight = (patients[y] / self.draws / 2).to(embedded.weight.dtype)
        return replace(
            embedded,
            x=torch.cat([embedded.x, x]),
            y=torch.cat([embedded.y, drawn]),
            patient=torch.cat([embedded.patient, embedded.patient.max() + 1 + torch.arange(len(y)).to(y)]),
            weight=torch.cat([embedded.weight / 2, weight]),
        )


def covariance(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """Of features within a class, float64 [e, e]; of a model for other classes, what the federation's was."""
    beside = loss.extras(theta)
    if bool((beside["counts"] == 0).all()) and bool((beside["scatter"] != 0).any()):
        return beside["scatter"].double()
    return covariance_within(beside, LENGTHS)


algorithm = Generative
