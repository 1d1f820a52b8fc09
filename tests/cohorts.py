"""Cohorts and losses for tests of algorithms: what is not asked in a test must not be asked at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wardround.questions import EpisodeGradient, Loss, OfImages, Summand


class SilentCohort:
    """Answers nothing; a test overrides the question that it is about."""

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        raise AssertionError("not asked here")

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        raise AssertionError("not asked here")

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        raise AssertionError("not asked here")


class LossOnly:
    """A loss of theta that has no model, and its own value as its only logit: a test gives `each`."""

    classes = 2

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.each(theta, x, y).mean()

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        return logits[:, 0]

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.each(theta, x, x).unsqueeze(1)

    def embed(self, theta: Tensor, x: Tensor) -> Tensor:
        raise AssertionError("there is no embedding")

    def head(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("there is no head")

    def with_head(self, theta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise AssertionError("there is no head")

    def body(self, theta: Tensor) -> Tensor:
        raise NotImplementedError

    def with_body(self, theta: Tensor, body: Tensor) -> Tensor:
        raise NotImplementedError

    def own(self, theta: Tensor) -> Tensor:
        return theta[: len(theta) - sum(each.numel() for each in self.extras(theta).values())]

    def with_own(self, theta: Tensor, own: Tensor) -> Tensor:
        return torch.cat([own, *(each.flatten() for each in self.extras(theta).values())])

    def with_extras(self, theta: Tensor, **extras: Tensor) -> Tensor:
        parts = self.extras(theta) | extras
        return torch.cat([self.own(theta), *(each.flatten() for each in parts.values())])

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return {}
