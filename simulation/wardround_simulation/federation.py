"""The federation that `wardround simulate` runs when it is given none, and how a federation is written as TOML."""

from __future__ import annotations

import json
from typing import Any

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.optimizers import OPTIMIZERS
from wardround.plugins import Kind
from wardround.rules import RULES
from wardround.settings import Part
from wardround.toml import loads
from wardround_simulation.phantoms import DEFAULT_TASK, STUDIES, TASKS

EMBEDDED = """\
name = "demo"

[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
image_size_px = 64

[model]
family = "encoder-head"
features = 32

[algorithm]
name = "reptile"
local_steps = 1
local_learning_rate = 1.0

[outer]
optimizer = "sgd"
learning_rate = 10.0
momentum = 0.8

[privacy]
epsilon = 8.0
clip_norm = 1.0

[rounds]
rounds = 40
quorum = 2
deadline_s = 120.0
"""

_PARTS: dict[str, dict[str, Kind[type[Part]]]] = {
    "algorithm": {"name": ALGORITHMS},
    "outer": {"rule": RULES, "optimizer": OPTIMIZERS},
}
CELLS: dict[str, dict[str, Any]] = {
    "model": {"features": 64},
    "privacy": {"clip_norm": 0.05},
    "outer": {"learning_rate": 50.0},
}
"""For tasks of cells: the mean gradient of many cells is short, so that a clip norm of 1 would be all noise."""
EPISODES_RATE = 0.03
"""The outer learning rate for methods of episodes: a hospital has few episodes, so their noise is large."""


def embedded(task: str = DEFAULT_TASK) -> Federation:
    """The default federation, for one of the synthetic hospitals' label columns. Raises: ConfigError."""
    if task not in (*TASKS, *STUDIES):
        raise ConfigError(f"no synthetic hospital has labels for {task!r}", allowed=", ".join((*TASKS, *STUDIES)))
    federation = loads(EMBEDDED, Federation, name="the embedded federation")
    if task in STUDIES:
        chosen = changed(federation, task={"label_column": task, **STUDIES[task]})
        return changed(chosen, **CELLS) if chosen.task.dense else chosen
    return changed(federation, task={"label_column": task, "classes": list(TASKS[task])})


def with_algorithm(federation: Federation, name: str) -> Federation:
    """The federation with another algorithm, and an embedding where that needs one. Raises: ConfigError."""
    federation = changed(federation, algorithm={"name": name})
    if federation.algorithm.question == "episode_gradient":
        federation = changed(federation, outer={"learning_rate": EPISODES_RATE})
    model = federation.model
    if federation.algorithm.needs_embedding and model.family == "encoder-head" and not model.embedding:
        return changed(federation, model={"embedding": model.features})
    return federation


def changed(federation: Federation, **sections: dict[str, Any]) -> Federation:
    """The federation with some keys of some sections replaced, checked again.

    With another algorithm, rule or optimizer, those settings stay that it has as well. Raises: ConfigError.
    """
    data = federation.model_dump(mode="json")
    for section, values in sections.items():
        table = data[section]
        for key, kind in _PARTS.get(section, {}).items():
            if key in values and values[key] != table[key]:
                gone = kind[table[key]].model_fields.keys() - (kind[values[key]].model_fields.keys() - {"tasks"})
                table = {name: value for name, value in table.items() if name not in gone}
        data[section] = {**table, **values}
    return loads(_dump(data), Federation, name="the federation with the options' values")


def to_toml(federation: Federation) -> str:
    """The federation as TOML text, every value written out; reading it again gives the same federation."""
    return _dump(federation.model_dump(mode="json"))


def _dump(data: dict[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for section, values in data.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """JSON's spelling of what is no table is TOML's too, but for DEL, which TOML wants escaped."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
