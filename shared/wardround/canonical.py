"""One text for one agreement, whose SHA-256 is the digest under which hospitals approve it. It survives versions.

* Every value that was chosen is in it, so that two meanings never share a text; what belongs to algorithms, rules and
  optimizers that were not chosen is not.
* A setting that is added later, marked `Later(value)`, is left out where it has that value.
* Where the meaning of a text would change all the same, SCHEMA goes up, and only for agreements that this concerns.
* An agreement that version 0.1 could already make has the text that 0.1 gave it: approvals, ledgers and runs of then go
  on. That text held the settings of all algorithms; those that the chosen one does not use are filled in as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from wardround.settings import Later

if TYPE_CHECKING:
    from wardround.config import Federation

SCHEMA = 2
# What 0.1 wrote whatever was chosen, with its defaults, and which of it each part uses. Frozen: it is history.
_ALGORITHM_1: dict[str, Any] = {
    "local_steps": 1,
    "local_learning_rate": 1.0,
    "local_batches": 1,
    "proximal": 0.1,
    "regularization": 1.0,
    "adapt_steps": 100,
    "adapt_learning_rate": 1.0,
    "adapt_pull": 1.0,
    "adapt_prior": 2.0,
}
_OUTER_1: dict[str, Any] = {"liars": 0.25, "momentum": 0.8, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
_TUNED = {"local_steps", "local_learning_rate", "adapt_steps", "adapt_learning_rate", "adapt_pull"}
_EMBEDDED = {"local_learning_rate", "adapt_prior"}
_USED_1: dict[str, set[str]] = {
    **dict.fromkeys(("fedavg", "per-fedavg", "discriminant", "fomaml", "meta-sgd", "maml", "anil"), _TUNED),
    "fedprox": _TUNED | {"proximal"},
    "reptile": _TUNED | {"local_batches"},
    "learned-optimizer": {"local_steps", "local_learning_rate"},
    **dict.fromkeys(("prototypical", "matching", "relation", "siamese"), _EMBEDDED),
    **dict.fromkeys(("ridge", "svm"), _EMBEDDED | {"regularization"}),
}
_ADAPTIVE, _ROBUST = {"beta1", "beta2", "tau"}, {"liars"}
_OPTIMIZERS_1 = {"sgd": {"momentum"}, "adam": _ADAPTIVE, "yogi": _ADAPTIVE}
_RULES_1: dict[str, set[str]] = {
    "mean": set(),
    **dict.fromkeys(("trimmed-mean", "median", "geometric-median", "centred-clipping"), _ROBUST),
}

Tables = dict[str, dict[str, Any]]


def canonical(federation: Federation, unused: Tables) -> str:
    """JSON with sorted keys. unused: see `read_as_approved`."""
    values = {name: _values(getattr(federation, name)) for name in type(federation).model_fields}
    values = {name: value for name, value in values.items() if name not in _left_out(federation)}
    if _of_schema_1(federation):
        values["algorithm"] = _ALGORITHM_1 | unused.get("algorithm", {}) | values["algorithm"]
        values["outer"] = _OUTER_1 | unused.get("outer", {}) | values["outer"]
    else:
        values["schema"] = SCHEMA
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def read_as_approved(values: Mapping[str, Any]) -> tuple[dict[str, Any], Tables]:
    """An agreement as 0.1 may have approved it, or a canonical text -> its tables, and what of them means nothing.

    0.1 took every setting with every algorithm. What the chosen parts do not have is taken out, and kept for the digest
    where it was not 0.1's default. Raises: ValidationError, for a value that 0.1 would not have taken.
    """
    kept, unused = dict(values), {}
    if kept.pop("schema", SCHEMA) != SCHEMA:
        raise ValueError("the agreement is of a later version of wardround")
    for table, known, used in (
        ("algorithm", _ALGORITHM_1, _USED_1.get(_name(values, "algorithm", "name", "reptile"))),
        ("outer", _OUTER_1, _outer_used(values)),
    ):
        given = kept.get(table)
        if isinstance(given, Mapping) and used is not None:
            idle = known.keys() & given.keys() - used
            kept[table] = {key: value for key, value in given.items() if key not in idle}
            read = {key: TypeAdapter(type(known[key])).validate_python(given[key]) for key in idle}
            unused[table] = {key: value for key, value in read.items() if value != known[key]}
    return kept, {table: idle for table, idle in unused.items() if idle}


def _of_schema_1(federation: Federation) -> bool:
    """Whether its parts were there in 0.1, each with the same ones of the settings of then."""
    algorithm, rule, optimizer = federation.algorithm, federation.outer.rule, federation.outer.optimizer
    return all(
        used.get(part.name) == known.keys() & type(part).model_fields.keys()
        for part, used, known in (
            (algorithm, _USED_1, _ALGORITHM_1),
            (rule, _RULES_1, _OUTER_1),
            (optimizer, _OPTIMIZERS_1, _OUTER_1),
        )
    )


def _outer_used(values: Mapping[str, Any]) -> set[str] | None:
    rule = _RULES_1.get(_name(values, "outer", "rule", "geometric-median"))
    optimizer = _OPTIMIZERS_1.get(_name(values, "outer", "optimizer", "sgd"))
    return None if rule is None or optimizer is None else rule | optimizer


def _name(values: Mapping[str, Any], table: str, key: str, default: str) -> str:
    given = values.get(table)
    return str(given.get(key, default)) if isinstance(given, Mapping) else default


def _values(value: Any) -> Any:
    """Of a section, its values as JSON has them, without those that are left out."""
    if not isinstance(value, BaseModel):
        return value
    parts = [part for part in dict(value).values() if isinstance(part, BaseModel)]
    without = _left_out(value).union(*map(_left_out, parts))
    return {key: each for key, each in value.model_dump(mode="json").items() if key not in without}


def _left_out(section: BaseModel) -> set[str]:
    return {
        name
        for name, field in type(section).model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Later) and getattr(section, name) == mark.value
    }
