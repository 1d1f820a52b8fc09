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
from wardround.given import TOML_BYTES, given_text
from wardround.text import shown

# Far above any file of ours, and checked before a parser sees the text: tomllib takes the square of a key's parts, and
# recurses into brackets.
DEEPEST = 8  # brackets within brackets, and parts of a dotted key
MOST_VALUES = 100_000  # of 20,000 columns name, centre and spread
LONGEST_NUMBER = 40  # characters
MOST_ISSUES = 5  # that one error names
_STRINGS = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # a multi-line string may end in two quotes of its own
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\[^\n])*"'
    r"|'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
_DOTTED = re.compile(rf"(?:\.[^.\n=,\[\]{{}}]*){{{DEEPEST}}}")
_ONE_PART = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_PART = re.compile(_ONE_PART)
_HEADER = re.compile(rf"\s*\[+\s*({_ONE_PART}(?:\s*\.\s*{_ONE_PART})*)\s*\]")
_KEY = re.compile(rf"\s*({_ONE_PART}(?:\s*\.\s*{_ONE_PART})*)\s*=")
_LONG_NUMBER = re.compile(rf"(?<![\w.+-])[+-]?[0-9][\w.+-]{{{LONGEST_NUMBER}}}")


class Section(BaseModel):
    """A table of a TOML file: frozen, and no key that is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=Section)


def load(path: Path, model: type[M], *, context: object = None) -> M:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not fit the model; the message has
            the file's line wherever one can be told.
    """
    return loads(given_text(path, TOML_BYTES, do="name a TOML file"), model, name=str(path), context=context)


def loads(text: str, model: type[M], *, name: str = "<text>", context: object = None) -> M:
    """Parse TOML text. name: how the errors call it. context: the model's validators see it. Raises: ConfigError."""
    data = parsed(text, name=name)
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        issues = error.errors()
        told = [_explain(text, model, dict(issue), name) for issue in issues[:MOST_ISSUES]]
        more = [f"and {len(issues) - MOST_ISSUES} more"] if len(issues) > MOST_ISSUES else []
        raise ConfigError("; ".join(told + more)) from None


def parsed(text: str, *, name: str) -> dict[str, Any]:
    """TOML text as nested tables, within bounds on size, depth and numbers. Raises: ConfigError."""
    if excess := _excess(text):
        raise ConfigError(f"{name}: {excess}", do="take it out: no file of wardround has anything like it")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and Python's own of a number or a date
        raise ConfigError(f"{name}: not TOML: {shown(error)}", do="correct that line") from None


def _excess(text: str) -> str:
    """What of the text is out of all proportion, judged by its brackets, dots and digits outside of strings; or ""."""
    if len(text) > TOML_BYTES:
        return f"larger than {TOML_BYTES:,} characters"
    bare = _STRINGS.sub("_", text)
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", bare):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        if depth > DEEPEST:
            return f"more than {DEEPEST} brackets within each other"
    if _DOTTED.search(bare):
        return f"a key of more than {DEEPEST} parts"
    if _LONG_NUMBER.search(bare):
        return f"a number of more than {LONGEST_NUMBER} characters"
    if bare.count("=") + bare.count(",") > MOST_VALUES:
        return f"more than {MOST_VALUES:,} values"
    return ""


def _explain(text: str, model: type[BaseModel], issue: Mapping[str, Any], name: str) -> str:
    """One sentence for one pydantic error."""
    location = [str(part) for part in issue["loc"]]
    key = shown(".".join(location), 100) or "the file"
    line = line_of(text, location)
    where = f"{name}, line {line}" if line else name
    if issue["type"] == "extra_forbidden":
        valid = _keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1][:100], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"{where}: unknown key {key!r}; {hint}"
    if issue["type"] == "missing":
        return f"{where}: missing key {key!r}"
    message = shown(str(issue["msg"]).removeprefix("Value error, "), 300)
    given = issue.get("input")
    told = f" (given: {shown(repr(given), 80)})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {key}: {message}{told}"


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
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            path = table = _parts_of(header.group(1))
        elif key := _KEY.match(line):
            path = table + _parts_of(key.group(1))
        else:
            continue
        if location[: len(path)] == path and (nearest is None or len(path) > nearest[0]):
            nearest = (len(path), number)
    return nearest[1] if nearest else None


def _parts_of(path: str) -> list[str]:
    """Of a dotted key, without quotation marks."""
    return [_unquoted(part) for part in _PART.findall(path)]


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        return str(tomllib.loads(f"key = {part}")["key"])
    except ValueError:  # a line of a longer text, which only looks like a key
        return part
