"""A checkpoint is the whole old one or the whole new one, whenever the power goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wardround.errors import ConfigError, StorageError
from wardround.files import write_atomically
from wardround.optimizers.adam import Adam
from wardround.optimizers.sgd import Sgd
from wardround.optimizers.yogi import Yogi
from wardround.release import Release
from wardround_server.checkpoint import Checkpointer, State

DIGEST = "a" * 64


def a_state(number: int) -> State:
    vector = torch.full((5,), float(number))
    return State(
        run="spring", federation=DIGEST, round=number, theta=vector, shift=vector[:2], scale=vector[:2] + 1,
        outer={"first": vector, "second": vector * 2}, epsilon={"anna": 0.5},
    )  # fmt: skip


def load(checkpointer: Checkpointer) -> State:
    found = checkpointer.load(run="spring", federation=DIGEST)
    assert found is not None
    return found


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.load(run="spring", federation=DIGEST) is None
    checkpointer.save(a_state(7))
    found = load(checkpointer)
    assert (found.run, found.federation, found.round, found.epsilon) == ("spring", DIGEST, 7, {"anna": 0.5})
    for one, other in [
        (found.theta, a_state(7).theta),
        (found.shift, a_state(7).shift),
        (found.scale, a_state(7).scale),
        (found.outer["first"], a_state(7).outer["first"]),
        (found.outer["second"], a_state(7).outer["second"]),
    ]:
        assert torch.equal(one, other)


@pytest.mark.parametrize("run, federation", [("autumn", DIGEST), ("spring", "b" * 64)])
def test_a_checkpoint_of_another_run_or_federation_is_refused(tmp_path: Path, run: str, federation: str) -> None:
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(a_state(1))
    with pytest.raises(ConfigError, match="belongs to run 'spring'"):
        checkpointer.load(run=run, federation=federation)


class PowerCut(BaseException):
    """Nothing catches it, as nothing catches the power going."""


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_whenever_it_crashes_a_whole_checkpoint_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(a_state(1))
    real = getattr(os, step)

    def crash(*arguments: object, **named: object) -> object:
        raise PowerCut

    for late in (False, True):

        def crash_after(*arguments: object, **named: object) -> object:
            real(*arguments, **named)
            raise PowerCut

        with monkeypatch.context() as patch, pytest.raises(PowerCut):
            patch.setattr(os, step, crash_after if late else crash)
            checkpointer.save(a_state(2))
        expected = 2 if (step, late) == ("replace", True) else 1
        assert load(checkpointer).round == expected
        checkpointer.save(a_state(1))


def test_a_full_disk_is_a_storage_error_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(a_state(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"No space left.*--resume"):
        patch.setattr(os, "fsync", full)
        checkpointer.save(a_state(2))
    assert load(checkpointer).round == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"], "no scratch file is left"


def test_the_file_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            done.append(name)
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    write_atomically(tmp_path / "file", b"text")
    assert done == ["fsync", "replace", "fsync"], "the file, its name, and the folder that holds the name"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_checkpoint_is_a_storage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="not a checkpoint"):
        Checkpointer(tmp_path).load(run="spring", federation=DIGEST)


def test_a_checkpoint_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """It held two tensors of the outer optimizer, whatever that was; SGD leaves the second alone."""
    theta = torch.ones(3)
    release = Release("spring", DIGEST, 4, theta, theta, theta)
    old = {"optimizer.first": 2 * theta, "optimizer.second": 3 * theta}
    write_atomically(tmp_path / "checkpoint.safetensors", release.pack(old, {"epsilon": "{}", "answered": "{}"}))
    found = load(Checkpointer(tmp_path))
    for optimizer in (Sgd(), Adam(), Yogi()):
        state, _ = optimizer.step(found.outer, found.theta, theta)
        assert set(state) == {"first", "second"}
        assert not torch.equal(state["first"], found.outer["first"])
