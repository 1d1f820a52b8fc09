"""A real Orthanc, asked for what the labels name: the cohort is the one that the same files in a folder make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.pacs import content, named_by, phantoms, running_orthanc, settings_toml, store_of

from orthanc import Orthanc


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as running:
        files = store_of(store)
        assert running.load(files) == len(files)
        yield running


def by(protocol: str, pacs: Orthanc) -> dict[str, object]:
    if protocol == "dicomweb":
        return {"url": pacs.url}
    listen = f"127.0.0.1:{pacs.destination}"
    return {"address": f"127.0.0.1:{pacs.dimse}", "called": "ORTHANC", "retrieve": protocol, "listen": listen}


@pytest.fixture(params=["dicomweb", "get", "move"])
def hospital(request: pytest.FixtureRequest, home: Path, pacs: Orthanc) -> Path:
    """A home that reaches the PACS by each protocol."""
    settings_toml(home, **by(request.param, pacs))
    return home


def pulled(capsys: pytest.CaptureFixture[str], home: Path, labels: Path, *more: str) -> tuple[int, dict[str, object]]:
    """(exit code, everything that the lines of JSON say)."""
    code, out, _ = wardround(capsys, "pull", home, "--labels", labels, "--size", 16, "--json", *more)
    told: dict[str, object] = {}
    for line in out.splitlines():
        if line.startswith("{"):
            told |= json.loads(line)
    return code, told


def from_folder(capsys: pytest.CaptureFixture[str], home: Path, labels: Path, store: Path) -> Path:
    """The cohort that the named files in a folder make, with the same secret."""
    folder = named_by(labels, store, home / "copied")
    (home / "cohort").rename(home / "pulled") if (home / "cohort").exists() else None
    assert wardround(capsys, "ingest", home, folder, "--labels", labels, "--size", 16)[0] == 0
    return home / "cohort"


def test_a_pull_makes_the_cohort_that_the_folder_makes(
    hospital: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = store / "labels.csv"
    assert wardround(capsys, "pull", hospital, "--check")[0] == 0
    code, plan = pulled(capsys, hospital, labels, "--dry-run")
    assert code == 0 and plan["found"] == plan["fetch"] and not (hospital / "cohort").exists()

    code, told = pulled(capsys, hospital, labels)
    assert (code, told["quarantined"], told["patients"], told["unmatched"]) == (0, 0, 3, 0)
    assert told["used"] == told["images"] == plan["found"]
    assert [path.name for path in (hospital / "spool").iterdir()] == ["lock"]
    code, again = pulled(capsys, hospital, labels)
    assert code == 0 and again["already"] == again["used"] == told["used"]
    assert pulled(capsys, hospital, labels, "--dry-run")[1]["fetch"] == 0
    assert content(from_folder(capsys, hospital, labels, store)) == content(hospital / "pulled")
