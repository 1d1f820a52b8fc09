"""The loss that a hospital's private gradients are taken of."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from wardround import elementary
from wardround.config import Federation
from wardround.labels import LABEL_KINDS, LabelKind
from wardround.labels.one import kind as one_class
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.task import Augmentation


@dataclass(frozen=True)
class Objective:
    """The label kind's loss with logit adjustment (Menon et al., "Long-tail learning via logit adjustment", 2021).

    Adding the prior to the logits while training, and not when predicting, makes the model aim at balanced accuracy.
    Each hospital adds its own, so hospitals with different prevalence pull towards one common model.

    shift, scale: float32 [d], the public feature scaling. log_prior: float32 [classes], or None for no adjustment.
    labels: the kind of the labels y [m, ...]. augment: what made the variants of images that are learned from, which
    follow each image.
    """

    model: Model
    shift: Tensor
    scale: Tensor
    log_prior: Tensor | None = None
    labels: LabelKind = one_class
    augment: tuple[Augmentation, ...] = ()

    @classmethod
    def of(
        cls, federation: Federation, model: Model, shift: Tensor, scale: Tensor, log_prior: Tensor | None = None
    ) -> Objective:
        """What a federation's labels are learned by."""
        task = federation.task
        return cls(model, shift, scale, log_prior, LABEL_KINDS[task.labels], task.augment)

    @property
    def elementary(self) -> bool:
        """Whether `gradients` can be asked: of every model with one hidden layer at most, if the labels permit it."""
        return self.model.hidden != "deep" and self.labels.elementary

    @property
    def classes(self) -> int:
        """Outputs of the model."""
        return self.model.classes

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss float32 [] at theta float32 [P] of encoded x [m, ...] and labels y."""
        return self.each(theta, x, y).mean()

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`: float64 [m, P], with the loss's slope in the logits (`LabelKind.errors`)."""
        logits = self.exact_logits(theta, x)
        if self.log_prior is not None:
            logits = logits + self.log_prior.double()
        found = self.slopes(theta, x, self.labels.errors(logits, y))
        return torch.cat([found, found.new_zeros(len(x), len(theta) - found.shape[1])], 1)

    def exact_logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """As predicted, float64 [m, classes], by elementary operations; of a model that is not deep."""
        return elementary.linear(self.embedded(theta, x), *self.head(theta.double()))

    def slopes(self, theta: Tensor, x: Tensor, errors: Tensor) -> Tensor:
        """The gradient of each image in the model's own part of theta, float64 [m, p], by elementary operations.

        With h what the head is linear in and e the slope in the logits, `errors` [m, classes], the head's is e (h, 1)'.
        Below it goes W' e, times 1 - h^2 where h = tanh.
        """
        x, h = self.standardised(x), self.embedded(theta, x)
        parts = [_outer(errors, h), errors]
        if self.model.hidden != "none":
            weight, _ = self.head(theta.double())
            below = elementary.total((errors.unsqueeze(2) * weight).transpose(1, 2))
            if self.model.hidden == "tanh":
                below = below * (1 - h * h)
                parts.insert(0, below)  # the hidden layer's bias
            parts.insert(0, _outer(below, x))
        return torch.cat(parts, 1)

    def standardised(self, x: Tensor) -> Tensor:
        """Encoded x [m, d] -> float64 [m, d], by elementary operations (`scaling.standardised`)."""
        return (x.double() - self.shift.double()) / (self.scale.double() * sqrt(x.shape[1]))

    def embedded(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the head is linear in, float64 [m, e], by elementary operations; of a model that is not deep."""
        x, e = self.standardised(x), self.model.embedding_size
        if self.model.hidden == "none":
            return x
        body = theta[: self.model.body_size].double()
        weight, rest = body[: e * x.shape[1]].view(e, -1), body[e * x.shape[1] :]
        if self.model.hidden == "linear":
            return elementary.linear(x, weight, rest.new_zeros(e))
        return elementary.tanh(elementary.linear(x, weight, rest))

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each image, float32 [m]."""
        return self.of_logits(self.logits(theta, x), y)

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each image, float32 [m], from logits [m, classes] as predicted."""
        return self.labels.losses(logits if self.log_prior is None else logits + self.log_prior, y)

    def embed(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the head is linear in, float32 [m, e]."""
        return self.model.embed(theta, x, self.shift, self.scale)

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """As predicted, without adjustment: float32 [m, classes]."""
        return self.model.logits(theta, x, self.shift, self.scale)

    def head(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The head's place in theta float32 [P]: weight [classes, e] and bias [classes], views."""
        head = theta[self._head]
        return head[: -self.classes].view(self.classes, -1), head[-self.classes :]

    def with_head(self, theta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Theta float32 [P] with another head; weight [classes, e], bias [classes]."""
        head = self._head
        return torch.cat([theta[: head.start], weight.flatten(), bias, theta[head.stop :]])

    @property
    def _head(self) -> slice:
        start = self.model.body_size
        return slice(start, start + self.classes * (self.model.embedding_size + 1))

    def body(self, theta: Tensor) -> Tensor:
        """What lies below the head: float32 [b], a view."""
        return theta[: self.model.body_size]

    def with_body(self, theta: Tensor, body: Tensor) -> Tensor:
        """Theta float32 [P], or a model's own part alone, with another body."""
        return torch.cat([body, theta[self.model.body_size :]])

    def own(self, theta: Tensor) -> Tensor:
        """The model's own part, body and head, without the extras: float32 [p], a view."""
        return theta[: self._head.stop]

    def with_own(self, theta: Tensor, own: Tensor) -> Tensor:
        """Theta float32 [P] with another model's own part."""
        return torch.cat([own, theta[self._head.stop :]])

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        """What the method learns beside the model, by name, views; empty where it learns nothing else."""
        return self.model.extras(theta) if isinstance(self.model, Extended) else {}

    def with_extras(self, theta: Tensor, **extras: Tensor) -> Tensor:
        """Theta float32 [P] with other extras of these names."""
        parts = self.extras(theta) | extras
        return torch.cat([self.own(theta), *(each.flatten() for each in parts.values())])


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Of a [m, k] and b [m, d] -> [m, k d]."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
