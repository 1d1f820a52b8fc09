"""The questions of a cohort answered exactly: no clipping, nobody left out, no noise, and so no privacy at all.

For research, and to see what privacy costs. It lives in the simulation package alone: a hospital's installation does
not contain it. It is made like `wardround_client.privacy.private_cohort.PrivateCohort` and answers in the same units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.questions import EpisodeGradient, Loss, OfImages, Summand
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.episodes import deal, episodes_of
from wardround_client.privacy.mechanism import choose_cells


class ExactCohort:
    """A hospital's patients, without protection.

    Args:
        examples: the cohort.
        privacy: of it, only how large an episode is and how it is split.
        declared_patients: the denominator of a gradient, as it is with privacy on.
        reserved: taken so that it is made as a PrivateCohort is; nothing is noised or counted by it.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        privacy: Privacy,
        declared_patients: int,
        reserved: Sequence[Answers],
    ) -> None:
        self._examples, self._declared, self._privacy = examples, declared_patients, privacy
        # Each patient weighs 1 in all, whatever the number of images: the weights of a patient's images sum to 1.
        self._weights = 1.0 / examples.images[examples.patient].to(examples.summary.dtype)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over ALL patients of the mean gradient of a patient's images, divided by the declared
        patients.
        """
        examples = self._drawn()

        def total(parameters: Tensor) -> Tensor:
            # A loss is the mean over the images that it gets, so equal weights within a group of patients with the
            # same number of images: sum over patients of their means = sum over groups of (patients x group's mean).
            images = examples.images[examples.patient]
            value = torch.zeros((), dtype=parameters.dtype, device=parameters.device)
            for count in torch.unique(images).tolist():
                chosen = images == count
                patients = int(chosen.sum()) / count
                shown = examples.for_learning(torch.nonzero(chosen).flatten())
                value = value + patients * loss(parameters, *shown)
            return value

        slope: Tensor = grad(total)(theta)
        return slope / self._declared

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """float32 [P]: the mean gradient over episodes of ALL patients and all their images, dealt anew each time."""
        examples, episodes = self._drawn(), self._privacy.episodes(self._declared)
        images, order = examples.images, examples.by_patient
        most = int(images.max()) if len(images) else 0
        place = torch.arange(most)
        valid = place < images.unsqueeze(1)
        rows = order[((images.cumsum(0) - images).unsqueeze(1) + place).clamp(max=max(0, len(order) - 1))]
        dealt = deal(examples.patients, episodes, self._privacy.support_share)
        total = torch.zeros_like(theta)
        for support, query in episodes_of(examples, rows, valid, dealt):
            total += gradient(theta, support, query).detach()
        return total / episodes

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        """float32 [size]: the sum over ALL patients of the mean over a patient's images; each patient weighs 1."""
        examples = self._examples
        with torch.no_grad():
            values = of_images(examples.z, examples.y, examples.summary)
        return self._weights @ values.to(self._weights.dtype)

    def _drawn(self) -> Examples:
        """All examples; of the cells of an image those that a step would draw, because they are what is learned."""
        examples = self._examples
        if examples.cells == 1:
            return examples
        shown = examples.shown.view(-1, examples.cells).cpu()
        within = choose_cells(shown, examples.drawn)
        chosen = torch.zeros_like(shown).scatter_(1, within, True).flatten()
        return replace(examples.subset(chosen.to(examples.device)), cells=within.shape[1])
