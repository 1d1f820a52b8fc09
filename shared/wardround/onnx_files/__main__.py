"""The child of `look`: an ONNX file on stdin, a Report or a refusal as JSON on stdout. Not for people."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wardround.onnx_files.session import Session

MEMORY_BYTES = (
    6 << 30
)  # of address space, beside seven times the file: bytes, parsed, checked, and as onnxruntime packs it
CPU_S = 600


def main() -> None:
    data = sys.stdin.buffer.read()
    _limited(resource.RLIMIT_AS, MEMORY_BYTES + 7 * len(data))
    _limited(resource.RLIMIT_CPU, CPU_S)
    _limited(resource.RLIMIT_CORE, 0)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries write where they like
    try:
        told = _looked(data)
    except Exception as error:
        told = {"refused": _reason(error)}
    os.write(out, json.dumps(told).encode())


def _limited(what: int, most: int) -> None:
    """Lower a limit; one that is lower already stays."""
    soft, hard = resource.getrlimit(what)
    limits = [each for each in (soft, hard, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min(limits), hard))


def _looked(data: bytes) -> dict[str, Any]:
    from wardround.onnx_files.rules import checked
    from wardround.onnx_files.session import Session

    found = checked(data)
    blank, times = found.blank(), []
    for output in found.outputs:
        session = Session(data, output)
        found.check_output(output, session(blank))
        times.append(min(_seconds(session, blank) for _ in range(3)))
    return {**found.facts, "ms": 1000 * times[0], "peak_bytes": _peak_bytes()}


def _seconds(session: Session, blank: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    session(blank)
    return time.perf_counter() - start


def _peak_bytes() -> int:
    """Most memory of this process; proc(5), VmHWM, because getrusage counts the parent before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _reason(error: Exception) -> str:
    from wardround.onnx_files.rules import Refused

    if isinstance(error, Refused):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:500]


if __name__ == "__main__":
    main()
