"""The extras name what each supported Python needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("file", ["pyproject.toml", "deploy/hospital/pyproject.toml"])
def test_one_package_brings_the_weights_that_find_text(file: str, python: str) -> None:
    project = tomllib.loads((ROOT / file).read_text())["project"]
    named = [*project["dependencies"], *project.get("optional-dependencies", {}).get("text", ())]
    needs = [Requirement(each) for each in named]
    there = [each.name for each in needs if not each.marker or each.marker.evaluate({"python_version": python})]
    assert [name for name in there if name.startswith("rapidocr")] == [
        "rapidocr-onnxruntime" if python != "3.13" else "rapidocr"
    ]
