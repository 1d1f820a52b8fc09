"""The object through which every algorithm sees a hospital's patients: it answers with clipped and noised sums.

What is added up for one patient is a function of that patient alone, bit for bit, and has an L2 norm of at most the
clip norm; sums are exact. Adding or removing a patient therefore moves a sum by that patient's own vector and by
nothing else (docs/privacy-specification.md, "A patient alone"). Nothing computed from the true number of patients, or
from any other private number, enters a rate, a denominator or an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.errors import BudgetExceeded
from wardround.questions import Blocks, EpisodeGradient, Loss, OfImages, Summand
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import fresh, isolation, or_else
from wardround_client.privacy import mechanism
from wardround_client.privacy.contribution import clipped, contribution, contributions, summed
from wardround_client.privacy.episodes import Deal, deal, episodes_of
from wardround_client.privacy.per_patient import clipped_sum


class PrivateCohort:
    """Implements `wardround.questions.Cohort` over one hospital's examples, for one round.

    Args:
        examples: the hospital's patients.
        privacy: clip norm and images a patient.
        declared_patients: the hospital's round public number; denominators come from it.
        reserved: what stands in the ledger for this round. Each answer takes one of these, with its noise multiplier
            and sampling rate; asking for more raises before anything is computed.
    """

    def __init__(
        self, examples: Examples, *, privacy: Privacy, declared_patients: int, reserved: Sequence[Answers]
    ) -> None:
        self._examples, self._privacy, self._declared = examples, privacy, declared_patients
        self._reserved, self._answered = tuple(reserved), 0
        # Examples in the order of their patients, and where each patient's begin.
        self._order, self._images = examples.by_patient.cpu(), examples.images.cpu()
        self._starts = self._images.cumsum(0) - self._images
        self._shown = examples.shown.cpu() if examples.cells > 1 else torch.empty(0, dtype=torch.bool)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """See `Cohort.gradient`: float32 [P], on theta's device. Raises: BudgetExceeded, when it was not reserved."""
        sigma, rate = self._spend()
        total = self._clipped_gradients(loss, theta, mechanism.poisson_sample(self._examples.patients, rate))
        clip_norm = self._privacy.clip_norm
        return mechanism.noised(total, sigma * clip_norm).div_(rate * self._declared)

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """See `Cohort.episode_gradient`: float32 [P], on theta's device.

        A patient who comes or goes turns ONE episode's clipped gradient into another of at most the same length, so a
        sum moves by at most 2 C, and the noise is that of sensitivity 2 C.

        Raises: BudgetExceeded, when it was not reserved.
        """
        sigma, rate = self._spend()
        episodes = self._privacy.episodes(self._declared)
        sampled = mechanism.poisson_sample(self._examples.patients, rate)
        dealt = deal(len(sampled), episodes, self._privacy.support_share)
        total = self._clipped_episodes(gradient, theta, sampled, dealt)
        return mechanism.noised(total, sigma * 2 * self._privacy.clip_norm).div_(episodes)

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        """See `Cohort.sum`. Raises: BudgetExceeded, when it was not reserved."""
        sigma, rate = self._spend()
        blocks, sampled = Blocks(tuple(summands)), mechanism.poisson_sample(self._examples.patients, rate)
        total = _sum(self._blocks(blocks, of_images)[sampled.to(self._examples.device)])
        return blocks.scaled(mechanism.noised(total, sigma), down=False) / rate

    def _spend(self) -> tuple[float, float]:
        """Count an answer against the reservation -> its noise multiplier and sampling rate."""
        place = self._answered
        for row in self._reserved:
            if place < row.count:
                self._answered += 1
                return row.noise_multiplier, row.sampling_rate
            place -= row.count
        raise BudgetExceeded(
            "an algorithm asked more than was reserved for its round",
            allowed="as many answers as the schedule says",
            do="report this: the algorithm and its `answers_per_round` disagree",
        )

    # Each of the following is a sum, or the rows of one, to which a patient adds a vector of bounded norm.

    def _clipped_gradients(self, loss: Loss, theta: Tensor, patients: Tensor) -> Tensor:
        """Float64 [P]: the sum over these patients of their clipped mean gradients; zero for no patient."""
        rows, valid = self._chosen(patients)
        return clipped_sum(loss, theta, self._examples, rows, valid, self._privacy.clip_norm)

    def _chosen(self, patients: Tensor) -> tuple[Tensor, Tensor]:
        """Which examples each of these patients contributes, int64 [patients, m], and which of them are, bool."""
        cells = self._examples.cells
        chosen = mechanism.choose_images(self._images[patients] // cells, self._privacy.images_per_patient)
        if not len(patients):
            return chosen, chosen >= 0
        first = self._order[(self._starts[patients].unsqueeze(1) + chosen * cells).clamp_min_(0)]
        if cells == 1:
            return first, chosen >= 0
        # Of each of these images, whose cells follow one another, some cells.
        shown = self._shown.view(-1, cells)[first.flatten() // cells]
        within = mechanism.choose_cells(shown, self._examples.drawn).view(*chosen.shape, -1)
        return (first.unsqueeze(2) + within).flatten(1), (chosen >= 0).repeat_interleave(within.shape[2], 1)

    def _clipped_episodes(self, gradient: EpisodeGradient, theta: Tensor, patients: Tensor, dealt: Deal) -> Tensor:
        """Float64 [P]: the sum over episodes of their clipped gradients, exact.

        An episode without support or query is 0, and so is one whose gradient cannot be computed. Each is computed in
        isolation, so that it is a function of its own patients alone.
        """
        theta, clip_norm = fresh(theta), self._privacy.clip_norm
        added, nothing = torch.zeros(theta.shape, dtype=torch.int64, device=theta.device), torch.zeros_like(theta)
        rows, valid = self._chosen(patients)
        most = self._privacy.side_cap(self._declared)
        with isolation():
            for support, query in episodes_of(self._examples, rows, valid, dealt, most):
                found = or_else(nothing, gradient, theta, support, query).detach()
                added += contribution(found.float(), clip_norm)
        return summed(added.unsqueeze(0), clip_norm)

    @torch.no_grad()
    def _blocks(self, blocks: Blocks, of_images: OfImages) -> Tensor:
        """Float64 [patients, size], a block a patient, of norm at most 1.

        Each summand, the mean over a patient's images, is clipped by itself, which bounds the block as a joint clip
        would, and keeps what is large in one summand from shortening the others.
        """
        examples, layout = self._examples, blocks.layout
        values = examples.by_image(of_images).double()
        if values.shape[1:] != (layout.size,):
            raise ValueError(f"{list(values.shape[1:])} numbers of an image, for a layout of {layout}")
        parts = torch.split(values, list(layout.sizes), 1)
        norms = [summand.norm for summand in blocks.summands]
        means = [examples.patient_means(part / norm) for part, norm in zip(parts, norms, strict=True)]
        one = torch.cat([norm * clipped(mean, 1.0) for mean, norm in zip(means, norms, strict=True)], 1)
        return blocks.scaled(one, down=True)


def _sum(blocks: Tensor) -> Tensor:
    """Blocks [patients, size], each of norm at most 1 -> their sum, float64 [size], exact."""
    return summed(contributions(blocks, 1.0), 1.0)
