"""The daemon: what it shows and how it ends; and the ClientApp that a stock SuperNode runs instead."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as PbMessage
from flwr.proto.message_pb2 import Metadata as PbMetadata

from wardround.cli import run
from wardround.errors import ConfigError
from wardround_client.flower.app import CANNOT_ANSWER, HOSPITAL, HOSPITALS_DIR, NOT_A_MESSAGE, home_of, make_app
from wardround_client.service.control import Control
from wardround_client.service.daemon import Daemon
from wardround_flower import pack, unpack

FEDERATION = """
name = "hearts"
task = { label_column = "y", classes = ["no", "yes"], kind = "table", features = ["a"] }
model = { family = "logistic" }
"""
SECRET = "patient 4711"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A hospital whose coordinator does not answer: its port is bound and refuses."""
    from wardround_server.network import tls

    ca = tls.create(tmp_path / "tls", ["127.0.0.1"]).ca
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "table.csv").write_text("a,y\n" + "".join(f"{n},{('no', 'yes')[n % 2]}\n" for n in range(40)))
    place, table, agreement = (str(tmp_path / name) for name in ("home", "table.csv", "federation.toml"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for command in (
            ["init", place, "--name", "st-anna", "--patients", "40"],
            ["ingest", place, "--table", table, "--federation", agreement],
            ["join", place, "--address", address, "--ca", str(ca)],
            ["approve", place, agreement, "--yes"],
        ):
            assert run(["hospital", *command]) == 0
        yield Path(place)


def test_the_socket_answers_while_the_coordinator_is_away(home: Path) -> None:
    retrying = threading.Event()

    def say(line: str) -> None:
        if "nobody answers" in line:
            retrying.set()

    daemon = Daemon(home, say=say)
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        assert retrying.wait(300)
        with Control(home) as control:
            status = control.status()
            assert control.healthy()
            assert not control.healthy("wardround.coordinator")
            assert status.link == "retrying"
            assert "nobody answers" in status.link_detail
            assert (status.name, status.epsilon_budget, len(status.approved)) == ("st-anna", 10.0, 1)
            control.shutdown()
    finally:
        daemon.stop.set()
        thread.join(300)
    assert not thread.is_alive()
    assert not (home / "control.sock").exists()


def test_a_refusal_is_shown_and_never_in_the_words_of_an_exception(home: Path) -> None:
    daemon = Daemon(home)
    daemon._answer(b"nonsense")
    assert daemon.feed.describe().last_error.startswith("MessageError")
    assert daemon.feed.describe().answered == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_with_0(home: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "wardround", "hospital", "up", str(home), "--json"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"connecting" in process.stdout.readline()
        assert b"nobody answers" in process.stdout.readline()
        process.send_signal(number)
        lines = process.stdout.read().splitlines()
        assert process.stderr.read() == b""
        assert process.wait(300) == 0
    assert json.loads(lines[-1]) == {"event": "link", "detail": "stopped"}


# The ClientApp.


def _message(content: RecordDict, kind: str = "query.wardround") -> Message:
    metadata = PbMetadata(run_id=1, message_id="m", src_node_id=1, dst_node_id=2, ttl=60, message_type=kind)
    return message_from_proto(PbMessage(metadata=metadata, content=recorddict_to_proto(content)))


def _context(**node_config: str | int) -> Context:
    return Context(1, 2, dict(node_config), RecordDict(), {})


def _ask(answer: Callable[[bytes], bytes], content: RecordDict) -> Message:
    return make_app(lambda context: answer)(_message(content), _context())


def test_the_app_passes_a_blob_in_and_a_blob_out() -> None:
    assert unpack(_ask(lambda blob: blob[::-1], pack(b"abc")).content) == b"cba"


def test_what_is_no_message_of_ours_gets_a_fixed_text() -> None:
    reply = _ask(lambda blob: blob, RecordDict())
    assert reply.error.reason == NOT_A_MESSAGE


def test_an_exception_never_leaves(caplog: pytest.LogCaptureFixture) -> None:
    def fails(blob: bytes) -> bytes:
        raise RuntimeError(SECRET)

    with caplog.at_level(logging.ERROR):
        reply = _ask(fails, pack(b"abc"))
    assert reply.error.reason == CANNOT_ANSWER
    assert SECRET not in repr(reply)
    assert SECRET in caplog.text  # it is for the hospital's own log


def test_a_hospital_that_cannot_be_opened_is_a_fixed_text() -> None:
    def find(context: Context) -> Callable[[bytes], bytes]:
        raise ConfigError(SECRET)

    reply = make_app(find)(_message(pack(b"abc")), _context())
    assert reply.error.reason == CANNOT_ANSWER


def test_which_home_a_node_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HOSPITAL, HOSPITALS_DIR):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no hospital is configured"):
        home_of(_context())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hospital.toml").touch()
    monkeypatch.setenv(HOSPITALS_DIR, str(tmp_path))
    assert home_of(_context(**{"partition-id": 1})) == tmp_path / "b"
    with pytest.raises(ConfigError, match="partition 2"):
        home_of(_context(**{"partition-id": 2}))
    monkeypatch.setenv(HOSPITAL, "/from/environment")
    assert home_of(_context()) == Path("/from/environment")
    assert home_of(_context(hospital="/from/node-config")) == Path("/from/node-config")
