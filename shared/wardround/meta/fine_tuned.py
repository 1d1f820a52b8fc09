"""Methods that take local steps from a start that they learn; at home, they go on from it by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from wardround.algorithms import AdaptsBy, Algorithm, Fitted
from wardround.meta.head import HeadAlone
from wardround.meta.local import LossOfEach, fine_tune, fine_tune_each
from wardround.questions import FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.settings import HomeRate, HomeSteps, HomeStrength, LocalRate, LocalSteps
from wardround.vector import Layout

# Chosen at hospitals and diseases that stood in for others (docs/benchmarks.md, "Classes under other names").
SCORES_PULL = 3.0
_AT_ONCE = 1 << 23  # logits, of which a step holds a few copies


class FineTuned(Algorithm):
    """A method whose model is fine-tuned at home.

    local_steps, local_learning_rate: of the inner loop; the learning rate also scales what a hospital sends.
    adapt_steps, adapt_learning_rate: SGD with momentum at home. adapt_pull: how strongly the start holds the adapted
    model back, against the loss summed over patients.
    """

    adapts_by: ClassVar[AdaptsBy | None] = "adapt_pull"

    local_steps: LocalSteps = 1
    local_learning_rate: LocalRate = 1.0
    adapt_steps: HomeSteps = 100
    adapt_learning_rate: HomeRate = 1.0
    adapt_pull: HomeStrength = 1.0

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """Of a delta that is alpha times the sum of all answers, as most are."""
        factors = [self.local_learning_rate] * self.answers_per_round
        return ((layout.size, answer.sum(factors, layout.size)),)

    def of_scores(
        self, theta: Tensor, supports: Sequence[Shots], loss: FewShotLoss, weight: Tensor, bias: Tensor
    ) -> list[Tensor]:
        """Stacking (Wolpert, "Stacked generalization", 1992): a head on the federation's class scores, fine-tuned from
        zero. It is linear in the embedding too, so that it is a head like any other, from which adapting goes on.
        """
        head = HeadAlone(theta, loss)
        scores = [head.embedded(support).x @ weight.T + bias for support in supports]
        sizes = [each.square().sum(1).mean().sqrt().clamp_min(1e-6) for each in scores]
        told = [replace(s, x=x / size) for s, x, size in zip(supports, scores, sizes, strict=True)]
        start, pull = theta.new_zeros(len(told), 1, loss.classes * (len(bias) + 1)), theta.new_tensor([SCORES_PULL])
        steps, rate = self.adapt_steps, self.adapt_learning_rate
        tuned = fine_tune_each(start, told, head, steps=steps, learning_rate=rate, pull=pull).squeeze(1)
        return [
            loss.with_head(theta, a @ weight / size, a @ bias / size + c)
            for (a, c), size in zip(map(head.parts, tuned), sizes, strict=True)
        ]

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Fine-tuning from theta."""
        return {"theta": self.tuned(theta, support, loss)}

    def tuned(self, theta: Tensor, support: Shots, loss: LossOfEach) -> Tensor:
        """`fine_tune` as the settings say: float32 [P], a new vector."""
        return fine_tune(
            theta,
            support,
            loss,
            steps=self.adapt_steps,
            learning_rate=self.adapt_learning_rate,
            pull=self.adapt_pull,
        )

    def heads_tuned(self, theta: Tensor, supports: Sequence[Shots], loss: FewShotLoss, pull: Tensor) -> Tensor:
        """`adapt` of models that are a head alone, from several starts on each of the supports, all at once.

        theta: float32 [supports, starts, P]. pull: float32 [starts], instead of the setting. Returns [supports, starts,
        P].
        """
        head = HeadAlone(theta[0, 0], loss)
        own = torch.stack([torch.stack([HeadAlone(each, loss).own() for each in starts]) for starts in theta])
        embedded = [head.embedded(support) for support in supports]
        size = theta.shape[1] * loss.classes * max(len(each.y) for each in supports)
        some = max(1, _AT_ONCE // size)  # supports, whose logits are held together
        parts = [slice(first, first + some) for first in range(0, len(supports), some)]
        steps, rate = self.adapt_steps, self.adapt_learning_rate
        tuned = torch.cat(
            [
                fine_tune_each(own[part], embedded[part], head, steps=steps, learning_rate=rate, pull=pull)
                for part in parts
            ]
        )
        pairs = zip(theta.flatten(0, 1), tuned.flatten(0, 1), strict=True)
        return torch.stack([loss.with_head(each, *head.parts(one)) for each, one in pairs]).view_as(theta)
