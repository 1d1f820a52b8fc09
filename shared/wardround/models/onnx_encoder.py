"""An encoder that a consortium brings as ONNX, pinned by SHA-256: any network, run by onnxruntime, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from wardround.errors import ConfigError
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.from_outside import pinned, reason, resized
from wardround.onnx_files import Report, installed, look

if TYPE_CHECKING:
    from wardround.onnx_files.session import Session

CUDA = "CUDAExecutionProvider"
# One copy of the weights, however many hospitals a process holds: a fingerprint says that they are the same.
_held: WeakValueDictionary[str, OnnxEncoder] = WeakValueDictionary()


def onnx_bytes(sha256: str) -> int:
    """An upper bound of the memory of an encoder of this hash that is loaded here, none of which torch allocates; 0
    where none is.
    """
    held = _held.get(sha256)
    return held.report.loading_bytes + len(held.sessions) * held.report.session_bytes if held else 0


@dataclass(frozen=True, eq=False)
class OnnxEncoder:
    """A graph that takes an image [1, channels, side, side] in [0, 1] and gives `features`, and perhaps `maps`.

    fingerprint: the file's SHA-256. report: what a look at it found. sessions: by output and torch's type of device.
    """

    report: Report
    fingerprint: str
    sessions: Mapping[tuple[str, str], Session] = field(repr=False)

    @classmethod
    def load(cls, path: Path, sha256: str, *, channels: int, features: int, data: bytes | None = None) -> OnnxEncoder:
        """Read `path`, which must have this hash, take images of `channels` and give `features` numbers.

        data: the file's bytes, where they were read already; `path` is then only how errors call it.

        Raises: ConfigError: missing, another hash, not an encoder, or not for this task; or onnxruntime is missing.
        """
        installed(path)
        data = pinned(path, sha256, data)
        if (encoder := _held.get(sha256)) is None:
            report = look(data, path)
            encoder = _held.setdefault(sha256, cls(report, sha256, _sessions(data, path, report)))
        encoder._check(path, channels, features)
        return encoder

    @property
    def features(self) -> int:
        """Length of the features."""
        return self.report.features

    @property
    def map_size(self) -> int:
        """Side of the maps' grid; 0: the graph gives none."""
        return self.report.map_size

    @property
    def map_fingerprint(self) -> str:
        """The file's as well."""
        return self.fingerprint

    def _check(self, path: Path, channels: int, features: int) -> None:
        if channels not in (1, self.report.channels):
            raise ConfigError(
                f"{path} takes {self.report.channels} channels, the task has {channels}",
                do="change task.channels, or bring another encoder",
            )
        if features != self.features:
            raise ConfigError(
                f"{path} gives [{self.features}] features, model.features is {features}",
                do="set model.features to what the encoder gives",
            )

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features], bounded by GREATEST_VALUE.

        An image is computed alone, and has the same bits in any company. One channel will do for a graph of 3, and is
        repeated.

        Raises: ConfigError, where a derivative is asked: onnxruntime has none.
        """
        return self._run("features", x, (self.features,))

    def maps(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features, map_size, map_size], bounded likewise."""
        return self._run("maps", x, (self.features, self.map_size, self.map_size))

    def _run(self, output: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "an ONNX encoder cannot be differentiated, which a heat map needs", do="ask for predictions without one"
            )
        session = self.sessions.get((output, x.device.type), self.sessions[output, "cpu"])
        report = self.report
        results = torch.empty(len(x), *shape)
        for row, image in enumerate(x):
            prepared = resized(image[None], report.side, report.resize).expand(-1, report.channels, -1, -1)
            results[row] = torch.from_numpy(session(prepared.cpu().numpy())[0])
        return results.clamp(-GREATEST_VALUE, GREATEST_VALUE).to(x.device)


def _sessions(data: bytes, path: Path, report: Report) -> dict[tuple[str, str], Session]:
    """For the processor, and for a GPU where torch and onnxruntime's own build for it see one."""
    import onnxruntime

    from wardround.onnx_files.session import Session

    providers = {"cpu": ["CPUExecutionProvider"]}
    if torch.cuda.is_available() and CUDA in onnxruntime.get_available_providers():
        providers["cuda"] = [CUDA, "CPUExecutionProvider"]
    outputs = ("features", "maps") if report.map_size else ("features",)
    try:
        return {(name, device): Session(data, name, providers[device]) for name in outputs for device in providers}
    except Exception as error:  # onnxruntime's own kinds: less memory here than in the child, or no usable GPU
        raise ConfigError(f"{path} cannot be loaded ({reason(error)})", do="bring a smaller encoder") from None
