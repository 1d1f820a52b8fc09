"""ONNX files from outside: what one may hold, and a look at one in a process of its own.

An ONNX file is a program. `rules` says which programs are encoders; `look` asks it, and runs one image, in a child with
limits on time and memory, so that a parser which a file crashes, or an image that takes for ever, ends the child alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError
from wardround.text import shown

LIMIT_S = 120.0
"""How long a look may take, of a file of a gigabyte on a slow machine."""
EXTRA = "wardround[onnx]"
CHILD = ("-m", __name__)


@dataclass(frozen=True)
class Report:
    """What a look found.

    channels, side: of an image as the graph takes it. features: length of the output of that name. map_size: side
    of the maps' grid, 0 without maps. resize: how an image comes to `side`. opset: the version of
    its operators; operators: how often each is used. parameters: numbers in its weights. operations: floating point
    operations of an image. numbers: in all its intermediate results. ms: an image's time on one thread here.
    peak_bytes: of the process.
    """

    channels: int
    side: int
    features: int
    map_size: int
    resize: str
    opset: int
    operators: dict[str, int]
    parameters: int
    operations: int
    numbers: int
    ms: float
    peak_bytes: int

    @property
    def session_bytes(self) -> int:
        """An upper bound of what onnxruntime holds for one output: the weights, as they are and as its kernels want
        them, and an image's results, in memory that grows in powers of 2.
        """
        return 8 * (self.parameters + self.numbers)

    @property
    def loading_bytes(self) -> int:
        """An upper bound of what loading takes for a while: the file, and copies of it as messages and as text."""
        return 20 * self.parameters


def installed(path: Path) -> None:
    """Raises: ConfigError, without what reads ONNX files."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{path} is an ONNX file, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            do=f"pip install '{EXTRA}'",
        )


def look(data: bytes, path: Path, *, limit_s: float = LIMIT_S) -> Report:
    """What is in a file, after all rules were checked and one blank image encoded, in a child.

    Args:
        data: its bytes.
        path: how errors call it.
        limit_s: after so many seconds it is refused.

    Raises: ConfigError: it is no encoder that may be run here, with the reason.
    """
    installed(path)
    try:
        child = subprocess.run([sys.executable, *CHILD], input=data, capture_output=True, timeout=limit_s, check=False)
        told: dict[str, Any] = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{path}: looking at it and encoding one image took more than {limit_s:.0f} s", do="bring a smaller encoder"
        ) from None
    except (OSError, ValueError):
        raise ConfigError(
            f"{path}: the process that looked at it ended without a word: the file is damaged, hostile, or too large "
            "for this machine's memory",
            do="make it again with `wardround encoder import`, or bring another encoder",
        ) from None
    if why := told.get("refused"):
        raise ConfigError(
            f"{path}: not an encoder that is run here ({shown(str(why), 400)})", do="see docs/encoders.md for the rules"
        )
    return Report(**told)
