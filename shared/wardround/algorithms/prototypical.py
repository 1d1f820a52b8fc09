"""Prototypical networks: Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017."""

from __future__ import annotations

from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.embedded import Embedding, absent, class_means
from wardround.questions import FewShotLoss


class Prototypical(Embedding):
    """A class is the mean of its embedded support; a query goes to the nearest."""

    compares = True

    name: str = "prototypical"

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """Logits -|f(x) - c_k|^2 up to what all classes share: linear, w_k = 2 c_k, b_k = -|c_k|^2 (equations 1 and 8).

        The squared Euclidean distance is the paper's (section 2.7).
        """
        c = class_means(embedded, shares)
        return {"theta": loss.with_head(theta, 2 * c, absent(shares) - c.square().sum(1))}


algorithm = Prototypical
