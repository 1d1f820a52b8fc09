"""`wardround` as a fork: one process imports what its commands import, once, and each command is a child of it.

An interpreter that imports torch, Flower and pydicom costs seconds of a processor; a page of the docs starts dozens.
`launcher()` is a program that behaves as `wardround` does: arguments, folder, environment, umask, the three streams,
exit code and signals are those of the caller. What it cannot prove is proved with the installed program: that it
starts, what a start imports, what a limit of the caller's does, what a kill at a moment of one's choosing leaves.

The child has another process id than the program that was started. A signal is passed on to it; when the program is
killed, the child and its session are killed a moment later; they all end with the test run, however that ends.
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
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from types import ModuleType
from typing import NamedTuple, NoReturn

REAL = str(Path(sys.executable).with_name("wardround"))
PACKAGES = ("wardround", "wardround_client", "wardround_server", "wardround_simulation")
THREADED = ("wardround.onnx_files.session",)
"""Their import starts a thread, and a process that forks may have one only. A command that needs them imports them."""
AT_IMPORT = ("FLWR_TELEMETRY_ENABLED", "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONUNBUFFERED")
"""What is read while modules are imported, and so is the same for all children."""

# Without site and the caller's PYTHON* it starts in 10 ms.
LAUNCHER = """#!{python} -ISE
import marshal, os, signal, socket, sys

zygote = socket.socket(socket.AF_UNIX)
zygote.connect({address!r})
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, lambda number, _: zygote.sendall(bytes([number])))
os.umask(mask := os.umask(0o077))
asked = marshal.dumps((sys.argv[1:], os.getcwd(), mask, dict(os.environb)))
socket.send_fds(zygote, [len(asked).to_bytes(8, "big")], [0, 1, 2])
zygote.sendall(asked)
code = int.from_bytes(zygote.recv(4, socket.MSG_WAITALL) or b"\\0\\0\\0\\x61", "big", signed=True)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def launcher() -> str:
    """The program, in a folder of its own and under the name of `wardround`: that folder may stand first on a PATH."""
    if not hasattr(os, "pidfd_open"):
        return REAL
    folder = Path(tempfile.mkdtemp(prefix="wardround-"))
    address = str(folder / "socket")
    program = folder / "bin" / "wardround"
    program.parent.mkdir()
    program.write_text(LAUNCHER.format(python=sys.executable, address=address))
    program.chmod(0o700)
    env = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    zygote = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends; the zygote ends then
        stdout=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    assert zygote.stdin is not None and zygote.stdout is not None
    with zygote.stdout:
        assert zygote.stdout.readline() == b"ready\n", "the zygote did not start: see what it said"

    def stop() -> None:
        assert zygote.stdin is not None
        zygote.stdin.close()
        zygote.wait()

    atexit.register(stop)
    return str(program)


class Asked(NamedTuple):
    """One start of `wardround`."""

    arguments: list[str]
    folder: str
    umask: int
    environment: dict[bytes, bytes]
    streams: list[int]


def preload() -> dict[bytes, bytes]:
    """Import what commands import -> what that put into the environment."""
    before = dict(os.environb)
    for name in PACKAGES:
        package = import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if found.name not in THREADED and not found.name.endswith("__main__"):
                import_module(found.name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "an import has started a thread: name its module in THREADED"
    gc.collect()
    gc.freeze()  # the children share the pages
    return {name: value for name, value in os.environb.items() if before.get(name) != value}


def received(connection: socket.socket) -> Asked | None:
    """What a launcher asks for; None when it was killed meanwhile."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        asked = file.read(wanted := int.from_bytes(size, "big"))
    if len(streams) < 3 or len(asked) < wanted:
        for stream in streams:
            os.close(stream)
        return None
    arguments, folder, umask, environment = marshal.loads(asked)  # of the same interpreter
    return Asked(arguments, folder, umask, environment, streams)


class Child(NamedTuple):
    """A command that runs, and the launcher that waits for it."""

    pid: int
    ended: int
    launcher: socket.socket

    def signal(self, number: int) -> None:
        """Send one, KILL to all of its session. It is not waited for yet, so the id is its own."""
        if number == signal.SIGKILL:
            with suppress(ProcessLookupError):  # it has no session yet
                os.killpg(self.pid, number)
        os.kill(self.pid, number)


def serve(address: str) -> Asked | None:
    """Fork for whoever asks. Returns in each child, with what it is to do, and at the end in the zygote, with None."""
    children: list[Child] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"ready\n")
        while True:
            watched: list[int | socket.socket] = [
                0,
                listener,
                *(child.ended for child in children),
                *(child.launcher for child in children),
            ]
            ready, _, _ = select.select(watched, [], [])
            for child in list(children):
                if child.ended in ready:
                    report(child)
                    children.remove(child)
                elif child.launcher in ready:
                    pass_on(child)
            if 0 in ready:
                for child in children:
                    child.signal(signal.SIGKILL)
                return None
            if listener in ready:
                connection, _ = listener.accept()
                if (asked := received(connection)) is None:
                    connection.close()
                    continue
                if not (pid := os.fork()):
                    connection.close()
                    for child in children:
                        child.launcher.close()
                        os.close(child.ended)
                    return asked
                for stream in asked.streams:
                    os.close(stream)
                children.append(Child(pid, os.pidfd_open(pid), connection))


def report(child: Child) -> None:
    """Tell the launcher the exit code, or the signal, negative."""
    _, status = os.waitpid(child.pid, 0)
    os.close(child.ended)
    with child.launcher, suppress(OSError):  # killed, too
        child.launcher.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def pass_on(child: Child) -> None:
    """The signals that the launcher got; KILL when it is no more."""
    try:
        numbers = child.launcher.recv(64)
    except OSError:
        numbers = b""
    for number in numbers or [signal.SIGKILL]:
        child.signal(number)


def become(asked: Asked, made: dict[bytes, bytes], own: dict[bytes, bytes]) -> None:
    """Make this child what the installed program would be. `made`: by imports; `own`: the zygote's environment."""
    os.setsid()
    for number, stream in enumerate(asked.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked.folder)
    os.umask(asked.umask)
    for name in AT_IMPORT:
        given, ours = asked.environment.get(name.encode()), own.get(name.encode())
        assert given == ours, f"{name} is read while modules are imported: start the real program, it is {given!r}"
    os.environb.clear()
    os.environb.update(made | asked.environment)
    sys.argv = [REAL, *asked.arguments]
    sys.path[0] = str(Path(REAL).parent)
    main = ModuleType("__main__")  # what a process that multiprocessing starts imports as well
    main.__file__ = REAL
    sys.modules["__main__"] = main
    import numpy as np

    np.random.seed()


def run(folder: Path) -> None:
    """The zygote's life, and in a child that of the command."""
    own = dict(os.environb)
    made = preload()
    asked = serve(str(folder / "socket"))
    if asked is None:
        rmtree(folder, ignore_errors=True)
        return
    code = 1
    try:
        become(asked, made, own)
        from wardround.cli import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    end(code)


def end(code: int) -> NoReturn:
    """As an interpreter ends, but for taking modules apart one by one: they are the zygote's, and copied by that."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
