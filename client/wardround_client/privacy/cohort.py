"""The object through which every algorithm sees a hospital's patients: it answers with clipped and noised sums.

What is added up for one patient has an L2 norm of at most the clip norm, whatever the patient's images hold; adding or
removing a patient therefore moves a sum by at most that (privacy.md, "One step"). Nothing computed from the true number
of patients, or from any other private number, enters a rate, a denominator or an error.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from wardround.config import Privacy
from wardround.errors import BudgetExceeded
from wardround.questions import Loss, Predict, Statistics
from wardround_client.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.accountant import Answers, Calibration
from wardround_client.privacy.per_patient import clipped_sum

_PREDICT_BATCH = 512


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
        self._order = torch.argsort(examples.patient, stable=True).cpu()
        self._images = torch.bincount(examples.patient.cpu(), minlength=examples.patients)
        self._starts = self._images.cumsum(0) - self._images

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """See `Cohort.gradient`: float32 [P], on theta's device. Raises: BudgetExceeded, when it was not reserved."""
        sigma, rate = self._calibration.gradient, self._calibration.sampling_rate
        self._spend(sigma, rate)
        total = self._clipped_gradients(loss, theta, mechanism.poisson_sample(self._examples.patients, rate))
        clip_norm = self._privacy.clip_norm
        return mechanism.noised(total, sigma * clip_norm).div_(rate * self._declared)

    def statistics(self) -> Statistics:
        """See `Cohort.statistics`: one answer over all patients. Raises: BudgetExceeded, when it was not reserved."""
        sigma = self._calibration.statistics
        self._spend(sigma, 1.0)
        noisy = mechanism.noised(self._statistics_blocks().sum(0), sigma)
        classes, features = self._examples.classes, self._examples.summary.shape[1]
        counts, z, zz = torch.split(noisy * math.sqrt(3), [classes, features, features])
        return Statistics(counts, z * math.sqrt(features), zz * math.sqrt(3 * features))

    def confusion(self, predict: Predict) -> Tensor:
        """See `Cohort.confusion`: one answer over all patients. Raises: BudgetExceeded, when it was not reserved."""
        sigma = self._calibration.confusion
        self._spend(sigma, 1.0)
        classes = self._examples.classes
        return mechanism.noised(self._confusion_blocks(predict).sum(0), sigma).view(classes, classes)

    def _spend(self, noise_multiplier: float, sampling_rate: float) -> None:
        """Count an answer against the reservation."""
        if self._left[noise_multiplier, sampling_rate] < 1:
            raise BudgetExceeded(
                "an algorithm asked more than was reserved for its round",
                allowed="as many answers as the schedule says",
                do="report this: the algorithm and its `gradients_per_round` disagree",
            )
        self._left[noise_multiplier, sampling_rate] -= 1

    # Each of the following is a sum, or the rows of one, to which a patient adds a vector of bounded norm.

    def _clipped_gradients(self, loss: Loss, theta: Tensor, patients: Tensor) -> Tensor:
        """Float64 [P]: the sum over these patients of their clipped mean gradients; zero for no patient."""
        chosen = mechanism.choose_images(self._images[patients], self._privacy.images_per_patient)
        rows = self._order[(self._starts[patients].unsqueeze(1) + chosen).clamp_min_(0)] if len(patients) else chosen
        return clipped_sum(loss, theta, self._examples, rows, chosen >= 0, self._privacy.clip_norm)

    def _statistics_blocks(self) -> Tensor:
        """Float64 [patients, classes + 2 d]: one block a patient, of norm at most 1.

        (one-hot, z / sqrt d, z^2 / sqrt(3 d)) / sqrt 3, each averaged over the patient's images. Features of variance 1
        make each of the three about 1 long. Each part is clipped to 1 by itself, which bounds the block as a joint clip
        would, and keeps a patient with large features from losing weight in the class counts.
        """
        examples = self._examples
        one_hot = torch.nn.functional.one_hot(examples.y, examples.classes).double()
        z = torch.nan_to_num(examples.summary.double(), nan=0.0, posinf=0.0, neginf=0.0)
        features = z.shape[1]
        parts = (one_hot, z / math.sqrt(features), z.square() / math.sqrt(3 * features))
        return torch.cat([mechanism.rows_clipped(self._patient_means(part), 1.0) for part in parts], dim=1) / math.sqrt(
            3
        )

    @torch.no_grad()
    def _confusion_blocks(self, predict: Predict) -> Tensor:
        """Float64 [patients, classes^2]: the mean over a patient's images of one-hot (truth, prediction) cells.

        A mean of unit vectors has a norm of at most 1.
        """
        examples = self._examples
        predicted = torch.cat([predict(z).argmax(1) for z in torch.split(examples.z, _PREDICT_BATCH)])
        cells = examples.y * examples.classes + predicted
        one_hot = torch.nn.functional.one_hot(cells, examples.classes**2).double()
        return mechanism.rows_clipped(self._patient_means(one_hot), 1.0)

    def _patient_means(self, values: Tensor) -> Tensor:
        """Float64 [n, k] over images -> [patients, k], means over each patient's images."""
        sums = values.new_zeros(self._examples.patients, values.shape[1])
        sums.index_add_(0, self._examples.patient, values)
        return sums / self._images.to(values.device).clamp_min(1).unsqueeze(1)
