from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from wardround.errors import ConfigError
from wardround.plugins import Kind


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind[str]:
    """Two parts of ours, one of another package's that works, one that does not, one that takes a name of ours."""
    ours, theirs, info = tmp_path / "plug_ours", tmp_path / "plug_theirs", tmp_path / "theirs-1.0.dist-info"
    for folder in (ours, theirs, info):
        folder.mkdir()
    (ours / "__init__.py").touch()
    (ours / "two_words.py").write_text('part = "ours"\n')
    (ours / "explodes.py").write_text("raise RuntimeError\n")
    (ours / "_common.py").write_text("raise RuntimeError\n")
    (theirs / "__init__.py").write_text('part = "theirs"\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[plug.parts]\nthird = plug_theirs:part\nbroken = plug_theirs.none:part\ntwo-words = plug_theirs:part\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return Kind("part", "plug_ours", "part", "plug.parts")


def test_names_are_known_without_an_import(kind: Kind[str]) -> None:
    assert kind.built_in == ("explodes", "two-words")
    assert kind.names == ("explodes", "two-words", "broken", "third")
    assert "third" in kind and "two-words" in kind and "fourth" not in kind


def test_a_part_is_found_by_its_name(kind: Kind[str]) -> None:
    assert kind["third"] == "theirs"


def test_no_other_package_takes_the_place_of_a_part_of_ours(kind: Kind[str]) -> None:
    assert kind["two-words"] == "ours"


@pytest.mark.parametrize(("name", "says"), [("fourth", "unknown part 'fourth'"), ("broken", "cannot be loaded")])
def test_what_is_not_there_is_an_error_for_a_person(kind: Kind[str], name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kind[name]
