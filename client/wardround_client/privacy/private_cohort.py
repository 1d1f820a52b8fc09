"""The object through which every algorithm sees a hospital's patients: it answers with clipped and noised sums.

What is added up for one patient is a function of that patient alone, bit for bit, and has an L2 norm of at most the
clip norm; sums are exact. Adding or removing a patient therefore moves a sum by that patient's own vector and by
nothing else (docs/privacy-specification.md, "A patient alone"). Nothing computed from the true number of patients, or
from any other private number, enters a rate, a denominator or an error.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from wardround.accountant import Answers, Calibration
from wardround.config import Privacy
from wardround.errors import BudgetExceeded, ConfigError
from wardround.questions import ClassMeans, Embed, EpisodeGradient, Loss, Predict, Statistics
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import fresh, image_by_image, isolation, or_else
from wardround_client.privacy import mechanism
from wardround_client.privacy.contribution import clipped, contribution, contributions, summed
from wardround_client.privacy.episodes import Deal, deal, episodes_of
from wardround_client.privacy.per_patient import clipped_sum

_COUNT_SHARE = 0.5
"""lambda: how long a count is beside an embedding, in a patient's block of class means. Sums of e numbers need less
noise than counts: where e is 32, a quarter of the variance for the counts costs the sums 12 % more noise."""


class PrivateCohort:
    """Implements `wardround.questions.Cohort` over one hospital's examples, for one round.

    Args:
        examples: the hospital's patients.
        calibration: the noise multipliers and the public sampling rate.
        privacy: clip norm and images a patient.
        declared_patients: the hospital's round public number; denominators come from it.
        reserved: what stands in the ledger for this round. Asking for more raises before anything is computed.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        calibration: Calibration,
        privacy: Privacy,
        declared_patients: int,
        reserved: tuple[Answers, ...],
    ) -> None:
        self._examples, self._calibration, self._privacy = examples, calibration, privacy
        self._declared = declared_patients
        self._left: Counter[tuple[float, float]] = Counter()
        for row in reserved:
            self._left[row.noise_multiplier, row.sampling_rate] += row.count
        # Examples in the order of their patients, and where each patient's begin.
        self._order, self._images = examples.by_patient.cpu(), examples.images.cpu()
        self._starts = self._images.cumsum(0) - self._images

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """See `Cohort.gradient`: float32 [P], on theta's device. Raises: BudgetExceeded, when it was not reserved."""
        sigma, rate = self._calibration.gradient, self._calibration.sampling_rate
        self._spend(sigma, rate)
        total = self._clipped_gradients(loss, theta, mechanism.poisson_sample(self._examples.patients, rate))
        clip_norm = self._privacy.clip_norm
        return mechanism.noised(total, sigma * clip_norm).div_(rate * self._declared)

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """See `Cohort.episode_gradient`: float32 [P], on theta's device.

        A patient who comes or goes turns ONE episode's clipped gradient into another of at most the same length, so a
        sum moves by at most 2 C, and the noise is that of sensitivity 2 C.

        Raises: BudgetExceeded, when it was not reserved.
        """
        sigma, rate = self._calibration.episode_gradient, self._calibration.sampling_rate
        self._spend(sigma, rate)
        episodes = self._privacy.episodes(self._declared)
        sampled = mechanism.poisson_sample(self._examples.patients, rate)
        dealt = deal(len(sampled), episodes, self._privacy.support_share)
        total = self._clipped_episodes(gradient, theta, sampled, dealt)
        return mechanism.noised(total, sigma * 2 * self._privacy.clip_norm).div_(episodes)

    def class_means(self, embed: Embed) -> ClassMeans:
        """See `Cohort.class_means`: one answer over all patients. Raises: BudgetExceeded, when it was not reserved."""
        sigma = self._calibration.class_means
        self._spend(sigma, 1.0)
        classes = self._examples.classes
        blocks, size = self._class_blocks(embed)
        noisy = mechanism.noised(_sum(blocks), sigma) * math.sqrt(1 + _COUNT_SHARE**2)
        sums = noisy[classes:].view(classes, size) * math.sqrt(size)
        return ClassMeans(sums, noisy[:classes] / _COUNT_SHARE)

    def statistics(self) -> Statistics:
        """See `Cohort.statistics`: one answer over all patients. Raises: BudgetExceeded, when it was not reserved."""
        sigma = self._calibration.statistics
        self._spend(sigma, 1.0)
        noisy = mechanism.noised(_sum(self._statistics_blocks()), sigma)
        classes, features = self._examples.classes, self._examples.summary.shape[1]
        counts, z, zz = torch.split(noisy * math.sqrt(3), [classes, features, features])
        return Statistics(counts * self._target_norm, z * math.sqrt(features), zz * math.sqrt(3 * features))

    def confusion(self, predict: Predict) -> Tensor:
        """See `Cohort.confusion`: one answer over all patients.

        Raises: BudgetExceeded, when it was not reserved; ConfigError, where an example has several findings.
        """
        if self._examples.labels.judgement(self._examples.classes) is None:
            raise ConfigError(
                "a confusion matrix counts examples of one class, and these have several findings",
                do="set rounds.evaluate_every = 0 in federation.toml",
            )
        sigma = self._calibration.confusion
        self._spend(sigma, 1.0)
        classes = self._examples.classes
        return mechanism.noised(_sum(self._confusion_blocks(predict)), sigma).view(classes, classes)

    def _spend(self, noise_multiplier: float, sampling_rate: float) -> None:
        """Count an answer against the reservation."""
        if self._left[noise_multiplier, sampling_rate] < 1:
            raise BudgetExceeded(
                "an algorithm asked more than was reserved for its round",
                allowed="as many answers as the schedule says",
                do="report this: the algorithm and its `answers_per_round` disagree",
            )
        self._left[noise_multiplier, sampling_rate] -= 1

    # Each of the following is a sum, or the rows of one, to which a patient adds a vector of bounded norm.

    def _clipped_gradients(self, loss: Loss, theta: Tensor, patients: Tensor) -> Tensor:
        """Float64 [P]: the sum over these patients of their clipped mean gradients; zero for no patient."""
        rows, valid = self._chosen(patients)
        return clipped_sum(loss, theta, self._examples, rows, valid, self._privacy.clip_norm)

    def _chosen(self, patients: Tensor) -> tuple[Tensor, Tensor]:
        """Which examples each of these patients contributes, int64 [patients, m], and which of them are, bool."""
        chosen = mechanism.choose_images(self._images[patients], self._privacy.images_per_patient)
        rows = self._order[(self._starts[patients].unsqueeze(1) + chosen).clamp_min_(0)] if len(patients) else chosen
        return rows, chosen >= 0

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

    def _class_blocks(self, embed: Embed) -> tuple[Tensor, int]:
        """Float64 [patients, classes (e + 1)], one block a patient, of norm at most 1; and e.

        (lambda x targets, targets x z / sqrt e) / sqrt(1 + lambda^2), each averaged over the patient's images; counts
        first, then sums class by class. Embeddings of variance 1 are about sqrt e long. Each of the two parts is
        clipped by itself, over ALL classes together, as in the statistics.
        """
        examples = self._examples
        with torch.no_grad():
            z = image_by_image(embed, examples.z).double()
        z = torch.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0)
        targets = examples.targets.double()
        sums = (targets.unsqueeze(2) * z.unsqueeze(1) / math.sqrt(z.shape[1])).flatten(1)
        counts = _COUNT_SHARE * clipped(examples.patient_means(targets), 1.0)
        blocks = torch.cat([counts, clipped(examples.patient_means(sums), 1.0)], dim=1)
        return blocks / math.sqrt(1 + _COUNT_SHARE**2), z.shape[1]

    def _statistics_blocks(self) -> Tensor:
        """Float64 [patients, classes + 2 d]: one block a patient, of norm at most 1.

        (targets / sqrt full, z / sqrt d, z^2 / sqrt(3 d)) / sqrt 3, each averaged over the patient's images. Features
        of variance 1 make each of the three about 1 long. Each part is clipped to 1 by itself, which bounds the block
        as a joint clip would, and keeps a patient with large features from losing weight in the class counts.
        """
        examples = self._examples
        z = torch.nan_to_num(examples.summary.double(), nan=0.0, posinf=0.0, neginf=0.0)
        features = z.shape[1]
        targets = examples.targets.double() / self._target_norm
        parts = (targets, z / math.sqrt(features), z.square() / math.sqrt(3 * features))
        blocks = torch.cat([clipped(examples.patient_means(part), 1.0) for part in parts], dim=1)
        return blocks / math.sqrt(3)

    @property
    def _target_norm(self) -> float:
        """Up to which norm a patient's targets count in full: it follows from the task, and from nobody's data."""
        return math.sqrt(self._examples.labels.full)

    @torch.no_grad()
    def _confusion_blocks(self, predict: Predict) -> Tensor:
        """Float64 [patients, classes^2]: the mean over a patient's images of what is counted of each."""
        examples = self._examples
        judged = examples.labels.judge(image_by_image(predict, examples.z), examples.y, examples.classes)
        return clipped(examples.patient_means(judged.double()), 1.0)


def _sum(blocks: Tensor) -> Tensor:
    """Blocks [patients, size], each of norm at most 1 -> their sum, float64 [size], exact."""
    return summed(contributions(blocks, 1.0), 1.0)
