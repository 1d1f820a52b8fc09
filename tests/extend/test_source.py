"""A source of another package, as CONTRIBUTING.md says, becomes a cohort by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.client.command_line import wardround
from tests.recipes import follow

from wardround_client.cohort.store import CohortStore
from wardround_client.intake.source import SOURCES


def archive(path: Path, *, damaged: bool = False) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 9), np.uint8)
    images[:, 0, 0] = 255
    np.savez(
        path,
        scans=images[:5] if damaged else images,
        patients=["A", "A", "B", "B", "C", "C"],
        finding=["nodule", "normal", "normal", "normal", "Nodule", "nodule"],
    )
    return path


def test_a_source_of_another_package_is_ingested_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    follow("A new source", tmp_path, monkeypatch)
    assert SOURCES.names == ("dicom-folder", "dicomweb", "dimse", "image-folder", "npz", "table", "stacks")
    home, scans = tmp_path / "home", archive(tmp_path / "scans.npz")
    wardround(capsys, "init", home, "--name", "st-anna", "--patients", 40)
    typed = ("ingest", home, scans, "--source", "stacks", "--size", 8, "--json")
    code, out, _ = wardround(capsys, *typed)
    assert code == 3 and json.loads(out.splitlines()[0])["reasons"] == {"damaged": 6}, "there is no array `images`"

    code, out, _ = wardround(capsys, *typed, "--set", "images=scans")
    assert code == 0
    assert json.loads(out)["labels"] == {"finding": {"nodule": 2, "normal": 2, "Nodule": 1}}
    store = CohortStore.open(home / "cohort", withdrawn=())
    assert store.inputs.shape == (6, 1, 8, 8) and len(store.pseudonyms) == 3
    assert json.loads(wardround(capsys, *typed, "--set", "images=scans")[1])["already"] == 6

    code, out, _ = wardround(capsys, *typed, "--set", "image=scans")
    assert code == 2 and "did you mean 'images'" in out
    archive(scans, damaged=True)
    damaged = json.loads(wardround(capsys, *typed, "--set", "images=scans", "--dry-run")[1])
    assert (damaged["already"], damaged["reasons"]) == (5, {"damaged": 1})
