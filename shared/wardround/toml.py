"""TOML files as frozen pydantic models, with errors that name the key, the nearest valid one and the line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from wardround.errors import ConfigError


class Section(BaseModel):
    """A table of a TOML file: frozen, and no key that is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=Section)


def load(path: Path, model: type[M]) -> M:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not fit the model; the message has
            the file's line wherever one can be told.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", do="create it, or name another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", do="name a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read (it is not UTF-8 text)", do="name a TOML file") from None
    return loads(text, model, name=str(path))


def loads(text: str, model: type[M], *, name: str = "<text>") -> M:
    """Parse TOML text; `name` is how the errors call it. Raises: ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}", do="correct that line") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(text, model, dict(issue), name) for issue in error.errors())) from None


def _explain(text: str, model: type[BaseModel], issue: Mapping[str, Any], name: str) -> str:
    """One sentence for one pydantic error."""
    location = [str(part) for part in issue["loc"]]
    key = ".".join(location) or "the file"
    line = line_of(text, location)
    where = f"{name}, line {line}" if line else name
    if issue["type"] == "extra_forbidden":
        valid = _keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{where}: unknown key {key!r}; {hint}"
    if issue["type"] == "missing":
        return f"{where}: missing key {key!r}"
    message = str(issue["msg"]).removeprefix("Value error, ")
    given = issue.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {key}: {message}{shown}"


def _keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The valid keys of the table at `location` below `model`."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        tables = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return list(model.model_fields)


def line_of(text: str, location: list[str]) -> int | None:
    """The 1-based line on which a key, or failing that its table, is written; None where it cannot be told."""
    table: list[str] = []
    nearest: tuple[int, int] | None = None  # (how much of the location it matches, line)
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            table = [part.strip().strip("\"'") for part in header.group(1).split(".")]
            path = table
        else:
            key = re.match(r"\s*([A-Za-z0-9_\-.\"']+)\s*=", line)
            if not key:
                continue
            path = table + [part.strip("\"'") for part in key.group(1).split(".")]
        if location[: len(path)] == path and (nearest is None or len(path) > nearest[0]):
            nearest = (len(path), number)
    return nearest[1] if nearest else None
