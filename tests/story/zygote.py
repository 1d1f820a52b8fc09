"""`wardround` as a fork: a process that has imported what its commands import, once, forks for each command.

An interpreter that imports torch, Flower and pydicom costs seconds of a processor; a page of the docs starts dozens.
`launcher` is a program that behaves as `wardround` does: arguments, folder, environment, the three streams, exit code
and signals are those of the caller. What it cannot prove is proved with the installed program: that it starts, what a
start imports, what a limit of the caller's does, what a kill at a moment of one's choosing leaves.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import NoReturn

PACKAGES = ("wardround", "wardround_client", "wardround_server", "wardround_simulation")
THREADED = ("wardround.onnx_files.session",)
"""Their import starts a thread, and a process that forks may have one only. A command that needs them imports them."""

# Without site and the caller's PYTHON* it starts in 10 ms.
LAUNCHER = """#!{python} -ISE
import marshal, os, signal, socket, sys

zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
zygote.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: zygote.send(bytes([number])))
socket.send_fds(zygote, [marshal.dumps((sys.argv[1:], os.getcwd(), dict(os.environb)))], [0, 1, 2])
code = int.from_bytes(zygote.recv(4) or b"\\x61", "big", signed=True)
if code < 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def launcher(environment: Mapping[str, str]) -> str:
    """Start the zygote -> the program, in a folder of its own that may stand first on a PATH.

    environment: what modules read while they are imported is this for every command.
    """
    if not hasattr(os, "pidfd_open"):
        return str(Path(sys.executable).with_name("wardround"))
    folder = Path(tempfile.mkdtemp(prefix="wardround-"))
    address, program = str(folder / "socket"), folder / "bin" / "wardround"
    program.parent.mkdir()
    program.write_text(LAUNCHER.format(python=sys.executable, address=address))
    program.chmod(0o700)
    zygote = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends; the zygote and its children end then
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    atexit.register(zygote.communicate)
    assert zygote.stdout is not None
    assert zygote.stdout.readline() == b"ready\n", "the zygote did not start: see what it said"
    return str(program)


def preload() -> None:
    """Import what commands import."""
    for name in PACKAGES:
        for found in pkgutil.walk_packages(import_module(name).__path__, f"{name}."):
            if found.name not in THREADED and not found.name.endswith("__main__"):
                import_module(found.name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "an import has started a thread: name its module in THREADED"
    gc.collect()
    gc.freeze()  # the children share the pages


def serve(address: str) -> None:
    """Fork for whoever asks, until standard input ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.write(1, b"ready\n")
        while 0 not in select.select([0, listener.fileno()], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                attend(connection)
            connection.close()


def attend(connection: socket.socket) -> NoReturn:
    """Fork once more, for the command; pass on the signals that the launcher gets, and in the end the exit code."""
    asked, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not (pid := os.fork()):
        connection.close()
        command(asked, streams)
    os.setpgid(pid, pid)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    while ended not in (ready := select.select([0, connection.fileno(), ended], [], [])[0]):
        if 0 in ready or not (number := connection.recv(1)):  # the launcher was killed
            os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        os.kill(pid, number[0])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.send(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def command(asked: bytes, streams: list[int]) -> NoReturn:
    """Be the installed program, from start to end."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    arguments, folder, environment = marshal.loads(asked)  # of the same interpreter
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environment)
    from wardround.cli import run

    code = run(arguments)
    # As an interpreter ends, but for taking modules apart one by one: they are the zygote's.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    preload()
    serve(sys.argv[1])
    rmtree(Path(sys.argv[1]).parent)
