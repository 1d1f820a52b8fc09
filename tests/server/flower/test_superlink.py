"""The coordinator as a process: what hospitals reach, what its own user reaches, and nobody else."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.server.test_hospitals import card

from wardround.errors import PortInUse, Unreachable, Untrusted
from wardround_server.commands import app
from wardround_server.flower.control import ControlApi
from wardround_server.flower.serve import Ports, serve
from wardround_server.home import Home
from wardround_server.hospitals import Registry
from wardround_server.network import tls


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A coordinator that runs."""
    folder = tmp_path_factory.mktemp("coordinator")
    ports = ["--port", "0", "--admin-port", "0", "--health-port", "0"]
    assert CliRunner().invoke(app, ["init", str(folder), *ports]).exit_code == 0
    Registry(folder).add(card("noted-while-down"))
    process = start(folder)
    yield folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 0
    assert not (folder / "up.json").exists()


def start(folder: Path) -> subprocess.Popen[str]:
    code = "from wardround_server.commands import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "up", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert process.stdout is not None
    with process.stdout:
        assert "is up" in process.stdout.readline()
    return process


def ask(home: Path, port: str, method: str, path: str) -> int:
    address = f"https://127.0.0.1:{Home(home).running()[port]}{path}"
    trust = ssl.create_default_context(cafile=str(Home(home).tls.ca))
    request = urllib.request.Request(address, method=method, data=b"" if method == "POST" else None)
    try:
        with urllib.request.urlopen(request, context=trust, timeout=120) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_hospitals_reach_the_fleet_paths_alone(home: Path) -> None:
    assert ask(home, "fleet", "GET", "/health") == 200
    assert ask(home, "fleet", "POST", "/v1/fleet/pull-messages") not in (200, 404)
    for path in (
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/fleet/register-node",
        "/v1/runtime/get-nodes",
    ):
        assert ask(home, "fleet", "POST", path) == 404, path
    assert ask(home, "fleet", "GET", "/docs") == 404
    assert ask(home, "admin", "GET", "/health") == 200


def test_the_standard_health_check_answers(home: Path) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{Home(home).running()['health']}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=120)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_hospitals_are_registered_once_while_it_is_down_or_up(home: Path, tmp_path: Path) -> None:
    first = {hospital.name: hospital.node_id for hospital in Registry(home)}
    assert first["noted-while-down"] is not None
    path = tmp_path / "join.json"
    path.write_text(card("joined-later").model_dump_json())
    for _ in range(2):
        assert CliRunner().invoke(app, ["register", str(home), str(path)]).exit_code == 0
    later = {hospital.name: hospital.node_id for hospital in Registry(home)}
    assert later["noted-while-down"] == first["noted-while-down"]
    with ControlApi(Home(home).running()["admin"], Home(home).tls.ca) as control:
        assert control.seen()[later["joined-later"] or 0].status == "registered"
        assert len(control.seen()) == len(later)
    status = json.loads(CliRunner().invoke(app, ["status", str(home), "--json"]).stdout)
    assert status["up"] is True
    assert {h["hospital"] for h in status["hospitals"]} == set(later)


def test_the_invitation_names_the_port_that_was_taken(home: Path) -> None:
    assert f'address = "127.0.0.1:{Home(home).running()["fleet"]}"' in (home / "invitation.toml").read_text()


def test_another_ca_is_not_trusted(home: Path, tmp_path: Path) -> None:
    other = tls.create(tmp_path / "other", ["127.0.0.1"])
    with ControlApi(Home(home).running()["admin"], other.ca) as control, pytest.raises(Untrusted):
        control.seen()


def test_nobody_at_the_address(tmp_path: Path) -> None:
    files = tls.create(tmp_path, ["127.0.0.1"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with ControlApi(free.getsockname()[1], files.ca) as control, pytest.raises(Unreachable, match="up"):
            control.seen()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", ["127.0.0.1"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 for hospitals"):
            serve(tmp_path, files, Ports("127.0.0.1", port, 0, 0), lambda _: None)
