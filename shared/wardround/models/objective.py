"""The loss that a hospital's private gradients are taken of."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softplus

from wardround import elementary
from wardround.models.base import Model
from wardround.models.extended import Extended


@dataclass(frozen=True)
class Objective:
    """Mean cross entropy with logit adjustment (Menon et al., "Long-tail learning via logit adjustment", 2021).

    Adding the log prior to the logits while training, and not when predicting, makes the model aim at balanced
    accuracy. Each hospital adds its own, so hospitals with different prevalence pull towards one common model.

    Labels y are int64 [m], an image's class; or float32 [m, classes], 1 where a finding is there, else 0; or float32
    [m, 2, classes], how much a finding's absence and its presence weigh (`Shots.balanced`). Of findings the loss is the
    mean of their binary cross entropies, and the prior holds log odds.

    shift, scale: float32 [d], the public feature scaling. log_prior: float32 [classes], or None for no adjustment.
    """

    model: Model
    shift: Tensor
    scale: Tensor
    log_prior: Tensor | None = None

    @property
    def elementary(self) -> bool:
        """Whether `gradients` can be asked: of every model with one hidden layer at most."""
        return self.model.hidden != "deep"

    @property
    def classes(self) -> int:
        """Outputs of the model."""
        return self.model.classes

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss float32 [] at theta float32 [P] of encoded x [m, ...] and labels y."""
        return self.each(theta, x, y).mean()

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`: float64 [m, P], of labels int64 [m] or float32 [m, classes].

        Of the cross entropy, with h what the head is linear in and p the softmax of the adjusted logits, the head's is
        (p - y) (h, 1)'; of findings p are sigmoids, and the mean over findings divides by their number. Below it goes
        W' (p - y), times 1 - h^2 where h = tanh.
        """
        x, h = self.standardised(x), self.embedded(theta, x)
        weight, bias = self.head(theta.double())
        logits = elementary.linear(h, weight, bias)
        if self.log_prior is not None:
            logits = logits + self.log_prior.double()
        if y.dim() == 1:
            errors = elementary.softmax(logits) - one_hot(y, self.classes).double()
        else:
            errors = (elementary.sigmoid(logits) - y.double()) / self.classes
        parts = [_outer(errors, h), errors]
        if self.model.hidden != "none":
            below = elementary.total((errors.unsqueeze(2) * weight).transpose(1, 2))
            if self.model.hidden == "tanh":
                below = below * (1 - h * h)
                parts.insert(0, below)  # the hidden layer's bias
            parts.insert(0, _outer(below, x))
        found = torch.cat(parts, 1)
        return torch.cat([found, found.new_zeros(len(x), len(theta) - found.shape[1])], 1)

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
        adjusted = logits if self.log_prior is None else logits + self.log_prior
        if y.dim() == 1:
            return cross_entropy(adjusted, y, reduction="none")
        absent, there = (1 - y, y) if y.dim() == 2 else y.unbind(1)
        return (absent * softplus(adjusted) + there * softplus(-adjusted)).mean(1)

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

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        """What the method learns beside the model, by name; empty where it learns nothing else."""
        return self.model.extras(theta) if isinstance(self.model, Extended) else {}


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Of a [m, k] and b [m, d] -> [m, k d]."""
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)
