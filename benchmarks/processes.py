"""What a process and all that it starts cost, as Linux' /proc says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with suppress(OSError):  # it may end at any moment
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def cpu_seconds(pid: int) -> dict[int, float]:
    """Processor seconds so far of each in the family."""
    spent = {}
    for each in family(pid):
        with suppress(OSError):
            user, system = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13]
            spent[each] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return spent


def memory_kb(pid: int) -> int:
    """Memory of the family that no file backs, a shared page counted once."""
    total = 0
    for each in family(pid):
        with suppress(OSError):
            lines = [line.split() for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:]]
            total += sum(int(kb) for name, kb, _ in lines if name in ("Pss_Anon:", "Pss_Shmem:"))
    return total
