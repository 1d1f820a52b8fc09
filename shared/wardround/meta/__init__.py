"""The meta-learners, one file each with both halves, and the coordinator's outer optimizers."""

from __future__ import annotations

from wardround.errors import ConfigError
from wardround.meta.base import Algorithm
from wardround.meta.fedavg import FedAvg
from wardround.meta.fomaml import Fomaml
from wardround.meta.maml import Maml
from wardround.meta.reptile import Reptile

__all__ = ["Algorithm", "algorithm_named"]

_ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in (Reptile(), Fomaml(), Maml(), FedAvg())}


def algorithm_named(name: str) -> Algorithm:
    """The meta-learner that `algorithm.name` of federation.toml means. Raises: ConfigError, for any other name."""
    try:
        return _ALGORITHMS[name]
    except KeyError:
        raise ConfigError(
            f"unknown algorithm {name!r}",
            allowed=", ".join(sorted(_ALGORITHMS)),
            do="correct algorithm.name in federation.toml",
        ) from None
