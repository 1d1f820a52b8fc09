"""Settings of parts that are one file each (`wardround.plugins`): a part is chosen by its name, and brings its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from wardround.errors import ConfigError
from wardround.plugins import Kind
from wardround.toml import Section

Unit = Literal["hospitals", "episodes", "stand-ins"]


class Part(Section):
    """A part that an agreement chooses by its name; its other fields are the settings that it has, and no others."""

    name: str


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Limit:
    """Mark of a setting: a hospital's policy bounds it, by its `least_NAME`, its `greatest_NAME`, or both."""

    name: str


@dataclass(frozen=True)
class AtHome:
    """Mark of a setting that is used at home only, where nothing leaves."""


@dataclass(frozen=True)
class Later:
    """Mark of a setting that an agreement did not have at first: what all agreements meant until then.

    The digest leaves the setting out where it has this value, so that older approvals stay valid. It is written beside
    the default, not taken from it: a default that changes changes the digests of those whom it changes.
    """

    value: object


# Bounds are generous, and such that nothing within them overflows or takes for ever; a hospital's policy is narrower.
Rate = Annotated[float, Field(ge=1e-6, le=1e4)]
Strength = Annotated[float, Field(ge=0, le=1e6)]
LocalSteps = Annotated[int, Field(ge=1, le=10_000), Limit("local_steps")]
LocalRate = Annotated[float, Field(ge=1e-6, le=1e4), Limit("local_learning_rate")]
Regularization = Annotated[float, Field(ge=1e-6, le=1e6), Limit("regularization")]
StandIns = Annotated[int, Field(ge=1, le=10_000), Limit("patients_per_episode"), Later(5)]
HomeSteps = Annotated[int, Field(ge=0, le=10_000), AtHome()]
HomeRate = Annotated[float, Field(ge=1e-6, le=1e4), AtHome()]
HomeStrength = Annotated[float, Field(ge=0, le=1e6), AtHome()]


def part_class(kind: Kind[type[P]], name: object, key: str = "name") -> type[P]:
    """The class of that name. Raises: ValidationError, at `key`."""
    try:
        return kind[str(name)]
    except ConfigError as error:
        raise invalid(kind.what, key, name, str(error)) from None


def chosen(kind: Kind[type[P]], values: Mapping[str, Any], default: str) -> P:
    """The part that a table of a TOML file means. Raises: ValidationError, which names each key that is wrong."""
    values = {"name": default, **values}
    cls = part_class(kind, values["name"])
    for key in sorted(values.keys() - cls.model_fields.keys()):
        raise invalid(kind.what, key, values[key], f"{values['name']} has no such setting; it has {own_settings(cls)}")
    return cls.model_validate(values)


def own_settings(*classes: type[Part]) -> str:
    """Names of the parts' settings, for an error."""
    return ", ".join(name for cls in classes for name in cls.model_fields if name != "name") or "none"


def invalid(title: str, key: str | tuple[str, ...], value: object, why: str) -> ValidationError:
    """An error about one key of a table, or about what lies below it."""
    error = PydanticCustomError("setting", "{why}", {"why": why})
    place = (key,) if isinstance(key, str) else key
    return ValidationError.from_exception_data(title, [InitErrorDetails(type=error, loc=place, input=value)])


def limited(part: Part) -> dict[str, Any]:
    """The settings that a hospital's policy bounds, by the names of their limits."""
    return {
        mark.name: getattr(part, name)
        for name, field in type(part).model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Limit)
    }


def computed(part: Part) -> dict[str, Any]:
    """The settings that decide what a hospital computes in a round, and not at home."""
    fields = type(part).model_fields
    return {
        name: value for name, value in part if name not in ("name", "tasks") and AtHome() not in fields[name].metadata
    }


def unbounded(cls: type[Part], limits: Collection[str]) -> list[str]:
    """The settings of a part that decide what a hospital computes, and that nothing at the hospital bounds.

    A setting is bounded by a limit of the policy, whose names begin with "least_" and "greatest_", or by its own type:
    a number between two ends, a word of a list, yes or no.
    """
    schema = cls.model_json_schema()["properties"]
    return [
        name
        for name, field in cls.model_fields.items()
        if name != "name"
        and AtHome() not in field.metadata
        and not any(isinstance(mark, Limit) and f"greatest_{mark.name}" in limits for mark in field.metadata)
        and not _is_bounded(schema[name])
    ]


def _is_bounded(schema: Mapping[str, Any]) -> bool:
    if schema.get("type") in ("integer", "number"):
        return bool({"minimum", "exclusiveMinimum"} & schema.keys() and {"maximum", "exclusiveMaximum"} & schema.keys())
    return (
        "enum" in schema
        or "const" in schema
        or schema.get("type") in ("boolean", "null")
        or ("anyOf" in schema and all(map(_is_bounded, schema["anyOf"])))
    )
