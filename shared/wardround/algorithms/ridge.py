"""R2-D2: Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", 2019.

The head is the ridge regression of one-hot classes on the embedded support, in closed form (equation 4), or in its
Woodbury form where there are fewer images than numbers in an embedding (equation 5); outputs are scaled and moved to
become logits (equation 6). lambda, alpha and beta are learned with the embedding. What differs, and why:

* Rows have weights, so that a patient counts once however many images there are, and every class that is present counts
  the same: hospitals have ragged, imbalanced episodes. In a balanced episode of single images all weights are 1, and
  lambda means what it means in the paper.
* The bias is not penalised: embeddings and one-hot classes are centred by their weighted means, so that where an
  embedding has its origin does not matter. The paper appends a column of ones.
* beta is a number a class, because a softmax does not see one that all classes share. Classes are diseases, the same
  in all episodes, and a class that the support does not show has no beta.
* lambda and alpha are positive: their logarithms are learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.embedded import Embedding, absent, balanced
from wardround.meta.total import positive, solved
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import FewShotLoss
from wardround.settings import Regularization


class Ridge(Embedding):
    """A head solved by ridge regression. regularization: lambda, where it starts."""

    of_classes = (*Embedding.of_classes, "beta")
    by_class = (*Embedding.by_class, "beta")

    name: str = "ridge"
    regularization: Regularization = 1.0

    def extended(self, model: Model) -> Model:
        """With log lambda, log alpha and beta [classes], which start where equation 6 changes nothing.

        Raises: ConfigError, as of `Embedding`.
        """
        return Extended.of(
            super().extended(model),
            {
                "log_lambda": torch.tensor(self.regularization).log(),
                "log_alpha": torch.zeros(()),
                "beta": torch.zeros(model.classes),
            },
        )

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + 16 * (at.rows * at.embedding + min(at.rows, at.embedding) ** 2)

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """Logits alpha (W x + b) + beta."""
        learned = loss.extras(theta)
        w, b = ridge(embedded, (shares > 0).to(shares.dtype), balanced(shares), positive(learned["log_lambda"]))
        alpha, seen = positive(learned["log_alpha"]), shares.sum(0) > 0
        return {"theta": loss.with_head(theta, alpha * w, alpha * b + learned["beta"] * seen + absent(shares))}


def ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of sum_n weights_n |W x_n + b - y_n|^2 + penalty |W|^2, differentiable in x and the penalty.

    Args:
        x: [n, e].
        y: [n, classes].
        weights: [n], at least 0; where all are 0, W and b are.
        penalty: [], above 0.

    Returns:
        W [classes, e] and b [classes], of x's dtype; solved in float64, since a learned penalty may become small.
    """
    n, e = x.shape
    dtype, x, y, d = x.dtype, x.double(), y.double(), weights.double().unsqueeze(1)
    share = d / d.sum().clamp_min(1e-6)
    centre, level = (share * x).sum(0), (share * y).sum(0)
    x, y = x - centre, y - level
    # Rows times the root of their weight make the matrix symmetric in both forms.
    root = d.sqrt()
    x, y = root * x, root * y
    w = x.T @ solved(x @ x.T, penalty, y) if n < e else solved(x.T @ x, penalty, x.T @ y)
    return w.T.to(dtype), (level - centre @ w).to(dtype)


algorithm = Ridge
