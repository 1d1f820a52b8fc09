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

from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.labels.one import kind as one_class
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.head import HeadAlone
from wardround.meta.local import descend
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.models.objective import Objective
from wardround.questions import Cohort, FewShotLoss, Shots

# How long the parts of Q, S and n are in a patient's vector, for an f of length 1; a head's gradient is about 1 long.
SCATTER, SUMS, COUNTS = 0.55, 0.3, 0.2
# rho, in units of Sigma's mean eigenvalue; what noise adds to it is seen from Sigma's negative eigenvalues.
RIDGE = 0.5
# A class counts as having this share of all patients more than it has, with a mean of zero.
SHRINKAGE = 0.005


class Discriminant(FineTuned):
    """Federated averaging of a head, and of the sums that make a metric."""

    one_class_each = True
    of_classes = ("scatter", "sums", "counts")

    name: str = "discriminant"

    def extended(self, model: Model) -> Model:
        """With Q, S and n beside the model."""
        e, classes = model.embedding_size, model.classes
        return Extended.of(
            model, {"scatter": torch.zeros(e, e), "sums": torch.zeros(classes, e), "counts": torch.zeros(classes)}
        )

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """w_k - theta, float32 [P], after `local_steps` private steps."""
        w = descend(theta, cohort, WithSums(loss), steps=self.local_steps, learning_rate=self.local_learning_rate)
        return w - theta

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor) -> Tensor:
        """The body and the metric; no class has been counted, and the head starts at zero."""
        anew = super().for_classes(theta, theirs, ours, start)
        found = metric(theta, theirs)
        learned = found - torch.eye(len(found)).to(found)
        return ours.with_extras(anew, scatter=learned)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """A head that is fine-tuned in the metric, from the one that theta holds."""
        alone = HeadAlone(theta, loss, metric(theta, loss))
        return {"theta": alone.around(self.tuned(alone.own(), alone.embedded(support), alone))}


@dataclass(frozen=True)
class WithSums:
    """A loss of the head, less a linear term whose gradient is what an image adds to the sums."""

    loss: FewShotLoss

    @property
    def elementary(self) -> bool:
        """Where the loss is."""
        return isinstance(self.loss, Objective) and self.loss.elementary

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m, ...] -> float32 []."""
        f, beside = self.loss.embed(theta, x).detach(), self.loss.extras(theta)
        shown = self.shown(y)
        scatter = ((f @ beside["scatter"]) * f).sum(1)
        added = SCATTER * scatter + SUMS * (shown @ beside["sums"] * f).sum(1) + COUNTS * shown @ beside["counts"]
        return (self.loss.each(theta, x, y) - added).mean()

    def shown(self, y: Tensor) -> Tensor:
        """Which classes each image shows, float32 [m, classes]; of a cell, how much of each."""
        labels = self.loss.labels if isinstance(self.loss, Objective) else one_class
        return labels.targets(y, self.loss.classes)

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`: the loss's, and f f', f and 1 at the places of Q, S_y and n_y."""
        assert isinstance(self.loss, Objective)
        found, f = self.loss.gradients(theta, x, y), self.loss.embedded(theta, x)
        classes = self.shown(y).double()
        parts = (
            -SCATTER * (f.unsqueeze(2) * f.unsqueeze(1)).flatten(1),
            -SUMS * (classes.unsqueeze(2) * f.unsqueeze(1)).flatten(1),
            -COUNTS * classes,
        )
        added = torch.cat(parts, 1)
        found[:, -added.shape[1] :] = added
        return found


def metric(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """M float32 [e, e] from what theta holds; embeddings f become f M, of the same mean length.

    Where no patient was counted, M - I is what stands at Q's place: zero at the start, and in a model for other classes
    what the federation learned.
    """
    beside = {name: tensor.double() for name, tensor in loss.extras(theta).items()}
    counts = beside["counts"].clamp_min(0) / COUNTS
    total, eye = counts.sum(), torch.eye(len(beside["scatter"])).to(beside["scatter"])
    if not total > 0:
        return (eye + beside["scatter"]).float()
    q = (beside["scatter"] + beside["scatter"].T) / (2 * SCATTER * total)
    means = beside["sums"] / (SUMS * (total * (counts + SHRINKAGE * total)).sqrt().unsqueeze(1))
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
