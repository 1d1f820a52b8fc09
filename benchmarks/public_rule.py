"""Settings that no patient was looked at for: one rule for each family of methods, from what everybody may know.

The rule knows the family (whether a task is a hospital or an episode), what the features are, how many patients the
hospitals declare together, and epsilon. Nothing is tried out, so nothing has to be paid for in epsilon.

* Learning rates, and what a method sets beside them: the middle trial of `rows.rows`. Its steps at home are for
  features of length 1, and are shortened on longer ones as FedAvg's rate is: a gradient grows with that length.
* Rounds: with privacy every method asks a hospital 20 times; a method that asks twice a round has half of the rounds.
  Without privacy, where a round costs nothing, it asks 60 times.
* Clip norm: as long as a patient's gradient. A head on features of length 1 has gradients of length 1 at most when it
  starts, so 1; a patient of outlines is a mean over cells, most of which agree, so 0.05.
* Components of an encoder: one for each 250 patients times epsilon, 16 at least. Noise grows with the square root of
  their number; in the tables of docs/benchmarks.md 96 components of 7,470 lesions pay at epsilon 8, and fewer at 3.
* Methods that add up classes (`centroids`, `fedrep`, and all with stand-ins) have a third of that: a class's mean has
  as much noise in each component, and the later ones hold less.
* At home every method adapts by its default. On hearts and breast cancer, choosing the pull by cross-validation on the
  support, at ten times the price, moved local training by less than a point.
* An embedding is a third of the components of images (32), and 8 numbers for tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rows import STAND_INS, TRIALS, Row, Trial, rows

_UNIT_RATE = 20.0  # FedAvg's on features of length 1
_MIDDLE = TRIALS // 3
"""Of six trials, three learning rates with two of something else each: the first of the middle rate."""


@dataclass(frozen=True)
class Features:
    """What a head sees. rate: FedAvg's learning rate on it. private_rate: how much faster where noise is in its steps.
    clip_norm: as `Trial`. embedding: numbers, for methods that learn one. cut: whether its first components are worth
    most.
    """

    rate: float
    embedding: int
    clip_norm: float = 1.0
    private_rate: float = 1.0
    cut: bool = False


IMAGES = Features(rate=20.0, embedding=32, cut=True)
TABLES = Features(rate=5.0, embedding=8)
CELLS = Features(rate=10.0, embedding=16, clip_norm=0.05, private_rate=2.0)


def by_rule(features: Features) -> tuple[Row, ...]:
    """Every row of `rows.rows`, each with one trial without privacy and one with it."""
    return tuple(_of(row, features) for row in rows((features.embedding, 2 * features.embedding), rate=features.rate))


def adds_up_classes(row: Row) -> bool:
    """Whether a row's method learns from sums of each class's features."""
    of_stand_ins = any(each.settings.get("tasks") == STAND_INS for each in row.exact)
    return of_stand_ins or row.algorithm in ("centroids", "fedrep")


def _of(row: Row, features: Features) -> Row:
    if row.kind in ("local", "floor"):
        return row
    exact = tuple(_at_home(each, features) for each in _middle(row.exact))
    private = tuple(_with_noise(_at_home(each, features), features) for each in _middle(row.private))
    return replace(row, exact=exact, private=private)


def _middle(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    return trials[_MIDDLE : _MIDDLE + 1]


def _at_home(trial: Trial, features: Features) -> Trial:
    shorter = features.rate / _UNIT_RATE
    # MR-MTL, whose pull goes with its rate, has FedAvg's rate there, which is as short already.
    settings = {
        name: float(value) * shorter if name == "local_learning_rate" and "pull" not in trial.settings else value
        for name, value in trial.settings.items()
    }
    return replace(trial, settings=settings)


def _with_noise(trial: Trial, features: Features) -> Trial:
    rate = trial.learning_rate * features.private_rate
    return replace(trial, clip_norm=features.clip_norm, learning_rate=rate)
