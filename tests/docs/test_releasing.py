"""One version, one list of dependencies, and locks that hold all of it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

from wardround import __version__

ROOT = Path(__file__).parents[2]


AT_A_HOSPITAL = ("nifti", "onnx", "pacs", "text")
"""Extras that a hospital's own distribution holds."""


def dependencies(file: str, *extras: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / file).read_text())["project"]
    assert "version" in project["dynamic"], "the version stands in wardround/__init__.py alone"
    wanted = [*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name])]
    return {Requirement(each).name: each for each in wanted}


def pinned(file: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / file).read_text(), re.MULTILINE))


def test_every_place_names_the_same_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_hospital_installs_the_same_versions() -> None:
    everything, hospital = (
        dependencies("pyproject.toml", *AT_A_HOSPITAL),
        dependencies("deploy/hospital/pyproject.toml"),
    )
    assert {name: everything[name] for name in hospital} == hospital
    assert everything.keys() == hospital.keys()  # the coordinator's own are the pages' and Flower's too


def test_the_locks_hold_every_dependency() -> None:
    assert dependencies("pyproject.toml").keys() <= pinned("constraints.txt")
    assert dependencies("deploy/hospital/pyproject.toml").keys() - {"torch"} <= pinned(
        "deploy/hospital/requirements.txt"
    )
    assert pinned("deploy/hospital/requirements.txt") <= pinned("constraints.txt")
    entries = (ROOT / "deploy/hospital/requirements.txt").read_text().split("\n")[1:]
    assert all("--hash=sha256:" in line or "==" in line for line in entries if line)


def test_what_is_installed_here_is_what_the_lock_says() -> None:
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name in ("flwr", "click", "pydantic", "opacus"):
        assert version(name) == locked[name]
