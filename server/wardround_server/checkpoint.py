"""What a run must remember to go on: one safetensors file, replaced in one step after every round.

A reader sees the whole old file or the whole new one, whatever happens in between: the new one is written beside it,
forced to the disk, and renamed over it (POSIX rename(2)).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from wardround.errors import ConfigError, StorageError
from wardround.files import Held, locked, write_atomically
from wardround.models.scaling import no_scaling
from wardround.questions import Learned
from wardround.release import Release, read
from wardround.wire import Answered

FILE = "checkpoint.safetensors"
_OUTER = "optimizer."  # as since 0.1, whose checkpoints are read
PATIENCE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class State(Learned):
    """A run between two rounds, with what it has learned.

    run: its name. federation: `Federation.digest`. round: number of the next round. epsilon: what each hospital said
    that the run has cost it so far. answered: each hospital's last answer when the round begins, which its request
    names; kept, so that a resumed round sends the same bytes.
    """

    run: str
    federation: str
    round: int
    epsilon: Mapping[str, float] = field(default_factory=dict)
    answered: Mapping[str, Answered] = field(default_factory=dict)


class Checkpointer:
    """Keeps the state of one run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make sure that nobody else works on this run meanwhile. Raises: Held, StorageError."""
        with locked(
            self.folder / "lock",
            patience_s=PATIENCE_S,  # the process of a coordinator that was killed a moment ago is about to end
            busy=Held(
                f"run {self.folder.name!r} is going on already", do="wait for it, stop it, or choose another --run"
            ),
        ):
            yield

    def save(self, state: State) -> None:
        """Replace the checkpoint. Raises: StorageError; the previous checkpoint is then still whole."""
        model = Release(state.run, state.federation, state.round, state.theta, state.shift, state.scale)
        epsilon = json.dumps(dict(state.epsilon), sort_keys=True)
        answered = json.dumps({who: last.model_dump() for who, last in sorted(state.answered.items())})
        blob = model.pack(
            {_OUTER + name: tensor for name, tensor in state.outer.items()}, {"epsilon": epsilon, "answered": answered}
        )
        try:
            write_atomically(self.path, blob)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror})",
                do="make room, then run again with --resume: the last finished round is kept",
            ) from None

    def load(self, *, run: str, federation: str) -> State | None:
        """The state saved last; None without a checkpoint.

        Raises:
            ConfigError: it belongs to another run or to another federation.
            StorageError: it cannot be read.
        """
        try:
            model, tensors, metadata = read(self.path)
            found = State(
                run=model.run,
                federation=model.federation,
                round=model.round,
                theta=model.theta,
                shift=model.shift,
                scale=model.scale,
                outer={
                    name.removeprefix(_OUTER): tensor for name, tensor in tensors.items() if name.startswith(_OUTER)
                },
                epsilon=json.loads(metadata["epsilon"]),
                answered={
                    who: Answered.model_validate(last)
                    for who, last in json.loads(metadata.get("answered", "{}")).items()
                },
            )
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise StorageError(
                f"{self.path}: not a checkpoint of wardround ({type(error).__name__}: {error})",
                do="restore it from a copy, or start a new run",
            ) from None
        if (found.run, found.federation) != (run, federation):
            raise ConfigError(
                f"{self.path} belongs to run {found.run!r} of federation {found.federation[:12]}",
                allowed=f"run {run!r} of federation {federation[:12]}",
                do="resume with the federation.toml of that run, or start a new run",
            )
        return found


def initial(run: str, federation: str, theta: Tensor, scaling_size: int, outer: Mapping[str, Tensor]) -> State:
    """The state before the first round: no scaling is known yet (shift 0, scale 1)."""
    shift, scale = no_scaling(scaling_size)
    return State(run=run, federation=federation, round=0, theta=theta, shift=shift, scale=scale, outer=outer)
