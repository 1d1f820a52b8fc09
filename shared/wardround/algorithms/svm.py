"""MetaOptNet: Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex Optimization", 2019.

The head is the multi-class support vector machine of Crammer and Singer on the embedded support. It is found by its
dual, a quadratic program, and the gradient goes through the optimality conditions by the implicit function theorem, not
through a solver's iterations (equations 5 to 8). gamma, which scales the logits, is learned with the embedding. What
differs, and why:

* Written with alpha_n^k = C_n (y_n^k - p_n^k), the constraints say that p_n is a point of the simplex, for any C_n. So
  C_n may be a weight: C = 1 / regularization times the weight that a patient's images share, balanced as in `ridge`. An
  image that weighs nothing is padding, and a patient whose images are all alike counts as one image.
* The optimality conditions are those with a barrier, p z = MU instead of 0. The solution as it stands has no derivative
  where an image comes to lie on its margin; this has one everywhere, and is that of the paper as MU goes to 0.
* Classes that the support does not show take no part. Embeddings are centred by the weighted mean, which stands for a
  bias: the paper's machine has none, and its answer depends on where the embedding has its origin.

The squared hinge would be smooth without a barrier, but it is not the paper's machine: every support vector's part in
the head would grow with its error, where C_n bounds it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.embedded import Embedding, absent, balanced
from wardround.meta.total import positive
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import FewShotLoss
from wardround.settings import Regularization

MU = 1e-6
"""The barrier: 1/2 |W - W_0|^2 <= classes MU sum_n C_n, where W_0 is the machine without one."""
# Few-shot problems take 5 to 25 steps, and so do 100 images that overlap while C |x|^2 is below some thousands.
_MOST_STEPS, _TOLERANCE = 40, 1e-6


class Svm(Embedding):
    """A head solved as a support vector machine. regularization: 1 / C."""

    name: str = "svm"
    regularization: Regularization = 1.0

    def extended(self, model: Model) -> Model:
        """With log gamma, which starts at 0. Raises: ConfigError, as of `Embedding`."""
        return Extended.of(super().extended(model), {"log_gamma": torch.zeros(())})

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + 20 * (at.classes + 2) * at.rows**2

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """Logits gamma w_k (x - centre)."""
        c = balanced(shares)
        centre = c @ embedded / c.sum().clamp_min(1e-6)
        w = crammer_singer(embedded - centre, shares > 0, c / self.regularization)
        w = positive(loss.extras(theta)["log_gamma"]) * w
        return {"theta": loss.with_head(theta, w, absent(shares) - w @ centre)}


def crammer_singer(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """The minimum of 1/2 |W|^2 + sum_n c_n max_k (1 - y_n^k + w_k x_n - w_{y_n} x_n), differentiable once in x.

    Args:
        x: [n, e].
        y: bool [n, classes], at most one in a row.
        c: [n]; rows at or below 0, or of no class, take no part.

    Returns:
        W [classes, e], of x's dtype; computed in float64. Zero for classes that no row shows.
    """
    used = (c > 0) & y.any(1)
    if not bool(used.any()):
        return x.new_zeros(y.shape[1], x.shape[1])
    select = torch.eye(y.shape[1], dtype=torch.float64, device=x.device)[y[used].any(0)]
    x64, y64, c64 = x[used].double(), y[used].double() @ select.T, c[used].double().unsqueeze(1)
    gram = x64 @ x64.T
    solution = _solved(gram.detach(), y64, c64)
    # One more step, which does not move the solution, has the derivative that the implicit function theorem gives it.
    p = solution.p + _newton(gram, y64, c64, solution)(torch.full_like(y64, MU)).p
    return (select.T @ (c64 * (y64 - p)).T @ x64).to(x.dtype)


@dataclass(frozen=True)
class _Point:
    """A point of the dual, or a step: float64 [n, k], n images and k classes.

    p: on the simplex in each row. z: [n, k], the multipliers of p >= 0. nu: [n, 1], those of sum_k p = 1.
    """

    p: Tensor
    z: Tensor
    nu: Tensor

    def moved(self, step: _Point, inside: float) -> _Point:
        """Along a step, as far as p and z stay above 0: at most `inside` of the way to where one of them is 0."""
        size = inside / torch.stack([-step.p / self.p, -step.z / self.z]).amax().clamp_min(inside)
        return _Point(self.p + size * step.p, self.z + size * step.z, self.nu + size * step.nu)


def _solved(gram: Tensor, y: Tensor, c: Tensor) -> _Point:
    """Where p z = MU, by Mehrotra's predictor and corrector ("On the implementation of a primal-dual interior point
    method", 1992), from a start within the constraints.
    """
    p = torch.ones_like(y) / y.shape[1]
    slack = y - gram @ (c * (y - p))
    nu = slack.amin(1, keepdim=True) - 1
    at = _Point(p, slack - nu, nu)
    part = c / (c.sum() * y.shape[1])  # of a product in the duality gap, which is what a step makes smaller
    for _ in range(_MOST_STEPS):
        product = at.p * at.z
        if bool((product / MU - 1).abs().amax() < _TOLERANCE):
            break
        newton = _newton(gram, y, c, at)
        straight = newton(torch.zeros_like(y))
        reached = at.moved(straight, 1.0)
        mu = (part * reached.p * reached.z).sum() ** 3 / (part * product).sum() ** 2
        aim = torch.where(mu > MU, mu - straight.p * straight.z, MU)
        at = at.moved(newton(aim), 0.99)
    return at


def _newton(gram: Tensor, y: Tensor, c: Tensor, at: _Point) -> Callable[[Tensor], _Point]:
    """Newton's step on z = y - scores - nu, sum_k p = 1 and p z = the step's argument, where scores are W x.

    scores = gram (c (y - p)). z is eliminated first, then p class by class, which leaves one system for nu.
    """
    stationarity = at.z + gram @ (c * (y - at.p)) + at.nu - y
    missing = 1 - at.p.sum(1, keepdim=True)
    inverse, _ = torch.linalg.inv_ex(torch.diag_embed((at.z / at.p).T) + gram * c.T)
    # Not `solve_ex`, whose backward pass raises where a matrix is singular.
    of_nu, _ = torch.linalg.inv_ex(inverse.sum(0))

    def step(product: Tensor) -> _Point:
        towards = (product / at.p - at.z + stationarity).T.unsqueeze(2)
        nu = of_nu @ (missing - (inverse @ towards).sum(0))
        p = (inverse @ (towards + nu)).squeeze(2).T
        return _Point(p, gram @ (c * p) - nu - stationarity, nu)

    return step


algorithm = Svm
