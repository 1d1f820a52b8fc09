"""A model in a file: what one program writes the other reads, and a checkpoint is such a file too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wardround.errors import StorageError
from wardround.release import FORMAT, Release, read
from wardround_server.checkpoint import Checkpointer, State

RELEASE = Release("spring", "a" * 64, 7, torch.arange(5.0), torch.zeros(2), torch.ones(2))


def same(one: Release, other: Release) -> bool:
    named = (one.run, one.federation, one.round) == (other.run, other.federation, other.round)
    return named and all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("theta", "shift", "scale"))


def test_what_is_packed_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(RELEASE.pack({"more": torch.ones(1)}, {"epsilon": "{}"}))
    found, tensors, metadata = read(tmp_path / "file")
    assert same(found, RELEASE)
    assert set(tensors) == {"theta", "shift", "scale", "more"}
    assert (metadata["epsilon"], metadata["format"]) == ("{}", FORMAT)


def test_a_checkpoint_of_the_coordinator_is_a_release(tmp_path: Path) -> None:
    vector = RELEASE.theta
    state = State(
        run="spring", federation="a" * 64, round=7, theta=vector, shift=RELEASE.shift, scale=RELEASE.scale,
        outer={"first": vector},
    )  # fmt: skip
    Checkpointer(tmp_path).save(state)
    assert same(read(tmp_path / "checkpoint.safetensors")[0], RELEASE)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(RELEASE.pack(metadata={"format": "2"}))
    with pytest.raises(StorageError, match=r"format 2.*Allowed: format 1"):
        read(tmp_path / "file")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
