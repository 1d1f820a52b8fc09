"""Matching networks: Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning",
2016.

A query x^ has the class of the shots that it attends to (equation 1), by the softmax of cosines of section 2.1.1:

    P(y^ = k | x^, S) = sum over shots i of class k of a(x^, x_i)
    a(x^, x_i) = w_i exp(beta c(f(x^), g(x_i))) / sum_j w_j exp(beta c(f(x^), g(x_j)))

What differs from the paper, and why:

* w_i, the weight of an image: a patient with many images attracts no more attention than one with a single image.
* beta, learned, is 1 in the paper. A query that equals one shot and is orthogonal to nine others gives the one no more
  than e / (e + 9) = 23 % of its attention then, however well the embedding has learned.
* f = g, without full context embeddings (section 2.1.2): an LSTM reads the support in an order, and patients have none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.embedded import ABSENT, Embedding
from wardround.meta.total import positive
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import FewShotLoss

# The query above gives the one shot e^10 / (e^10 + 9) = 99.96 %.
BETA = 10.0
# Shorter embeddings are not made longer than this makes them, or their gradient would have no bound.
LEAST_NORM = 1e-6


class Matching(Embedding):
    """Attention over the support."""

    affine = False
    compares = True

    name: str = "matching"

    def extended(self, model: Model) -> Model:
        """With log beta beside the model. Raises: ConfigError, when it has no body to embed with."""
        return Extended.of(super().extended(model), {"log_beta": torch.tensor(BETA).log()})

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + 9 * at.rows**2 * at.classes

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """The support itself is the classifier."""
        return {"theta": theta, "embedded": embedded, "shares": shares}

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """Log P(y^ = k | x^, S) up to what all classes share, float32 [n, classes]; [n, shots, classes] of memory."""
        beta = positive(loss.extras(fitted["theta"])["log_beta"])
        f = normalize(loss.embed(fitted["theta"], x), dim=1, eps=LEAST_NORM)
        g = normalize(fitted["embedded"], dim=1, eps=LEAST_NORM)
        return log_sums(beta * f @ g.T, fitted["shares"])


def log_sums(scores: Tensor, shares: Tensor) -> Tensor:
    """Log sum_i shares_ik exp(scores_qi) of scores [n, shots] and shares [shots, classes]: float32 [n, classes].

    ABSENT for classes that are not there. Differentiable in the scores.
    """
    there = shares > 0
    terms = scores.unsqueeze(2) + torch.where(there, shares, 1.0).log()
    return torch.where(there.any(0), torch.where(there, terms, ABSENT).logsumexp(1), ABSENT)


algorithm = Matching
