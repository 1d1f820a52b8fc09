"""The daemon's control socket: a small gRPC service and the standard health check, for this machine's owner alone.

The socket lies in the home as control.sock, mode 0600. Where the home's path is too long for a Unix socket (the kernel
takes 107 bytes), the socket lies in $XDG_RUNTIME_DIR or a private temporary folder and control.sock links to it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wardround.errors import FederationError, StorageError, Unreachable
from wardround.files import read_bounded
from wardround_client.service._proto import hospital_pb2 as pb
from wardround_client.service._proto import hospital_pb2_grpc as pb_grpc

SOCKET, PAUSED, REFUSAL = "control.sock", "paused", "last-refusal"
LONGEST_PATH_BYTES = 100
COORDINATOR = "wardround.coordinator"  # health: SERVING while the coordinator is connected; "" is the daemon itself
CALL_TIMEOUT_S = 5.0
_WATCHERS = 8
_LOOK_S = 1.0


def last_refusal(home: Path) -> str:
    """The last refusal of a daemon in this home, with its time; "" where there was none."""
    try:
        return read_bounded(home / REFUSAL, 4096).decode(errors="replace")
    except OSError:
        return ""


class StatusFeed:
    """What the daemon shows: a status that changes, and those who wait for a change.

    Args:
        describe: makes the status of the moment.
    """

    def __init__(self, describe: Callable[[], pb.StatusReply]) -> None:
        self.describe = describe
        self._changed = threading.Condition()
        self._version = 0
        self._closed = False

    def notify(self) -> None:
        """Something changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End every watch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def versions(self, alive: Callable[[], bool]) -> Iterator[pb.StatusReply]:
        """The status now, then after each change, for as long as `alive` and not closed."""
        seen = -1
        while alive():
            with self._changed:
                if self._version == seen and not self._closed:
                    self._changed.wait(_LOOK_S)  # every notification is a change or the end
                if self._closed:
                    return
                if self._version == seen:
                    continue
                seen = self._version
            yield self.describe()


class Pause:
    """Whether the hospital refuses every round: an event, and a file in the home so that it outlasts the daemon."""

    def __init__(self, home: Path, event: threading.Event) -> None:
        self._file, self._event = home / PAUSED, event
        if self._file.exists():
            event.set()

    def set(self, yes: bool) -> None:
        """Pause or resume. A pause counts at once, even where it cannot be written. Raises: OSError."""
        if yes:
            self._event.set()
            self._file.touch(mode=0o600)
        else:
            self._file.unlink(missing_ok=True)
            self._event.clear()


