"""Every setting of an agreement, walked from the model itself, and small agreements that differ in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.config import Federation, Outer
from wardround.optimizers import OPTIMIZERS
from wardround.plugins import Kind
from wardround.rules import RULES
from wardround.settings import Part

IMAGES: dict[str, Any] = {
    "name": "f",
    "task": {"label_column": "ill", "classes": ["no", "yes"], "image_size_px": 32},
    "model": {"features": 4, "embedding": 2},
}
TABLE: dict[str, Any] = {
    "name": "f",
    "task": {
        "label_column": "ill",
        "classes": ["no", "yes"],
        "kind": "table",
        "features": ["age", "pressure"],
        "centre": [55.0, 120.0],
        "spread": [15.0, 20.0],
    },
    "model": {"family": "mlp", "width": 3},
}

SURVIVAL: dict[str, Any] = {
    **TABLE,
    "task": {
        **TABLE["task"],
        "labels": "survival",
        "label_column": "days",
        "event_column": "dead",
        "classes": ["1 year", "2 years"],
        "ends": [365.0, 730.0],
    },
}
VOLUME: dict[str, Any] = {**IMAGES, "task": {**IMAGES["task"], "kind": "volume", "depth": 8}}
CELLS: dict[str, Any] = {**IMAGES, "task": {**IMAGES["task"], "labels": "mask", "cell_px": 4, "cells_per_image": 9}}
BLOOD = {"name": "blood", "kind": "table", "features": ["a", "b", "c"], "centre": [0, -1e5, 0], "spread": [1, 1e5, 1]}
INPUTS: dict[str, Any] = {
    **IMAGES,
    "task": {**IMAGES["task"], "kind": "inputs", "inputs": [{"name": "front", "image_size_px": 40}, BLOOD]},
}


def own_settings(kind: Kind[type[Part]]) -> list[str]:
    """Names of all settings of its parts."""
    return list(dict.fromkeys(name for part in kind.built_in for name in kind[part].model_fields if name != "name"))


NOT_COMPUTED_HERE: dict[str, str] = {
    "name": "a name",
    "model.encoder": "the name of a file, whose bytes encoder_sha256 pins and greatest_encoder_bytes bounds",
    "task.spacing_mm": "where the pixels of a volume come from: how many there are is image_size_px and depth",
    "algorithm.adapt_steps": "at home, where nothing leaves",
    "algorithm.adapt_learning_rate": "at home, where nothing leaves",
    "algorithm.adapt_pull": "at home, where nothing leaves",
    "algorithm.draws": "at home, where nothing leaves",
    "algorithm.adapt_prior": "at home, where nothing leaves",
    **dict.fromkeys(
        (
            *(f"outer.{name}" for name in ("rule", "optimizer", "weighting")),
            *(f"outer.{name}" for kind in (RULES, OPTIMIZERS) for name in own_settings(kind)),
        ),
        "at the coordinator",
    ),
    "task.units": "by the intake, before any round; a cohort that measures something else does not fit",
    "task.window": "by the intake, before any round; a cohort that shows another range does not fit",
    "rounds.quorum": "at the coordinator",
    "rounds.deadline_s": "at the coordinator",
}


def settings_of(model: type[BaseModel] = Federation, prefix: str = "") -> Iterator[str]:
    """Names of all settings, with their sections; of parts, those of all that come with wardround."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind is Algorithm:
            yield from (f"{prefix}{name}.{each}" for each in ("name", *own_settings(ALGORITHMS)))
        elif kind is Outer:
            yield from (each for each in NOT_COMPUTED_HERE if each.startswith("outer."))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def able(base: dict[str, Any], setting: str) -> dict[str, Any]:
    """The agreement with an algorithm that has this setting: its own, or else the first one."""
    section, _, name = setting.partition(".")
    own = base.get("algorithm", {}).get("name", "reptile")
    if section != "algorithm" or name in ALGORITHMS[own].model_fields:
        return base
    able = next(k for k in ALGORITHMS.built_in if name in ALGORITHMS[k].model_fields)
    used = {"tasks": "stand-ins"} if name == "stand_ins" else {}  # elsewhere it decides nothing
    return {**base, "algorithm": {"name": able, **used}}


def with_setting(base: dict[str, Any], setting: str, value: object) -> dict[str, Any]:
    """The agreement with one setting changed."""
    *section, name = setting.split(".")
    if not section:
        return {**base, name: value}
    return {**base, section[0]: {**base.get(section[0], {}), name: value}}


def agreed(base: dict[str, Any], **sections: dict[str, Any]) -> Federation:
    """Base, with more settings in its sections."""
    for section, values in sections.items():
        for name, value in values.items():
            base = with_setting(base, f"{section}.{name}", value)
    return Federation.model_validate(base)
