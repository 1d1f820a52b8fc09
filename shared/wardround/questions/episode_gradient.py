"""Gradients of few-shot episodes of a hospital's patients: a task of the algorithm is an episode."""

from __future__ import annotations

from wardround.config import Federation
from wardround.questions._training import Training
from wardround.reach import Reach


class EpisodeGradients(Training):
    """A sum over episodes of clipped gradients, divided by their number, with noise of sensitivity 2 C."""

    described = "a clipped sum of gradients over few-shot episodes"

    def reach(self, federation: Federation, *, noise_multiplier: float, declared_patients: int) -> Reach:
        """A mean of clipped gradients."""
        privacy = federation.privacy
        noise = 2 * noise_multiplier * privacy.clip_norm / privacy.episodes(declared_patients)
        return Reach(privacy.clip_norm, noise)


question = EpisodeGradients()
