"""A run that cannot begin leaves what there was of it as it was: its agreement, its encoder, and how it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.server.commands.test_commands import call

from wardround.errors import ConfigError, StorageError, WardroundError
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.home import Home
from wardround_server.office.runs import Order

ENCODER, NAME = b"weights", "spring"


class Control:
    """Starts whatever it is given."""

    started = 0

    def start_run(self, bundle: bytes, config: dict[str, str | bool]) -> int:
        self.started += 1
        return 7

    def run_status(self, run_id: int) -> tuple[str, str]:
        return "finished", ""

    def stop_run(self, run_id: int) -> None:
        raise AssertionError


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    """With a run that has ended, and the encoder that it agreed on."""
    home = tmp_path / "coordinator"
    call("init", home)
    Home(home).write("up.json", '{"pid": 1, "admin": 1}')
    file, pin = home / "federation.toml", hashlib.sha256(ENCODER).hexdigest()
    with_it = f'family = "encoder-head"\nencoder = "xray.onnx"\nencoder_sha256 = "{pin}"\n'
    file.write_text(file.read_text().replace('family = "encoder-head"', with_it, 1))
    (home / "xray.onnx").write_bytes(ENCODER)
    order(home, resume=False).start(Control())
    _save(home, order(home, resume=False).agreement.digest)
    (home / "runs" / NAME / "events.jsonl").write_text('{"event": "done"}\n')
    return home


def order(home: Path, *, resume: bool = True) -> Order:
    return Order.checked(Home(home), home / "federation.toml", NAME, resume=resume, wait_s=0)


def _save(home: Path, digest: str) -> None:
    blank = torch.zeros(3)
    state = State(run=NAME, federation=digest, round=1, theta=blank, shift=blank, scale=blank, outer={})
    (home / "runs" / NAME / "checkpoint.safetensors").unlink(missing_ok=True)
    Checkpointer(home / "runs" / NAME).save(state)


def _another_agreement(home: Path) -> None:
    file = home / "federation.toml"
    file.write_text(file.read_text().replace("rounds = ", "rounds = 1", 1))


def _another_encoder(home: Path) -> None:
    (home / "xray.onnx").write_bytes(b"others")


def _no_encoder(home: Path) -> None:
    (home / "xray.onnx").unlink()


def _another_agreement_with_its_encoder(home: Path) -> None:
    file, pins = home / "federation.toml", [hashlib.sha256(each).hexdigest() for each in (ENCODER, b"others")]
    file.write_text(file.read_text().replace(pins[0], pins[1]))
    _another_encoder(home)


def _damaged(home: Path) -> None:
    (home / "runs" / NAME / "checkpoint.safetensors").write_bytes(b"x")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_another_agreement, ConfigError, "resume with the federation.toml of that run"),
        (_another_agreement_with_its_encoder, ConfigError, "resume with the federation.toml of that run"),
        (_another_encoder, ConfigError, "use the file that the consortium agreed on"),
        (_no_encoder, ConfigError, "put the encoder beside"),
        (_damaged, StorageError, "not a checkpoint"),
    ],
)
def test_what_cannot_be_resumed_changes_nothing(
    change: Callable[[Path], None], error: type[WardroundError], says: str, coordinator: Path
) -> None:
    change(coordinator)
    folder, control = coordinator / "runs" / NAME, Control()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error, match=says):
        order(coordinator).start(control)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert control.started == 0


def test_what_can_be_resumed_is(coordinator: Path) -> None:
    control = Control()
    number, begins_at = order(coordinator).start(control)
    assert (number, begins_at, control.started) == (7, len('{"event": "done"}\n'), 1)
