"""A small episode and a cohort that answers exactly about it, for tests of algorithms."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround.questions import EpisodeGradient, Loss, Shots

COLUMNS, CLASSES, WIDTH = 4, 3, 5
MODEL = Tabular.mlp(COLUMNS, CLASSES, WIDTH)


@dataclass
class OneEpisode(SilentCohort):
    """Answers without clipping or noise, always about the same shots, and remembers what was asked, and where."""

    support: Shots
    query: Shots
    asked: list[tuple[str, Tensor]] = field(default_factory=list)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        self.asked.append(("gradient", theta))
        gradient: Tensor = torch.func.grad(loss)(theta, self.query.x, self.query.y)
        return gradient

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        self.asked.append(("episode_gradient", theta))
        return gradient(theta, self.support, self.query)


def one_image(x: Tensor) -> OneEpisode:
    """A cohort of one patient with one image x."""
    shots = Shots(x[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    return OneEpisode(shots, shots)


def objective(dtype: torch.dtype = torch.float32) -> Objective:
    """Of the mlp, with a scaling and a prior that are not trivial."""
    shift, scale = torch.full((COLUMNS,), 0.1, dtype=dtype), torch.full((COLUMNS,), 0.8, dtype=dtype)
    return Objective(MODEL, shift, scale, torch.tensor([0.2, 0.3, 0.5], dtype=dtype).log())


def episode(dtype: torch.dtype = torch.float32, seed: int = 0) -> OneEpisode:
    """Ragged: the patients have one to three images; every class is in the support."""
    generator = torch.Generator().manual_seed(seed)
    support, query = (_shots(torch.tensor(images), generator, dtype) for images in ([2, 1, 3, 1, 1], [1, 2, 1, 3]))
    return OneEpisode(support, query)


def _shots(images: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Shots:
    patient = torch.repeat_interleave(torch.arange(len(images)), images)
    x = torch.randn(len(patient), COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    return Shots(x, patient % CLASSES, patient, (1 / images)[patient].to(dtype))
