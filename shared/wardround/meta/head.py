"""The head alone, for methods that adapt nothing else, in the embedding as it is or in a metric of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wardround.questions import FewShotLoss, Shots


@dataclass(frozen=True)
class HeadAlone:
    """The loss as a function of the head alone, float32 [classes (e + 1)], of images that are embedded already.

    metric: [e, e], invertible: embeddings f are seen as f metric. None: as they are.
    """

    theta: Tensor
    loss: FewShotLoss
    metric: Tensor | None = None

    @property
    def classes(self) -> int:
        """The loss's."""
        return self.loss.classes

    def zero(self) -> Tensor:
        """The head that every episode starts from."""
        weight, bias = self.loss.head(self.theta)
        return self.theta.new_zeros(weight.numel() + bias.numel())

    def own(self) -> Tensor:
        """The head that theta holds, as one of the metric: it predicts what theta's does."""
        weight, bias = self.loss.head(self.theta)
        if self.metric is not None:
            weight = torch.linalg.solve(self.metric, weight.T).T
        return torch.cat([weight.flatten(), bias])

    def embedded(self, support: Shots) -> Shots:
        """The same shots, embedded once for all steps."""
        x = self.loss.embed(self.theta, support.x)
        return replace(support, x=x if self.metric is None else x @ self.metric)

    def each(self, head: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """float32 [n], of embedded x [n, e]."""
        weight, bias = self.parts(head)
        return self.loss.of_logits(x @ weight.T + bias, y)

    def each_of(self, heads: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The same of heads [m, k, ...], each with its x [m, n, e] and y [m, n, ...]: float32 [m, k, n]."""
        (m, k), n = heads.shape[:2], x.shape[1]
        weight, bias = heads[..., : -self.classes].reshape(m, k, self.classes, -1), heads[..., -self.classes :]
        logits = x.unsqueeze(1) @ weight.mT + bias.unsqueeze(2)
        labels = y.unsqueeze(1).expand(m, k, *y.shape[1:]).flatten(0, 2)
        return self.loss.of_logits(logits.flatten(0, 2), labels).view(m, k, n)

    def around(self, head: Tensor) -> Tensor:
        """Theta float32 [P] with this head."""
        weight, bias = self.parts(head)
        return self.loss.with_head(self.theta, weight if self.metric is None else weight @ self.metric.T, bias)

    def parts(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [classes, e] and bias [classes]."""
        return head[: -self.classes].view(self.classes, -1), head[-self.classes :]
