"""Gradients of whole samples of patients: a task of the algorithm is a hospital."""

from __future__ import annotations

from wardround.config import Federation
from wardround.questions._training import Training
from wardround.reach import Reach


class Gradient(Training):
    """A sum over a sample of patients of clipped gradients, divided by the patients expected in it."""

    described = "a clipped sum of gradients over sampled patients"

    def reach(self, federation: Federation, *, noise_multiplier: float, declared_patients: int) -> Reach:
        """Of a sample."""
        privacy = federation.privacy
        expected = privacy.expected_patients(declared_patients)
        return Reach.of_sample(privacy.clip_norm, noise_multiplier, declared=declared_patients, expected=expected)


question = Gradient()
