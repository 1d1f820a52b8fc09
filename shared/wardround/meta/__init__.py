"""What the meta-learners share (`wardround.algorithms`), and the coordinator's outer optimizers."""

from __future__ import annotations

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.meta.base import AdaptsBy, Algorithm, Fitted
from wardround.models.base import Model

__all__ = ["AdaptsBy", "Algorithm", "Fitted", "algorithm_named", "extended"]


def algorithm_named(name: str) -> Algorithm:
    """The meta-learner that `algorithm.name` of federation.toml means. Raises: ConfigError, for any other name."""
    return ALGORITHMS[name]


def extended(model: Model, federation: Federation) -> Model:
    """The model with what the federation's algorithm learns beside it. Raises: ConfigError, when they do not fit."""
    return algorithm_named(federation.algorithm.name).extended(model, federation.algorithm)
