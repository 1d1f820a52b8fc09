"""Whose process is at the other end of a connection on this machine."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TABLES = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_ESTABLISHED = "01"  # tcp_states.h


def owner_of_peer(accepted: socket.socket) -> int | None:
    """The user id of the process that dialled a loopback connection; None, when that cannot be told.

    It is read from the kernel's table of sockets (proc_pid_net(5)), so nothing that a client sends can change it. A
    socket whose process has closed it already belongs to nobody (its line says user 0, inode 0), and is not told.
    """
    table = TABLES.get(accepted.family)
    try:
        ours, theirs = _as_listed(accepted.getsockname()), _as_listed(accepted.getpeername())
        lines = table.read_text(encoding="ascii").splitlines()[1:] if table else []
    except OSError:
        return None
    for line in lines:
        _, local, remote, state, _, _, _, user, _, inode, *_ = line.split()
        if (local, remote, state) == (theirs, ours, _ESTABLISHED) and inode != "0":
            return int(user)
    return None


def is_the_owner(accepted: socket.socket) -> bool:
    """Whether it is a process of this user, or of root, who may do as he likes anyway."""
    return owner_of_peer(accepted) in {os.getuid(), 0}


def _as_listed(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """As /proc/net/tcp writes an address: words of 32 bits in the machine's order, in hexadecimal digits."""
    family = socket.AF_INET6 if ":" in name[0] else socket.AF_INET
    packed = socket.inet_pton(family, name[0])
    words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
    return "".join(f"{word:08X}" for word in words) + f":{name[1]:04X}"
