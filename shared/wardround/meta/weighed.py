"""Weights that are learned beside a model, by what a query says of each gradient that they weigh.

A step theta' = theta - eta mean_i w_i(phi) g_i changes a query's loss by about -eta q . mean_i w_i g_i, with q the
query's gradient, so that (Ren et al., "Learning to Reweight Examples for Robust Deep Learning", 2018, equation 12; Shu
et al., "Meta-Weight-Net", 2019, equation 7)

    d L_query(theta') / d phi = -eta mean_i (q . g_i) d w_i / d phi.

Both papers query a small clean set, which no federation has. Here everybody is asked, by a loss that wrong labels do
not mislead: 1 - p, p the probability of the label, whose minimum stays where it is when labels are changed evenly
(Ghosh, Kumar and Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", 2017, theorem 1). Each
class weighs the same in it, as far as a hospital's released counts tell.

Privacy: an image adds ONE vector, whose mean over a patient's images is clipped to C as a whole,

    (w_i g_i,  q_i,  -S (u . g_i) d w_i / d phi),

and u is the direction of what all hospitals released of q before, which theta holds. So a step costs what FedAvg's
does, and what is learned of it is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from wardround import elementary
from wardround.labels.one import kind as one_class
from wardround.models.objective import Objective
from wardround.questions import FewShotLoss
from wardround.task import VERSIONS

# How long an image's part in the query is at most, and S, beside a gradient of about 1.
QUERY, SHARE = 0.5, 0.5
# A class weighs in the query so many times what it weighs among the patients, at most.
RAREST = 10.0
_AT_ONCE = 256  # images whose vectors are held at once


@dataclass(frozen=True)
class Weighed:
    """A loss whose images are weighed by phi, theta's extra "weights" [M]; the extra "query" [p] holds what of q was
    released, p the size of the model's own part. w_i = phi . b_i, with b_i as the method says.
    """

    loss: FewShotLoss

    @property
    def elementary(self) -> bool:
        """Where the loss is."""
        return isinstance(self.loss, Objective) and self.loss.elementary

    @property
    def variants(self) -> int:
        """Of each image, which follow one another, the image as it is first."""
        return prod(VERSIONS[each] for each in self.loss.augment) if isinstance(self.loss, Objective) else 1

    def basis(self, right: Tensor, variant: Tensor) -> Tensor:
        """Of images whose label's probability is right [m], and which are that variant, int64 [m], of theirs: b [m, M],
        by elementary operations.
        """
        raise NotImplementedError

    def asked(self, variant: Tensor) -> Tensor:
        """How much each image's part in the query counts, float64 [m]; their mean over an image's variants is 1."""
        return torch.ones_like(variant, dtype=torch.float64)

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m, ...] -> float32 []: not the loss, but what has its gradient."""
        at, added = theta.detach(), torch.zeros_like(theta)
        rows = self.gradients if self.elementary else self.differentiated
        at_once = _AT_ONCE // self.variants * self.variants
        for some, shown in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True):
            added = added + rows(at, some, shown).detach().sum(0).to(theta.dtype)
        return added @ theta / len(x)

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        assert isinstance(self.loss, Objective)
        shown, p = self.shown(y).double(), elementary.softmax(self.loss.exact_logits(theta, x))
        right = elementary.total(shown * p)
        found = self.loss.gradients(theta, x, y)[:, : self.loss.own(theta).numel()]
        slopes = self.balance(shown).unsqueeze(1) * p * (right.unsqueeze(1) - shown)
        return self.vectors(theta, right, self.variant_of(x), found, self.loss.slopes(theta, x, slopes))

    def variant_of(self, x: Tensor) -> Tensor:
        """Which variant each of x [m, ...] is, int64 [m]."""
        return torch.arange(len(x), device=x.device) % self.variants

    def differentiated(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The same of a model that is deep, by autograd: an image at a time, as one of many would be rounded."""
        own = self.loss.own(theta)

        def loss(to: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.loss.each(self.loss.with_own(theta, to), x, y).sum()

        def likely(to: Tensor, x: Tensor, y: Tensor) -> Tensor:
            p = self.loss.logits(self.loss.with_own(theta, to), x).softmax(1)
            return (self.shown(y) * p).sum()

        found = []
        each = (torch.split(part, 1) for part in (x, y, self.variant_of(x)))
        for one, label, variant in zip(*each, strict=True):
            slope, right = grad_and_value(likely)(own, one, label)
            query = -self.balance(self.shown(label)).unsqueeze(1) * slope
            gradient = grad(loss)(own, one, label).double().unsqueeze(0)
            found.append(self.vectors(theta, right.double().unsqueeze(0), variant, gradient, query))
        return torch.cat(found)

    def vectors(self, theta: Tensor, right: Tensor, variant: Tensor, gradients: Tensor, query: Tensor) -> Tensor:
        """What images add, float64 [m, P], from their gradients and those of the query's loss, float64 [m, p]."""
        basis, weights = self.basis(right, variant), self.loss.extras(theta)["weights"].double()
        agreement = elementary.total(gradients * self.direction(theta)).unsqueeze(1)
        weight = elementary.total(basis * weights).unsqueeze(1)
        asked = _shortened(query) * self.asked(variant).unsqueeze(1)
        return torch.cat([weight * gradients, asked, -SHARE * agreement * basis], 1)

    def balance(self, shown: Tensor) -> Tensor:
        """How much more an image counts than if classes were as frequent as here, float64 [m]."""
        prior = self.loss.log_prior if isinstance(self.loss, Objective) else None
        if prior is None:
            return torch.ones_like(shown[:, 0], dtype=torch.float64)
        rare = (1 / (self.loss.classes * elementary.exp(prior.double()))).clamp_max(RAREST)
        return elementary.total(shown.double() * rare)

    def shown(self, y: Tensor) -> Tensor:
        """Which classes each image shows, float32 [m, classes]; of a cell, how much of each."""
        labels = self.loss.labels if isinstance(self.loss, Objective) else one_class
        return labels.targets(y, self.loss.classes)

    def direction(self, theta: Tensor) -> Tensor:
        """u, float64 [p], of length 1; zero before anything was released."""
        return _shortened(self.loss.extras(theta)["query"].double().unsqueeze(0), to=1.0, least=1e-30)[0]


def _shortened(rows: Tensor, to: float = QUERY, least: float | None = None) -> Tensor:
    """Rows [m, p] that are longer than `to`, as long as that; with `least`, all that are as long as it."""
    length = elementary.total(rows * rows).sqrt().unsqueeze(1)
    return rows * (to / length.clamp_min(to if least is None else least))
