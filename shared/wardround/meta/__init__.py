"""The meta-learners, one file each with both halves, and the coordinator's outer optimizers."""

from __future__ import annotations

from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.meta.anil import Anil
from wardround.meta.base import AdaptsBy, Algorithm, Fitted
from wardround.meta.discriminant import Discriminant
from wardround.meta.fedavg import FedAvg
from wardround.meta.fedprox import FedProx
from wardround.meta.fomaml import Fomaml
from wardround.meta.learned_optimizer import LearnedOptimizer
from wardround.meta.maml import Maml
from wardround.meta.matching import Matching
from wardround.meta.meta_sgd import MetaSgd
from wardround.meta.per_fedavg import PerFedAvg
from wardround.meta.prototypical import Prototypical
from wardround.meta.relation import Relation
from wardround.meta.reptile import Reptile
from wardround.meta.ridge import Ridge
from wardround.meta.siamese import Siamese
from wardround.meta.svm import Svm
from wardround.models.base import Model

__all__ = ["AdaptsBy", "Algorithm", "Fitted", "algorithm_named", "extended"]

_ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        FedAvg(),
        FedProx(),
        PerFedAvg(),
        Discriminant(),
        Reptile(),
        Fomaml(),
        MetaSgd(),
        Maml(),
        Anil(),
        Prototypical(),
        Matching(),
        Relation(),
        Siamese(),
        Ridge(),
        Svm(),
        LearnedOptimizer(),
    )
}


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


def extended(model: Model, federation: Federation) -> Model:
    """The model with what the federation's algorithm learns beside it. Raises: ConfigError, when they do not fit."""
    return algorithm_named(federation.algorithm.name).extended(model, federation.algorithm)
