"""Methods that learn an embedding, and solve for a classifier from the embedded support.

Their head is not learned but computed, so the head's place in theta, weight [classes, e] and bias [classes], holds what
a classifier can be computed from where there are no shots: the federation's class means, and 1 for each class that has
one. The run closes with one noised answer about them (docs/privacy-specification.md P17), unless supports
are stand-ins, which are drawn around class means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import Fitted, Pooled, State
from wardround.meta import stand_ins
from wardround.meta.base import Episodic, headless
from wardround.models.objective import Objective
from wardround.optimizers import Optimizer
from wardround.questions import ClassMeans, Cohort, FewShotLoss, Shots
from wardround.settings import HomeStrength

ABSENT = -1e4
"""The logit of a class that the support does not show."""
# A class of fewer noisy patients in the whole federation than this has no mean.
LEAST_PATIENTS = 1.0


class Embedding(Episodic):
    """A method whose file says how a classifier is computed from embedded shots.

    adapt_prior: how many patients of each class the federation's class means count for at home.
    """

    one_class_each = True
    needs_embedding = True
    closes_with_means = True
    adapts_by = "adapt_prior"

    adapt_prior: HomeStrength = 2.0

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """A classifier from embeddings float32 [n, e] and the weight of each in each class, float32 [n, classes].

        Differentiable in theta float32 [P] and in the embeddings. Columns of zeros are classes that are not there, and
        rows of zeros are padding.
        """
        raise NotImplementedError

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The episodes' mean step, float32 [P], without its noise at the head's place, where nothing is learned."""
        return headless(super().inner(theta, cohort, loss), loss)

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Embed the support, and solve."""
        return self.solve(theta, loss.embed(theta, support.x), support.shares(loss.classes), loss)

    def episode_loss(self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss) -> Tensor:
        """As everywhere, of the queries whose class the support shows: nothing can be learned about the others."""
        seen = support.shares(loss.classes).sum(0) > 0
        return super().episode_loss(theta, support, query.among(seen), loss)

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The outer optimizer's step. With stand-ins the class means are known already: no closing question."""
        state, theta = super().outer(state, theta, pooled, loss, optimizer)
        if self.unit != "stand-ins":
            return state, theta
        assert isinstance(loss, Objective)
        means = stand_ins.class_means(theta, loss)
        known = means.known.to(theta.dtype)
        embedded = loss.embed(theta, stand_ins.encoded(loss, means.means))
        return state, loss.with_head(theta, embedded * known.unsqueeze(1), known)

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss) -> Tensor:
        """Theta with the class means at the head's place."""
        known = (means.counts >= LEAST_PATIENTS).to(theta.dtype)
        return loss.with_head(theta, means.means(LEAST_PATIENTS) * known.unsqueeze(1), known)

    def head_like(self, like: Tensor, theta: Tensor, theirs: FewShotLoss) -> tuple[Tensor, Tensor]:
        """The mean of the means of those that have one, and 1 where there is one."""
        means, known = theirs.head(theta)
        like = like * known
        return like @ means / like.sum(1, keepdim=True).clamp_min(1e-6), (like.sum(1) > 0).to(theta.dtype)

    def unadapted(self, theta: Tensor, loss: FewShotLoss) -> Fitted:
        """The class means are the support. Before they are known, no class is more likely than another."""
        means, known = loss.head(theta)
        return self.solve(theta, means, known.diag(), loss)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """From the support and the federation's class means, which count for `adapt_prior` patients each."""
        means, known = loss.head(theta)
        embedded = torch.cat([loss.embed(theta, support.x), means])
        shares = torch.cat([support.shares(loss.classes), self.adapt_prior * known.diag()])
        return {name: tensor.detach() for name, tensor in self.solve(theta, embedded, shares, loss).items()}


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
