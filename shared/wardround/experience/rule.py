"""What to agree on where nothing is known of tasks like it: FedAvg, by one rule that looks at no patient.

It is the rule by which the leaderboard sets FedAvg (benchmarks/public_rule.py says why its numbers are what they are).
On 31 tasks of 11 data sets at epsilon 8 it was 1.6 +- 2.3 points ahead of what `wardround coordinator init` writes
(docs/benchmarks.md, "What `recommend` is worth").
"""

from __future__ import annotations

from wardround.experience.row import Described, Settings

PATIENTS_FOR_A_COMPONENT = 250
"""Times epsilon."""
FEWEST_COMPONENTS = 16
MOST_COMPONENTS = 64
"""Of the built-in encoder."""
NOT_PRIVATE = 1000.0  # an epsilon that costs nothing
_DENSE = ("mask", "points")


def components(most: int, patients: int, epsilon: float, *, of_sums: bool = False) -> int:
    """How many of an encoder's features to use, for so many patients at all hospitals together.

    of_sums: a method that adds up each class's features has as much noise in each, and takes a third.
    """
    wanted = int(patients * epsilon / PATIENTS_FOR_A_COMPONENT / (3 if of_sums else 1)) // 8 * 8
    return min(most, max(FEWEST_COMPONENTS, wanted))


def by_rule(task: Described) -> Settings:
    """FedAvg's settings, from the kind of task, how many patients the hospitals declare, and epsilon."""
    tabular, dense, private = task.kind == "table", task.labels in _DENSE, task.epsilon is not None
    rate = (20.0 if private else 10.0) if dense else 5.0 if tabular else 20.0
    settings: dict[str, bool | float | str] = {
        "algorithm.name": "fedavg",
        "outer.learning_rate": rate,
        # As long as a patient's gradient: 1 at most where features have length 1, less where it is a mean over cells.
        "privacy.clip_norm": 0.05 if dense else 1.0,
        "rounds.rounds": 20.0 if private else 60.0,
        "model.family": "logistic" if tabular else "encoder-head",
    }
    if not tabular:
        few = components(MOST_COMPONENTS, sum(task.hospitals), task.epsilon or NOT_PRIVATE)
        settings |= {"model.features": float(few), "model.embedding": 0.0}
    return settings
