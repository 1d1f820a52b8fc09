"""Our packages as a graph of imports, read from their source: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("wardround", "wardround_flower", "wardround_client", "wardround_server", "wardround_simulation")


@cache
def modules() -> dict[str, Path]:
    """Every module of ours, by name."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        (folder,) = spec.submodule_search_locations or [""]
        for file in Path(folder).rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    """A module's syntax."""
    return ast.parse(modules()[module].read_text())


@cache
def imported(module: str) -> frozenset[str]:
    """What a module imports itself, anywhere in it: dotted names, `package.name` for `from package import name`."""
    found = set()
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def ours(name: str) -> Iterator[str]:
    """The modules of ours that importing a dotted name runs: itself and its parent packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        if (prefix := ".".join(parts[:end])) in modules():
            yield prefix


def closure(module: str) -> frozenset[str]:
    """Every module of ours that importing this one runs, itself included."""
    seen: set[str] = set()
    todo = list(ours(module))
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += [each for target in imported(name) for each in ours(target)]
    return frozenset(seen)


def foreign(module: str) -> frozenset[str]:
    """The top-level packages that a module imports and that are not ours."""
    return frozenset(name.split(".")[0] for name in imported(module)) - set(PACKAGES)


def calls(module: str) -> Iterator[tuple[str, str]]:
    """(function that it stands in, name that is called) of every call; the last part of a dotted name."""

    def visit(node: ast.AST, inside: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            here = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else inside
            if isinstance(child, ast.Call):
                target = child.func
                name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
                yield inside, name
            yield from visit(child, here)

    yield from visit(tree(module), "")
