"""Every setting of an agreement, walked from the model itself, and small agreements that differ in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from wardround.config import Federation

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

NOT_COMPUTED_HERE: dict[str, str] = {
    "name": "a name",
    "model.encoder": "the name of a file, whose bytes encoder_sha256 pins and greatest_encoder_bytes bounds",
    "algorithm.adapt_steps": "at home, where nothing leaves",
    "algorithm.adapt_learning_rate": "at home, where nothing leaves",
    "algorithm.adapt_pull": "at home, where nothing leaves",
    "algorithm.adapt_prior": "at home, where nothing leaves",
    "outer.optimizer": "at the coordinator",
    "outer.learning_rate": "at the coordinator",
    "outer.momentum": "at the coordinator",
    "outer.beta1": "at the coordinator",
    "outer.beta2": "at the coordinator",
    "outer.tau": "at the coordinator",
    "outer.weighting": "at the coordinator",
    "outer.rule": "at the coordinator",
    "outer.liars": "at the coordinator",
    "rounds.quorum": "at the coordinator",
    "rounds.deadline_s": "at the coordinator",
}


def settings_of(model: type[BaseModel] = Federation, prefix: str = "") -> Iterator[str]:
    """Names of all settings, with their sections."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


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
