"""Parts of an agreement by their names, with settings."""

from __future__ import annotations

from typing import Any

from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.config import Outer
from wardround.settings import Unit
from wardround.settings import chosen as part

UNITS: dict[str, tuple[Unit, ...]] = {name: ALGORITHMS[name].units for name in ALGORITHMS.built_in}
"""What one task may be, by algorithm."""


def algorithm(name: str = "reptile", /, **settings: Any) -> Algorithm:
    """An algorithm with these settings. Raises: ValidationError, for one that it does not have."""
    return part(ALGORITHMS, {"name": name, **settings}, default=name)


def fitting(name: str, /, **settings: Any) -> Algorithm:
    """An algorithm with those of these settings that it has."""
    return algorithm(name, **{key: value for key, value in settings.items() if key in ALGORITHMS[name].model_fields})


def outer(**table: Any) -> Outer:
    """The table [outer]."""
    return Outer.model_validate(table)


EACH_QUESTION: tuple[str, ...] = tuple(
    {
        (algorithm(name).question, ALGORITHMS[name].closes_with_means): name for name in reversed(ALGORITHMS.built_in)
    }.values()
)
"""The first algorithm of each question, with and without the class means at the end."""