class ControlServer:
    """The service on its socket, as a context manager.

    Args:
        home: the hospital's home.
        feed: what is shown.
        paused: set while the hospital refuses every round.
        stop: set to end the daemon.

    Raises: StorageError, when the socket cannot be made.
    """

    def __init__(self, home: Path, feed: StatusFeed, paused: threading.Event, stop: threading.Event) -> None:
        self._link, self._feed = home / SOCKET, feed
        self._temporary: Path | None = None
        self._health = health.HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(_WATCHERS + 4, thread_name_prefix="control"))
        pb_grpc.add_HospitalServicer_to_server(  # type: ignore[no-untyped-call]
            _Servicer(feed, Pause(home, paused), stop), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def __enter__(self) -> Self:
        try:
            self._link.unlink(missing_ok=True)  # stale: the daemon's lock is ours
            path = self._path()
            path.unlink(missing_ok=True)
            before = os.umask(0o177)  # the socket must never be open to others, not even between bind and chmod
            try:
                self._server.add_insecure_port(f"unix:{path}")
            finally:
                os.umask(before)
            path.chmod(0o600)
            if path != self._link:
                self._link.symlink_to(path)
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"{self._link} cannot be made ({error})", do="see who owns the home, and the disk"
            ) from None
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.connected(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._health.enter_graceful_shutdown()
        self._feed.close()
        self._server.stop(grace=1.0).wait()
        with suppress(OSError):
            self._link.unlink(missing_ok=True)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def connected(self, yes: bool) -> None:
        """Say by the health check whether the coordinator is connected."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set(COORDINATOR, serving if yes else not_serving)

    def _path(self) -> Path:
        """Where the socket itself goes."""
        direct = self._link.absolute()
        if len(os.fsencode(direct)) <= LONGEST_PATH_BYTES:
            return direct
        name = "wardround-" + hashlib.sha256(os.fsencode(direct)).hexdigest()[:16]
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime and len(os.fsencode(runtime)) + len(name) + 6 <= LONGEST_PATH_BYTES and Path(runtime).is_dir():
            return Path(runtime) / f"{name}.sock"
        self._temporary = Path(tempfile.mkdtemp(prefix="wardround-", dir="/tmp"))  # mode 0700
        return self._temporary / SOCKET


class _Servicer(pb_grpc.HospitalServicer):
    """hospital.proto, over a feed."""

    def __init__(self, feed: StatusFeed, pause: Pause, stop: threading.Event) -> None:
        self._feed, self._pause, self._stop = feed, pause, stop
        self._watchers = threading.BoundedSemaphore(_WATCHERS)

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._feed.describe()

    def Watch(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> Iterator[pb.StatusReply]:  # noqa: N802
        # A watch keeps a thread; the last ones are for Status and Pause.
        if not self._watchers.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_WATCHERS} watch this hospital already")
        try:
            yield from self._feed.versions(context.is_active)
        finally:
            self._watchers.release()

    def Pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._paused(True, context)

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        return self._paused(False, context)

    def _paused(self, yes: bool, context: grpc.ServicerContext) -> pb.StatusReply:
        try:
            self._pause.set(yes)
        except OSError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the home cannot be written ({error.strerror})")
        self._feed.notify()
        return self._feed.describe()

    def Shutdown(self, request: pb.ShutdownRequest, context: grpc.ServicerContext) -> pb.ShutdownReply:  # noqa: N802
        self._stop.set()
        return pb.ShutdownReply()


class Control:
    """A command's side of the socket, as a context manager.

    Args:
        home: the hospital's home.

    Raises: Unreachable, by every call, when no daemon answers there.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        link = (self._home / SOCKET).absolute()
        path = link.resolve() if link.is_symlink() else link
        if not path.exists():
            raise self._not_running()
        self._channel = grpc.insecure_channel(f"unix:{path}")
        self._stub: Any = pb_grpc.HospitalStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._channel:
            self._channel.close()

    def status(self) -> pb.StatusReply:
        """How the daemon stands."""
        with self._explained():
            reply: pb.StatusReply = self._stub.Status(pb.StatusRequest(), timeout=CALL_TIMEOUT_S)
        return reply

    def watch(self) -> Iterator[pb.StatusReply]:
        """The status now and after each change; ends with the daemon."""
        with self._explained():
            yield from self._stub.Watch(pb.StatusRequest())

    def pause(self) -> pb.StatusReply:
        """Refuse every round until `resume`."""
        with self._explained():
            reply: pb.StatusReply = self._stub.Pause(pb.PauseRequest(), timeout=CALL_TIMEOUT_S)
        return reply

    def resume(self) -> pb.StatusReply:
        """Answer rounds again."""
        with self._explained():
            reply: pb.StatusReply = self._stub.Resume(pb.ResumeRequest(), timeout=CALL_TIMEOUT_S)
        return reply

    def shutdown(self) -> None:
        """End the daemon, after the round that it is answering."""
        with self._explained():
            self._stub.Shutdown(pb.ShutdownRequest(), timeout=CALL_TIMEOUT_S)

    def healthy(self, service: str = "") -> bool:
        """The standard health check: of the daemon (""), or of its connection (COORDINATOR)."""
        with self._explained():
            reply = self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_TIMEOUT_S)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            failed: Any = error  # what a stub raises is a grpc.Call too
            code, said = failed.code(), str(failed.details())
            if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise FederationError(said, do="end another `wardround hospital watch`") from None
            if code == grpc.StatusCode.FAILED_PRECONDITION:
                raise StorageError(said, do="check the disk") from None
            if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
                raise Unreachable(f"the daemon of {self._home} does not answer", do="read hospital.log there") from None
            raise self._not_running() from None

    def _not_running(self) -> Unreachable:
        return Unreachable(
            f"no daemon is running on {self._home}", do=f"start it with `wardround hospital up {self._home}`"
        )
