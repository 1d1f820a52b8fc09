"""Siamese networks: Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", 2015.

Two images show the same class with probability p(x_1, x_2) = sigmoid(sum_j alpha_j |f_j(x_1) - f_j(x_2)| + b) (section
3.1). It is learned by the binary cross entropy of pairs (section 3.2), here all pairs of a query and a shot.

What differs from the paper, and why:

* Episodes are ragged and classes rare, so a patient weighs the same whatever their images, a class the same whatever
  its patients, and the pairs of one class as much as those of two. That last also means that p's odds are a ratio of
  likelihoods, whatever the classes' number. There are no logits to adjust by the hospital's prior, and no need to.
* A query goes to the class of the best MEAN p over its shots; the paper has one shot a class (section 4.3).
* b: without it two equal images would be the same with p = 1/2 only.
* No L2 penalty: it does not depend on patients, and what keeps steps small here is the clip.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.algorithms.matching import log_sums
from wardround.meta.embedded import Embedding, absent, class_means
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import FewShotLoss, Shots

# The log odds at the start: of two equal images, and about how much lower those of two unrelated ones are. Either is
# believed by 98 %. A start nearer to 0 is drowned by the noise: its slopes are small, and alpha soon has any sign.
EQUAL, UNRELATED = 4.0, 8.0


class Siamese(Embedding):
    """Same or different, by a weighted L1 distance."""

    affine = False
    compares = True

    name: str = "siamese"

    def extended(self, model: Model) -> Model:
        """With alpha [e] and b beside the model. Raises: ConfigError, when it has no body to embed with."""
        model = super().extended(model)
        alpha = -UNRELATED * model.embedding_gain / model.embedding_size
        return Extended.of(model, {"alpha": torch.full((model.embedding_size,), alpha), "b": torch.tensor(EQUAL)})

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + 8 * at.rows**2 * at.embedding

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """The support itself is the classifier."""
        return {"theta": theta, "embedded": embedded, "shares": shares}

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """The log odds of p_k, the mean p over the shots of class k: float32 [n, classes]; [n, shots, e] of memory.

        Their softmax is the probability of being the same as k and different from the others, given that this is so for
        one k: p_k prod_{l != k} (1 - p_l) up to a factor.
        """
        same, shares = _log_odds(fitted, x, loss), fitted["shares"]
        return log_sums(-softplus(-same), shares) - log_sums(-softplus(same), shares) + absent(shares)

    def episode_loss(self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss) -> Tensor:
        """Half the mean cross entropy of pairs of one class, half that of two, float32 [].

        Of the queries whose class the support shows; 0 where it shows one class, with nothing to tell it from.
        """
        fitted = self.fit(theta, support, loss)
        shown = fitted["shares"].sum(0) > 0
        queries = query.among(shown).shares(loss.classes)
        same = _log_odds(fitted, query.x, loss)
        equal = torch.eye(loss.classes, dtype=torch.bool, device=theta.device)
        entropy = torch.where(
            equal, _between(softplus(-same), queries, fitted), _between(softplus(same), queries, fitted)
        )
        pairs = torch.outer(queries.sum(0) > 0, shown).to(entropy.dtype)
        alike, unlike = pairs * equal, pairs * ~equal
        mean = (entropy * (alike / alike.sum().clamp_min(1) + unlike / unlike.sum().clamp_min(1))).sum() / 2
        return mean * unlike.any()


def _log_odds(fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
    """sum_j alpha_j |f_j(x_1) - f_j(x_2)| + b of each of x [n, ...] with each shot: float32 [n, shots]."""
    learned = loss.extras(fitted["theta"])
    f = loss.embed(fitted["theta"], x)
    return (f.unsqueeze(1) - fitted["embedded"]).abs() @ learned["alpha"] + learned["b"]


def _between(values: Tensor, queries: Tensor, fitted: Fitted) -> Tensor:
    """Means of values [n, shots] over pairs of each two classes: float32 [classes of queries, classes of shots]."""
    return class_means(class_means(values, queries).T, fitted["shares"]).T


algorithm = Siamese
