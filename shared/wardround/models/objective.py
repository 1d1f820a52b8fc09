"""The loss that a hospital's private gradients are taken of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from wardround.models.base import Model


@dataclass(frozen=True)
class Objective:
    """Mean cross entropy with logit adjustment (Menon et al., "Long-tail learning via logit adjustment", 2021).

    Adding the log prior to the logits while training, and not when predicting, makes the model aim at balanced
    accuracy. Each hospital adds its own, so hospitals with different prevalence pull towards one common model.

    shift, scale: float32 [d], the public feature scaling. log_prior: float32 [classes], or None for no adjustment.
    """

    model: Model
    shift: Tensor
    scale: Tensor
    log_prior: Tensor | None = None

    @property
    def per_patient(self) -> str:
        """How per-patient gradients are computed fastest: the model knows."""
        return self.model.per_patient

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss float32 [] at theta float32 [P] of encoded x [m, ...] and classes y int64 [m]."""
        return cross_entropy(self._logits(theta, x), y)

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each image, float32 [m]."""
        return cross_entropy(self._logits(theta, x), y, reduction="none")

    def _logits(self, theta: Tensor, x: Tensor) -> Tensor:
        logits = self.model.logits(theta, x, self.shift, self.scale)
        return logits if self.log_prior is None else logits + self.log_prior
