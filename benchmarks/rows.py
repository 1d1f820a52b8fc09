"""The rows of the tables: ways to learn together, each with the six trials among which it is tuned.

A round that asks twice costs twice, so such methods have half of the rounds: with privacy every row asks 20 times, and
its trials differ in how far a run goes and where it clips. Without privacy there are more rounds, since they are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from wardround.algorithms import ALGORITHMS

NONE = "none"
"""The column without privacy; the others are named by their epsilon."""
TRIALS = 6
STAND_INS = "stand-ins"
Kind = Literal["federated", "plain", "unadapted", "local", "central", "floor", "outside"]


@dataclass(frozen=True)
class Trial:
    """What a row is tried with.

    rounds, learning_rate: of the coordinator, whose momentum is 0.8. clip_norm, patients_per_episode: of `Privacy`.
    embedding: numbers in the model's embedding, 0 for none. settings: of the algorithm.
    """

    rounds: int = 20
    learning_rate: float = 1.0
    clip_norm: float = 1.0
    embedding: int = 0
    patients_per_episode: int = 20
    settings: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A way to learn.

    kind: "federated"; "plain": the same, but nothing holds it to what was shared while it is fine-tuned at home;
    "unadapted": the same, judged without a shot; "local": from the support alone; "central": from
    all patients as one hospital's, without privacy; "outside": the same by another library, which a study brings;
    "floor": the nearest mean of raw pixels.
    exact, private: trials without and with privacy. A row without private ones stands in the column without privacy.
    """

    name: str
    algorithm: str
    kind: Kind
    exact: tuple[Trial, ...] = (Trial(),)
    private: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        tuned = self.kind not in ("local", "floor")
        allowed = {0, 1, TRIALS, TRIALS // 2}
        assert not tuned or {len(self.exact), len(self.private)} <= allowed, f"{self.name} is tuned otherwise"


def rows(embeddings: tuple[int, int], *, rate: float = 20.0, apart: float = 2.0) -> tuple[Row, ...]:
    """All of them: those that are named here; all other methods, by their family alone; and methods of episodes with
    stand-ins for supports.

    embeddings: two sizes that methods which learn an embedding are tried with. rate: FedAvg's middle learning rate, by
    which those of all methods whose task is a hospital go; features of length 1 bear 20. apart: the factor between two
    of its rates.
    """

    def embedding(name: str, rates: tuple[float, float, float], **settings: float) -> Row:
        return _of_episodes(name, rates, {"embedding": embeddings}, {"embedding": embeddings}, **settings)

    def gradient(name: str, rates: tuple[float, float, float], **settings: float) -> Row:
        sizes = "patients_per_episode"
        return _of_episodes(name, rates, {sizes: (20, 60)}, {sizes: (5, 20)}, **settings)

    def hospital(name: str, answers: int, share: float = 1.0, **settings: float) -> Row:
        return _of_hospitals(name, answers, rate * share, apart, **settings)

    fedavg = hospital("fedavg", 1)
    named = (
        Row("raw pixels, nearest mean", "fedavg", "floor"),
        Row("local only", "fedavg", "local"),
        replace(fedavg, name="no adaptation", kind="unadapted"),
        replace(hospital("fedavg", 1, adapt_pull=0.0), name="FedAvg + plain fine-tune", kind="plain"),
        replace(fedavg, name="FedAvg + fine-tune"),
        replace(
            hospital("fedprox", 2, 0.2, local_steps=2, local_learning_rate=5.0, proximal=0.02),
            name="FedProx + fine-tune",
        ),
        hospital("scaffold", 2, 0.2, local_steps=2, local_learning_rate=5.0),
        hospital("reptile", 2, 0.2, local_steps=2, local_learning_rate=5.0),
        hospital("fomaml", 2, 0.4, local_steps=1, local_learning_rate=5.0),
        hospital("discriminant", 1),
        embedding("prototypical", (1.0, 5.0, 20.0)),
        embedding("ridge", (1.0, 5.0, 20.0), regularization=0.3),
        hospital("per-fedavg", 2, 0.4, local_steps=1, local_learning_rate=5.0),
        hospital("meta-sgd", 2, 0.4, local_steps=1, local_learning_rate=5.0),
        gradient("maml", (2.0, 6.0, 20.0), local_steps=2, local_learning_rate=3.0),
        embedding("anil", (0.3, 1.0, 3.0), local_steps=5, local_learning_rate=5.0),
        gradient("learned-optimizer", (0.3, 1.0, 3.0), local_steps=2, local_learning_rate=3.0),
        embedding("matching", (1.0, 5.0, 20.0)),
        embedding("relation", (0.3, 1.0, 3.0)),
        embedding("siamese", (0.3, 1.0, 3.0)),
        embedding("svm", (1.0, 5.0, 20.0), regularization=0.3),
        _of_own_models(rate, apart),
        _of_bodies(embeddings),
    )
    others = set(ALGORITHMS.built_in) - {row.algorithm for row in named}
    joined = (
        hospital(name, ALGORITHMS[name](name=name).answers_per_round)
        if ALGORITHMS[name].units[0] == "hospitals"
        else embedding(name, (1.0, 5.0, 20.0))
        for name in sorted(others)
    )
    every = (*named, *joined)
    return (
        *every,
        *(_with_stand_ins(row) for row in every if STAND_INS in ALGORITHMS[row.algorithm].units),
        Row("centralised, FedAvg's head", "fedavg", "central", _long(1.25 * rate)),
        Row("centralised, discriminant", "discriminant", "central", _long(1.25 * rate)),
    )


MAIN = (
    "raw pixels, nearest mean",
    "local only",
    "no adaptation",
    "FedAvg + plain fine-tune",
    "FedAvg + fine-tune",
    "FedProx + fine-tune",
    "reptile",
    "fomaml",
    "discriminant",
    "centroids",
    "prototypical",
    "ridge",
    "prototypical, stand-ins",
    "ridge, stand-ins",
    "centralised, FedAvg's head",
    "centralised, discriminant",
)
"""The rows that a first run is for."""


def halved(every: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same rows with half of their trials, where one takes long: each learning rate once, with the shorter run, the
    smaller clip norm or the first embedding.
    """
    return tuple(replace(row, exact=row.exact[::2], private=row.private[::2]) for row in every)


def _of_hospitals(name: str, answers: int, rate: float, apart: float, **settings: float) -> Row:
    """A method whose task is a hospital, which it asks so often in a round. rate: the middle one of those tried."""
    base, rates = Trial(20 // answers, settings=settings), (rate / apart, rate, rate * apart)
    return Row(
        name,
        name,
        "federated",
        exact=_crossed(base, learning_rate=rates, rounds=(60 // answers, 120 // answers)),
        private=_crossed(base, learning_rate=rates, clip_norm=(0.5, 1.2)),
    )


def _of_episodes(
    name: str, rates: tuple[float, float, float], exact: dict[str, Any], private: dict[str, Any], **settings: float
) -> Row:
    """A method whose task is an episode. rates: tried without privacy; with it, a tenth of them.

    Noise is that of an episode, however many patients it has, so that small ones, which are many, bear it better.
    """
    tenths = tuple(rate / 10 for rate in rates)
    return Row(
        name,
        name,
        "federated",
        exact=_crossed(Trial(60, patients_per_episode=40, settings=settings), learning_rate=rates, **exact),
        private=_crossed(Trial(20, patients_per_episode=10, settings=settings), learning_rate=tenths, **private),
    )


def _of_own_models(rate: float, apart: float) -> Row:
    """MR-MTL, whose rate is the hospitals' and not the coordinator's: FedAvg's, times what momentum makes of that."""

    def trials(base: Trial) -> tuple[Trial, ...]:
        return tuple(
            replace(base, settings={"local_learning_rate": 5 * each, "pull": share / (5 * each)})
            for each in (rate / apart, rate, rate * apart)
            for share in (0.5, 0.1)
        )

    return Row("mr-mtl", "mr-mtl", "federated", trials(Trial(60)), trials(Trial(20)))


def _of_bodies(embeddings: tuple[int, int]) -> Row:
    """FedRep: a body that is learned at heads of one's own."""
    axes = {"learning_rate": (1.0, 5.0, 20.0), "embedding": embeddings}
    return Row("fedrep", "fedrep", "federated", _crossed(Trial(60), **axes), _crossed(Trial(20), **axes))


def _with_stand_ins(row: Row) -> Row:
    """A method of episodes whose supports are drawn around class means, so that it bears FedAvg's noise. What it learns
    beside the class sums is tried at a tenth of the rates: on frozen features the start is good already.
    """
    of = row.exact[0]
    base = Trial(embedding=of.embedding, settings={**of.settings, "tasks": STAND_INS})
    rates = tuple(dict.fromkeys(trial.learning_rate / 10 for trial in row.exact))
    return Row(
        f"{row.name}, {STAND_INS}",
        row.algorithm,
        "federated",
        exact=_crossed(base, learning_rate=rates, rounds=(60, 120)),
        private=_crossed(base, learning_rate=rates, clip_norm=(0.5, 1.2)),
    )


def _long(rate: float) -> tuple[Trial, ...]:
    return _crossed(Trial(), learning_rate=(rate / 2, rate, rate * 2), rounds=(100, 300))


def _crossed(base: Trial, **axes: tuple[Any, ...]) -> tuple[Trial, ...]:
    """Every combination of the axes' values."""
    return tuple(replace(base, **dict(zip(axes, values, strict=True))) for values in product(*axes.values()))
