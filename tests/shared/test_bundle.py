"""A hospital builds the bundle itself and gets the hash that Flower will state for the coordinator's upload."""

from __future__ import annotations

import hashlib
import io
import tomllib
import unicodedata
import zipfile

import pytest
from flwr.cli.build import build_fab_from_files
from hypothesis import given
from hypothesis import strategies as st

import wardround.bundle
from wardround.config import Federation, Rounds
from wardround.task import Task
from wardround.text import is_plain, shown

# Flower's builder uses a pattern class that pathspec has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
text = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
    .map(lambda drawn: unicodedata.normalize("NFKC", shown(" ".join(drawn.split()))))
    .filter(is_plain)
)


def federation(label: str = "finding", classes: tuple[str, ...] = ("none", "nodule"), rounds: int = 20) -> Federation:
    return Federation(name="chest", task=Task(label_column=label, classes=classes), rounds=Rounds(rounds=rounds))


def flower_builds(agreement: Federation) -> bytes:
    files = {name: text.encode() for name, text in wardround.bundle.app_files(agreement).items()}
    return build_fab_from_files(files)[0]


@given(label=text, classes=st.lists(text, min_size=2, max_size=4, unique=True))
def test_the_bytes_are_those_that_flwr_build_makes(label: str, classes: list[str]) -> None:
    agreement = federation(label, tuple(classes))
    assert wardround.bundle.build(agreement) == flower_builds(agreement)


def test_the_digest_is_the_fab_hash() -> None:
    agreement = federation()
    assert wardround.bundle.digest(agreement) == hashlib.sha256(flower_builds(agreement)).hexdigest()


def test_a_bundle_holds_no_code_and_the_whole_agreement() -> None:
    agreement = federation(label='a "quoted" \\ label')
    archive = zipfile.ZipFile(io.BytesIO(wardround.bundle.build(agreement)))
    assert sorted(archive.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]
    config = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    assert config["components"] == {
        "serverapp": "wardround_server.flower.app:app",
        "clientapp": "wardround_client.flower.app:app",
    }
    assert Federation.from_canonical(config["config"]["federation"]) == agreement


def test_any_other_number_is_another_bundle() -> None:
    assert wardround.bundle.digest(federation(rounds=20)) != wardround.bundle.digest(federation(rounds=21))
