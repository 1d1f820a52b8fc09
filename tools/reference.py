"""The reference of the documentation, from the code: a hook of mkdocs that adds pages which no file holds.

Commands come from the program's own help, settings from the pydantic models, parts from the folders they lie in.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wardround import cli
from wardround.algorithms import ALGORITHMS
from wardround.command import Commands
from wardround.config import Federation
from wardround.errors import EXIT_CODES
from wardround.labels import LABEL_KINDS
from wardround.optimizers import OPTIMIZERS
from wardround.plugins import Kind
from wardround.rules import RULES
from wardround_client.config import HospitalConfig
from wardround_client.intake.source import SOURCES
from wardround_server.home import CoordinatorConfig
from wardround_server.sinks import SINKS

API = {
    "What an algorithm may ask": "wardround.questions",
    "Algorithms": "wardround.algorithms",
    "Aggregation rules": "wardround.rules",
    "Outer optimizers": "wardround.optimizers",
    "Label kinds": "wardround.labels",
    "Parts of other packages": "wardround.plugins",
    "The agreement": "wardround.config",
    "Errors": "wardround.errors",
}
PARTS: dict[str, Kind[Any]] = {
    "Algorithms": ALGORITHMS,
    "Aggregation rules": RULES,
    "Outer optimizers": OPTIMIZERS,
    "Label kinds": LABEL_KINDS,
    "Sources": SOURCES,
    "Event sinks": SINKS,
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least",
           "max_length": "length at most"}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages. Called by mkdocs."""
    for name, text in (("commands", commands()), ("settings", settings()), ("parts", parts()), ("api", api())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands() -> str:
    """Every command with its help, as a person sees it."""
    root = cli.command()
    lines = ["# Commands", "", f"```text\n{_help(root, 'wardround')}\n```", "", "## Exit codes", ""]
    lines += ["| code | meaning |", "|---|---|", *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())]
    context = click.Context(root, info_name="wardround")
    for word in root.list_commands(context):  # type: ignore[attr-defined]
        found = root.get_command(context, word)  # type: ignore[attr-defined]
        lines += ["", f"## wardround {word}", "", f"```text\n{_help(found, f'wardround {word}')}\n```"]
        if isinstance(found, Commands):
            for name in found.list_commands(context):
                command = found.get_command(context, name)
                title = f"wardround {word} {name}"
                lines += ["", f"### {title}", "", f"```text\n{_help(command, title)}\n```"]
    return "\n".join(lines)


def _help(command: Any, name: str) -> str:
    return str(command.get_help(click.Context(command, info_name=name, max_content_width=80, terminal_width=80)))


def settings() -> str:
    """Every setting of the three files, with type, default and bounds."""
    lines = ["# Settings", "", "A file says which of its lines is wrong; a setting that is left out has its default."]
    files = (
        ("federation.toml", Federation),
        ("hospital.toml", HospitalConfig),
        ("coordinator.toml", CoordinatorConfig),
    )
    for name, model in files:
        lines += ["", f"## {name}", "", *_section(model, "", 3)]
    for title, kind in PARTS.items():
        for part in kind.built_in:
            found = kind[part]
            if inspect.isclass(found) and issubclass(found, BaseModel):
                lines += ["", f"## {title}: {part}", "", *_section(found, "", 3)]
    return "\n".join(lines)


def _section(model: type[BaseModel], table: str, depth: int) -> Iterator[str]:
    own = {key: field for key, field in model.model_fields.items() if not _models(field.annotation)}
    if own:
        if table:
            yield from (f"{'#' * depth} [{table}]", "")
        yield from (_escaped(inspect.cleandoc(model.__doc__ or "")), "")
        yield from ("| setting | type | default | bounds |", "|---|---|---|---|")
        for key, field in own.items():
            yield f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_bounds(field)} |"
        yield ""
    for key, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _section(inner, f"{table}.{key}".strip("."), depth)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for each in get_args(annotation) for model in _models(each)]
    return []


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(f"`{each!r}`" for each in inner).replace("'", '"')
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", "value"))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple | list):
        return "all" if len(value) > 6 else _escaped(", ".join(map(str, value))) or "none"
    return f"`{value}`" if value not in ("", None) else "none"


def _bounds(field: FieldInfo) -> str:
    said = [f"{words} {getattr(rule, name)}" for rule in _rules(field) for name, words in _BOUNDS.items()
            if getattr(rule, name, None) is not None]  # fmt: skip
    return _escaped(", ".join(said))


def _rules(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for each in get_args(field.annotation) if get_origin(field.annotation) is tuple else ():
        yield from getattr(each, "__metadata__", ())


def parts() -> str:
    """Every part that is one file, with the first sentence of its file."""
    lines = [
        "# Parts",
        "",
        "Each is one file; CONTRIBUTING.md has a recipe for one more, also in a package of your own.",
    ]
    for title, kind in PARTS.items():
        lines += ["", f"## {title}", "", f"Entry points `{kind.group}`.", "", "| name | |", "|---|---|"]
        for name in kind.built_in:
            module = import_module(f"{kind.package}.{name.replace('-', '_')}")
            lines.append(f"| `{name}` | {_escaped(' '.join((module.__doc__ or '').split(chr(10) * 2)[0].split()))} |")
    return "\n".join(lines)


def api() -> str:
    """What a researcher imports."""
    lines = ["# Python API", ""]
    for title, module in API.items():
        lines += [f"## {title}", "", f"::: {module}", "    options: { heading_level: 3 }", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":  # python tools/reference.py settings
    print(globals()[sys.argv[1]]())
