"""A federation's model in a file: what the coordinator checkpoints, and what a hospital keeps for use at home.

One safetensors file: theta, shift and scale, with the names of the run and of the agreement beside them. A checkpoint
holds more tensors and more metadata; whoever wants the model only does not see them. Nobody's patient is in it beyond
what the noised answers told.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from wardround.errors import StorageError

FORMAT = "1"


@dataclass(frozen=True)
class Release:
    """The model between two rounds.

    run: its name. federation: `Federation.digest`. round: number of the next round. theta: float32 [P]; shift, scale:
    float32 [d], the public feature scaling that theta goes with.
    """

    run: str
    federation: str
    round: int
    theta: Tensor
    shift: Tensor
    scale: Tensor

    def pack(self, tensors: Mapping[str, Tensor] | None = None, metadata: Mapping[str, str] | None = None) -> bytes:
        """The bytes of the file, with more tensors and metadata where a checkpoint has them."""
        named = {"theta": self.theta, "shift": self.shift, "scale": self.scale, **(tensors or {})}
        return safetensors.torch.save(
            # Cloned: safetensors refuses tensors that share memory, and a state may hold one tensor twice.
            {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()},
            metadata={
                "format": FORMAT,
                "run": self.run,
                "federation": self.federation,
                "round": str(self.round),
                **(metadata or {}),
            },
        )


def read(path: Path) -> tuple[Release, dict[str, Tensor], dict[str, str]]:
    """A file of `Release.pack` -> the model, all tensors and all metadata. Shapes are not looked at.

    Raises:
        StorageError: it is of another format.
        OSError, SafetensorError, KeyError, ValueError: it is missing, or no such file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would wait for ever
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = dict(file.metadata() or {})
    release = Release(
        run=metadata["run"],
        federation=metadata["federation"],
        round=int(metadata["round"]),
        theta=tensors["theta"],
        shift=tensors["shift"],
        scale=tensors["scale"],
    )
    if metadata["format"] != FORMAT:
        raise StorageError(f"{path}: format {metadata['format']}", allowed=f"format {FORMAT}")
    return release, tensors, metadata
