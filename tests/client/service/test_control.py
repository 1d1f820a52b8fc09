"""The control socket: who may open it, what it says, and what becomes of it."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardround.errors import ConfigError, StorageError, Unreachable
from wardround_client.service._proto import hospital_pb2 as pb
from wardround_client.service.control import COORDINATOR, SOCKET, Control, ControlServer, StatusFeed
from wardround_client.service.daemon import locked


class Daemon:
    """Just the parts that the socket shows."""

    def __init__(self, home: Path) -> None:
        self.home, self.link = home, "connecting"
        self.paused, self.stop = threading.Event(), threading.Event()
        self.feed = StatusFeed(self._describe)
        self.server = ControlServer(home, self.feed, self.paused, self.stop)

    def _describe(self) -> pb.StatusReply:
        return pb.StatusReply(name="st-anna", link=self.link, paused=self.paused.is_set(), pid=os.getpid())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    with made.server:
        yield made


def test_status_over_the_socket(daemon: Daemon) -> None:
    with Control(daemon.home) as control:
        assert control.status().name == "st-anna"


def test_only_the_owner_may_open_it(daemon: Daemon) -> None:
    mode = (daemon.home / SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_wide_umask_does_not_open_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Daemon(tmp_path).server:
            assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600
        assert os.umask(0) == 0  # and the process's own umask is as it was
    finally:
        os.umask(before)


def test_pause_and_resume(daemon: Daemon) -> None:
    with Control(daemon.home) as control:
        assert control.pause().paused
        assert daemon.paused.is_set()
        assert not control.resume().paused
        assert not daemon.paused.is_set()


def test_a_pause_outlasts_the_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path).server, Control(tmp_path) as control:
        control.pause()
    after = Daemon(tmp_path)
    assert after.paused.is_set()
    with after.server, Control(tmp_path) as control:
        control.resume()
    assert not Daemon(tmp_path).paused.is_set()


def test_watch_tells_each_change_and_ends_with_the_daemon(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with daemon.server, Control(tmp_path) as control:
        watch = control.watch()
        assert next(watch).link == "connecting"
        daemon.link = "connected"
        daemon.feed.notify()
        assert next(watch).link == "connected"
        daemon.feed.close()
        assert list(watch) == []


def test_shutdown_stops_the_daemon(daemon: Daemon) -> None:
    with Control(daemon.home) as control:
        control.shutdown()
    assert daemon.stop.is_set()


def test_the_standard_health_check(daemon: Daemon) -> None:
    with Control(daemon.home) as control:
        assert control.healthy()
        assert not control.healthy(COORDINATOR)
        daemon.server.connected(True)
        assert control.healthy(COORDINATOR)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no daemon is running") as caught, Control(tmp_path):
        pass
    assert caught.value.exit_code == 6


def test_a_socket_that_a_killed_daemon_left_is_nobody_and_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    with pytest.raises(Unreachable, match="no daemon is running"), Control(tmp_path) as control:
        control.status()
    with Daemon(tmp_path).server, Control(tmp_path) as control:
        assert control.status().name == "st-anna"
    assert not (tmp_path / SOCKET).exists()


@pytest.mark.parametrize("runtime", ["set", "unset"])
def test_a_home_whose_path_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if runtime == "set" and len(str(tmp_path)) < 60:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    home = tmp_path / ("h" * 60) / ("o" * 60)
    home.mkdir(parents=True)
    with Daemon(home).server, Control(home) as control:
        target = (home / SOCKET).resolve()
        assert control.status().name == "st-anna"
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not (home / SOCKET).is_symlink()
    assert not target.exists()


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made"), Daemon(tmp_path / "missing").server:
        pass


def test_one_daemon_a_home(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="runs on"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    import subprocess
    import sys

    from wardround_client.service._proto.generate import HERE

    # In a process of its own: protoc's Python module warns under newer Pythons.
    subprocess.run([sys.executable, "-m", "wardround_client.service._proto.generate", str(tmp_path)], check=True)
    for name in ("hospital_pb2.py", "hospital_pb2.pyi", "hospital_pb2_grpc.py"):
        assert (tmp_path / name).read_text() == (HERE / name).read_text(), "run generate.py again"
