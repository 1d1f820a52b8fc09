"""A shared metric for new diseases: linear discriminant analysis (Fisher, 1936) as what a federation meta-learns.

Images of patients with ONE disease differ in directions that tell no disease from another: camera, skin, position.
Hospitals that have many patients of some diseases know these directions; one with five patients of a new one cannot.
So the federation learns, beside FedAvg's head W, three sums over patients of an embedded image f:

    Q = sum f f',   S_c = sum of f in class c,   n_c = patients of class c

From these follow the covariance within a class, Sigma = (Q - sum_c S_c S_c' / n_c) / n, and a metric

    M = (Sigma + rho I)^(-1/2) (I + G),   G = V diag(s / s_1) V',

with s and V the singular values and right vectors of W, whose classes' mean is taken away: what differs within a class
counts less, what has told classes apart counts more. At home a head is fitted in that metric, held by the shared one
(for classes that it knows) or by zero (for others). A Mahalanobis distance of this kind serves few-shot learning well
without privacy too (Bateni et al., "Improved Few-Shot Visual Classification", 2020); here it is what noised sums over
many patients can teach beside the head.

Privacy: a patient's part in the sums is the gradient of a LINEAR loss, so that `cohort.gradient` is asked for both at
once: one vector a patient, clipped to C as a whole. The price is FedAvg's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.meta.head import HeadAlone
from wardround.meta.summed import Summed
from wardround.questions import FewShotLoss, Shots

# Of Q, S and n, beside a head's gradient, which is about 1 long.
LENGTHS = {"scatter": 0.55, "sums": 0.3, "counts": 0.2}
# rho, in units of Sigma's mean eigenvalue; what noise adds to it is seen from Sigma's negative eigenvalues.
RIDGE = 0.5
# A class counts as having this share of all patients more than it has, with a mean of zero.
SHRINKAGE = 0.005


class Discriminant(Summed):
    """Federated averaging of a head, and of the sums that make a metric."""

    lengths = LENGTHS

    name: str = "discriminant"

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor, like: Tensor) -> Tensor:
        """The body and the metric; no class has been counted, and the head starts at zero."""
        anew = super().for_classes(theta, theirs, ours, start, like)
        found = metric(theta, theirs)
        learned = found - torch.eye(len(found)).to(found)
        return ours.with_extras(anew, scatter=learned)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """A head that is fine-tuned in the metric, from the one that theta holds."""
        alone = HeadAlone(theta, loss, metric(theta, loss))
        return {"theta": alone.around(self.tuned(alone.own(), alone.embedded(support), alone))}


def metric(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """M float32 [e, e] from what theta holds; embeddings f become f M, of the same mean length.

    Where no patient was counted, M - I is what stands at Q's place: zero at the start, and in a model for other classes
    what the federation learned.
    """
    beside = {name: tensor.double() for name, tensor in loss.extras(theta).items()}
    counts = beside["counts"].clamp_min(0) / LENGTHS["counts"]
    total, eye = counts.sum(), torch.eye(len(beside["scatter"])).to(beside["scatter"])
    if not total > 0:
        return (eye + beside["scatter"]).float()
    q = (beside["scatter"] + beside["scatter"].T) / (2 * LENGTHS["scatter"] * total)
    means = beside["sums"] / (LENGTHS["sums"] * (total * (counts + SHRINKAGE * total)).sqrt().unsqueeze(1))
    found = _whitening(q - means.T @ means) @ (eye + _directions(loss.head(theta)[0].double()))
    # So that a pull means the same as without a metric. Noise may have left a Q that is no scatter at all.
    before, after = torch.trace(q), torch.trace(found.T @ q @ found)
    return (found * (before / after).sqrt() if min(before, after) > 0 else eye).float()


def _whitening(sigma: Tensor) -> Tensor:
    """(Sigma + rho I)^(-1/2) of a symmetric Sigma [e, e], of which noise may have made eigenvalues negative."""
    values, vectors = torch.linalg.eigh(sigma)
    rho = RIDGE * values.clamp_min(0).mean() - values[0].clamp_max(0)
    inverse: Tensor = vectors / (values.clamp_min(0) + rho.clamp_min(1e-9)).sqrt() @ vectors.T
    return inverse


def _directions(weight: Tensor) -> Tensor:
    """G [e, e] of a head's weight [classes, e]; zero for a head that knows nothing."""
    _, s, v = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)
    directions: Tensor = (v.T * (s / s[0].clamp_min(1e-12))) @ v
    return directions


algorithm = Discriminant
