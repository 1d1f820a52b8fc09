"""A question asked of invented patients, as large as any real one, before anything is reserved for the real ones.

Whether this machine has the memory for it, and computes the same bits again, must be known while nobody's data are
looked at: behind the reservation a failure could tell who is there. The greatest episode and the most images that an
agreement permits are computed here at the public start of the model; no real patient's are larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.labels import LABEL_KINDS
from wardround.models import Model
from wardround.questions import Blocks, EpisodeGradient, Loss, OfImages, Shots, Summand
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import image_by_image, isolation
from wardround_client.privacy.per_patient import clipped_sum

_TIMES = 2  # the same is computed


class Rehearsal:
    """Implements `wardround.questions.Cohort` over invented patients; its answers are zeros.

    Raises: PolicyRefusal, where this machine computes other bits the second time. Whatever else is raised is not about
    anybody either.
    """

    def __init__(self, federation: Federation, model: Model, declared_patients: int, device: torch.device) -> None:
        task, privacy = federation.task, federation.privacy
        self._privacy, self._side = privacy, privacy.side_cap(declared_patients)
        self._of_patient = privacy.images_per_patient * task.drawn
        images = 2 * self._side * self._of_patient
        generator = torch.Generator().manual_seed(0)  # public: nobody is here

        def encoded(many: int) -> Tensor:
            """So many images, of which a few are different."""
            few = torch.rand(min(many, 4), *task.input_shape, generator=generator).to(device)
            z = image_by_image(model.encode, few)
            return z[torch.arange(many) % max(1, len(z))]

        z, labels = encoded(images), LABEL_KINDS[task.labels]
        self._examples = Examples(
            z,
            labels.invented(images, task).to(device),
            torch.arange(images, device=device) // self._of_patient,
            model.summary(z),
            model.classes,
            augmented=encoded(images * (task.variants - 1)).view(images, task.variants - 1, *encoded(1).shape[1:])
            if task.variants > 1
            else None,
            labels=labels,
        )

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """Of two patients with the most images, together and one by one."""
        rows = torch.arange(2 * self._of_patient).view(2, -1)
        every = torch.ones_like(rows, dtype=torch.bool)

        def added(chosen: slice) -> Tensor:
            return clipped_sum(loss, theta, self._examples, rows[chosen], every[chosen], self._privacy.clip_norm)

        for _ in range(_TIMES):
            self._same(added(slice(0, 2)) - added(slice(0, 1)), added(slice(1, 2)))
        return torch.zeros_like(theta)

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """Of the greatest episode."""
        half = self._side * self._of_patient

        def shots(rows: Tensor) -> Shots:
            x, y = self._examples.for_learning(rows)
            patient = self._examples.patient[rows].repeat_interleave(self._examples.variants)
            weight = torch.full((len(y),), self._side / len(y), device=theta.device)
            return Shots(x, y, patient - patient.min(), weight, self._examples.labels)

        with isolation():
            found = [
                gradient(theta, shots(torch.arange(half)), shots(torch.arange(half, 2 * half))).detach()
                for _ in range(_TIMES)
            ]
        for each in found[1:]:
            self._same(each, found[0])
        return torch.zeros_like(theta)

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        """Of a few images."""
        few = [each[:4] for each in (self._examples.z, self._examples.y, self._examples.summary)]
        found = image_by_image(of_images, *few)
        for _ in range(_TIMES):
            self._same(image_by_image(of_images, *(each[1:] for each in few)), found[1:])
        return torch.zeros(Blocks(tuple(summands)).layout.size)

    def _same(self, one: Tensor, other: Tensor) -> None:
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise PolicyRefusal(
                "device",
                asked="a model whose numbers depend on who else is computed with, on this machine",
                allowed='the same bits each time; compute = "cpu" in hospital.toml gives them',
            )
