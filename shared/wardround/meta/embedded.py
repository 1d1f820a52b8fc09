"""Methods that learn an embedding, and solve for a classifier from the embedded support.

Their head is not learned but computed, so the head's place in theta, weight [classes, e] and bias [classes], holds what
a classifier can be computed from where there are no shots: the federation's class means, and 1 for each class that has
one. The run closes with one noised answer about them (privacy.md, "Each algorithm": ProtoNet release).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.base import AdaptsBy, EpisodicMethod, Fitted, headless, with_body
from wardround.models.base import Model
from wardround.questions import ClassMeans, Cohort, FewShotLoss, Shots

ABSENT = -1e4
"""The logit of a class that the support does not show."""
# A class of fewer noisy patients in the whole federation than this has no mean.
LEAST_PATIENTS = 1.0


class EmbeddingMethod(EpisodicMethod):
    """A method whose file says how a classifier is computed from embedded shots."""

    @property
    def name(self) -> str:
        """As in federation.toml."""
        raise NotImplementedError

    @property
    def closes_with_means(self) -> bool:
        """The class means are all that a hospital without shots has."""
        return True

    @property
    def adapts_by(self) -> AdaptsBy:
        """The class means are among the shots, with a weight."""
        return "adapt_prior"

    def solve(
        self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss, choice: AlgorithmChoice
    ) -> Fitted:
        """A classifier from embeddings float32 [n, e] and the weight of each in each class, float32 [n, classes].

        Differentiable in theta float32 [P] and in the embeddings. Columns of zeros are classes that are not there, and
        rows of zeros are padding.
        """
        raise NotImplementedError

    def extended(self, model: Model, choice: AlgorithmChoice) -> Model:
        """The model as it is. Raises: ConfigError, when it has no body to embed with."""
        return with_body(model, self.name)

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """The episodes' mean step, float32 [P], without its noise at the head's place, where nothing is learned."""
        return headless(super().inner(theta, cohort, loss, choice), loss)

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """Embed the support, and solve."""
        return self.solve(theta, loss.embed(theta, support.x), support.shares(loss.classes), loss, choice)

    def episode_loss(
        self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss, choice: AlgorithmChoice
    ) -> Tensor:
        """As everywhere, of the queries whose class the support shows: nothing can be learned about the others."""
        seen = support.shares(loss.classes).sum(0) > 0
        return super().episode_loss(theta, support, query.among(seen), loss, choice)

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """Theta with the class means at the head's place."""
        known = (means.counts >= LEAST_PATIENTS).to(theta.dtype)
        return loss.with_head(theta, means.means(LEAST_PATIENTS) * known.unsqueeze(1), known)

    def unadapted(self, theta: Tensor, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """The class means are the support. Before they are known, no class is more likely than another."""
        means, known = loss.head(theta)
        return self.solve(theta, means, known.diag(), loss, choice)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """From the support and the federation's class means, which count for `adapt_prior` patients each."""
        means, known = loss.head(theta)
        embedded = torch.cat([loss.embed(theta, support.x), means])
        shares = torch.cat([support.shares(loss.classes), choice.adapt_prior * known.diag()])
        return {name: tensor.detach() for name, tensor in self.solve(theta, embedded, shares, loss, choice).items()}


def class_means(embedded: Tensor, shares: Tensor) -> Tensor:
    """Weighted means a class, float32 [classes, e]; zero for classes that are not there."""
    return shares.T @ embedded / shares.sum(0).clamp_min(1e-6).unsqueeze(1)


def absent(shares: Tensor) -> Tensor:
    """What to add to logits: float32 [classes], 0 for classes that the support shows and ABSENT for others."""
    return torch.where(shares.sum(0) > 0, 0.0, ABSENT)


def balanced(shares: Tensor) -> Tensor:
    """Weights of the rows of shares [n, classes]: float32 [n], of the same sum, each class present the same."""
    patients = shares.sum(0)
    seen = patients > 0
    each = patients.sum() / seen.sum().clamp_min(1)
    return shares @ torch.where(seen, each / patients, 0.0)
