"""Cohorts for tests of algorithms: what is not asked in a test must not be asked at all."""

from __future__ import annotations

from torch import Tensor

from wardround.questions import ClassMeans, Embed, EpisodeLoss, Loss, Predict, Statistics


class SilentCohort:
    """Answers nothing; a test overrides the question that it is about."""

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        raise AssertionError("not asked here")

    def episode_gradient(self, loss: EpisodeLoss, theta: Tensor) -> Tensor:
        raise AssertionError("not asked here")

    def class_means(self, embed: Embed) -> ClassMeans:
        raise AssertionError("not asked here")

    def statistics(self) -> Statistics:
        raise AssertionError("not asked here")

    def confusion(self, predict: Predict) -> Tensor:
        raise AssertionError("not asked here")
