"""A hospital with an adapted model, made once, and a PACS with one new study."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.served import adapted, settings, study

from wardround_client.serve import loop, sending


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, home_with_cohort: Path) -> Path:
    return adapted(tmp_path_factory.mktemp("served"), home_with_cohort)


@pytest.fixture
def folder_pacs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for anything."""
    monkeypatch.setattr(loop, "archive_of", lambda pacs: FolderPacs)
    monkeypatch.setattr(loop, "wait_s", lambda attempt, trouble: 0.0)
    monkeypatch.setattr(sending, "AGAIN_S", 0.0)


@pytest.fixture
def home(made: Path, tmp_path: Path, folder_pacs: None) -> Path:
    """With one new study in the PACS."""
    shutil.copytree(made, tmp_path / "home")
    FolderPacs.at(tmp_path / "pacs")
    study(tmp_path / "pacs" / "new", 1)
    settings(tmp_path / "home", {"url": "http://127.0.0.1:9"})
    return tmp_path / "home"
