"""How much memory a round of an agreement can take at most, from public numbers alone, and how much the machine has.

Memory is an output: a round that fails where one more patient is there tells that the patient is there. So a round
allocates what follows from the agreement and the declared number of patients, and whoever approves learns whether the
machine has it. Asked when a person approves and never in a round, because what a machine has free depends on more.

The figures of the methods are upper bounds of what was measured, by a factor of 1 to 4.
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wardround.algorithms import EpisodeSizes
from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.models import Model
from wardround.models.onnx_encoder import onnx_bytes
from wardround.schedule import Schedule

_MIB = 1 << 20
PROGRAM_BYTES = 640 * _MIB  # Python, torch, Flower, Opacus, and what an allocator keeps
MORE_PATIENTS = 1.5  # a cohort may be so many times as large as it was declared
STORED_IMAGES = 16  # of a patient, on average, or rows of a table
_WORK_BYTES = 192 * _MIB  # batches of fixed sizes: pixels that are encoded, gradients, kernels' own memory
_ENCODED_AT_ONCE, _PREDICTED_AT_ONCE = 16, 64
_PART_PIXELS = 32 * 28 * 28  # of which a first-order step holds the activations
_ANSWER_BYTES = 128  # a number of an answer: its sum and its noise in float64, and copies on the way out


@dataclass(frozen=True)
class Footprint:
    """Bytes that a daemon takes at most for one agreement: the encoded cohort, which stays, and a round beside it."""

    cohort: int
    round: int

    @property
    def total(self) -> int:
        """With the program itself."""
        return PROGRAM_BYTES + self.cohort + self.round

    def check(self, free: int | None) -> str:
        """A sentence for a person. Raises: PolicyRefusal, when the machine has less."""
        asked = f"at most {self.total / 1e9:.1f} GB"
        if free is None:
            return f"{asked}; what this machine has is not known"
        allowed = f"{free / 1e9:.1f} GB that this machine has free"
        if self.total > free:
            raise PolicyRefusal("policy.memory", asked=f"{asked} of memory", allowed=allowed)
        return f"{asked} of the {allowed}"


def footprint(federation: Federation, model: Model, declared_patients: int) -> Footprint:
    """What approving this federation means for the machine; encodes one blank image, and allocates nothing large.

    Args:
        federation: the agreement.
        model: its model, extended.
        declared_patients: of the hospital.
    """
    task, privacy = federation.task, federation.privacy
    zeros = torch.zeros(1, *task.input_shape)
    blank = model.encode(zeros)  # once before it is counted: an encoder makes its constants at its first call
    with _Allocated() as encoding:
        model.encode(zeros)
    row = blank[0].numel()
    images = math.ceil(MORE_PATIENTS * declared_patients) * STORED_IMAGES * task.cells
    cohort = 4 * images * (row * task.variants + model.scaling_size + 4)
    forward = _forward(model, blank)
    drawn = privacy.images_per_patient * task.drawn * task.variants
    rows, pixels = privacy.side_cap(declared_patients) * drawn, blank[0, 0].numel() if blank.dim() == 4 else 0
    sizes = EpisodeSizes(
        rows=rows,
        row=row,
        part=min(rows, math.ceil(_PART_PIXELS / pixels)) if pixels else rows,
        forward=forward,
        theta=model.layout.size,
        embedding=model.embedding_size,
        classes=model.classes,
    )
    training = 4 * drawn * (row + 8 * forward) + 4 * 8 * sizes.theta
    if federation.algorithm.question == "episode_gradient":
        training = 4 * federation.algorithm.episode_numbers(sizes)
    batches = 4 * max(_ENCODED_AT_ONCE * encoding.numbers, _PREDICTED_AT_ONCE * forward)
    answer = _ANSWER_BYTES * max(Schedule.of(federation).answer_sizes(federation, model))
    encoder = onnx_bytes(federation.model.encoder_sha256)
    return Footprint(cohort, _WORK_BYTES + training + batches + answer + encoder)


class _Allocated(TorchFunctionMode):
    """Counts the numbers in tensors that torch's functions return, but for views of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each.untyped_storage() for each in args if isinstance(each, Tensor)]
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor) and not any(each.untyped_storage() is storage for storage in given):
                self.numbers += each.numel()
        return out


def _forward(model: Model, z: Tensor) -> int:
    """Numbers that `logits` makes of one z; from shapes alone, nothing is allocated."""
    theta, scaling = (torch.empty(size, device="meta") for size in (model.layout.size, model.scaling_size))
    with _Allocated() as allocated:
        model.logits(theta, z.to("meta"), scaling, scaling)
    return int(allocated.numbers)


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a process of this user may take here: the least of what the machine has free, the control group's
    limit (version 2) and the limit on address space; None where nothing can be told.
    """
    found = [*_of_group(proc, cgroups)]
    available = _field(proc / "meminfo", "MemAvailable:")
    if available is not None:
        found.append(available)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        mapped = _field(proc / "self" / "status", "VmSize:") or 0  # libraries take space there and no memory
        found.append(max(0, limit - mapped) + PROGRAM_BYTES)
    return min(found, default=None)


def _field(file: Path, name: str) -> int | None:
    """A line `name 123 kB`, in bytes."""
    for line in _text(file).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _of_group(proc: Path, cgroups: Path) -> list[int]:
    """The limits of this process' control group and of those above it."""
    line = next((line for line in _text(proc / "self" / "cgroup").splitlines() if line.startswith("0::/")), "0::/")
    group = cgroups / line.removeprefix("0::/")
    folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(cgroups)]
    limits = [_text(folder / "memory.max").strip() for folder in folders]
    return [int(limit) for limit in limits if limit.isdigit()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
