"""Flower's private symbols that the coordinator stands on, each by name; and the real thing, started as a process."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
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
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.superlink.routers.fleet import node_auth
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.server.test_hospitals import card
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround.errors import PortInUse, Unreachable, Untrusted
from wardround_server.commands import app
from wardround_server.flower import door
from wardround_server.flower.control import ControlApi
from wardround_server.flower.serve import Ports, serve
from wardround_server.home import Home
from wardround_server.hospitals import Registry
from wardround_server.network import tls

FIELDS = {
    "control_address", "health_server_address", "host", "port", "insecure", "certificates", "superexec_auth_secret",
    "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log", "artifact_provider",
    "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile",
    "ssl_keyfile", "database", "isolation", "runtime_dependency_install",
}  # fmt: skip
SYMBOLS = {
    "flwr.superlink.main.create_app": ("config", "superlink_lifespan_class"),
    "flwr.superlink.main.get_objectstore_linkstate_factories": ("database", "federation_manager"),
    "flwr.superlink.cli.flower_superlink.SuperLinkLifespan": ("config", "state_factory"),
    "flwr.superlink.auth_plugin.NoOpControlAuthnPlugin": (),
    "flwr.server.superlink.linkstate.LinkStateFactory": ("database", "federation_manager", "objectstore_factory"),
    "flwr.supercore.object_store.ObjectStoreFactory": ("database",),
    "flwr.supercore.fab.Fab": ("hash_str", "content", "verifications"),
    "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": ("component_name",),
    "flwr.supercore.control.ControlHttpClient.from_server_address": (
        "server_address", "insecure", "root_certificates", "interceptors", "retry_invoker",
    ),
    "flwr.supercore.control.ControlHttpClient.StartRun": ("self", "request"),
    "flwr.supercore.control.ControlHttpClient.StopRun": ("self", "request"),
    "flwr.supercore.control.ControlHttpClient.ListRuns": ("self", "request"),
    "flwr.supercore.control.ControlHttpClient.ListNodes": ("self", "request"),
    "flwr.supercore.control.ControlHttpClient.RegisterNode": ("self", "request"),
    "flwr.supercore.control.ControlHttpClient.UnregisterNode": ("self", "request"),
    "flwr.superlink.grid.http_grid.HttpGrid": ("runtime_api_address", "insecure", "root_certificates", "token"),
    "flwr.supercore.runtime.RuntimeHttpClient.PullMessages": ("self", "request"),
    "flwr.supercore.runtime.RuntimeHttpClient.PullObject": ("self", "request"),
    "flwr.supercore.runtime.RuntimeHttpClient.ConfirmMessageReceived": ("self", "request"),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": ("tree",),
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": (
        "object_id", "object_contents", "keep_object_contents", "objects",
    ),
    "flwr.supercore.object_store.ObjectStore.__contains__": ("self", "object_id"),
    "flwr.supercore.primitives.asymmetric.bytes_to_public_key": ("public_key_bytes",),
    "flwr.supercore.primitives.asymmetric.verify_signature": ("public_key", "message", "signature"),
    "flwr.common.serde.fab_to_proto": ("fab",),
    "flwr.common.serde.user_config_to_proto": ("user_config",),
}  # fmt: skip


def find(path: str) -> object:
    module, names = path, list[str]()
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            assert module, f"flwr changed: {path} is gone"
            names.insert(0, name)
    for name in names:
        assert hasattr(found, name), f"flwr changed: {path} is gone"
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", SYMBOLS)
def test_contract_with_flower(path: str) -> None:
    found = find(path)
    assert callable(found)
    parameters = tuple(inspect.signature(found).parameters)
    assert parameters == SYMBOLS[path], f"flwr changed: {path} now takes {parameters}"


def test_contract_with_flower_superlink_lifespan_config() -> None:
    found = find("flwr.superlink.config_loader.SuperLinkLifespanConfig")
    assert isinstance(found, type)
    assert dataclasses.is_dataclass(found)
    fields = {field.name for field in dataclasses.fields(found)}
    assert fields == FIELDS, f"flwr changed: SuperLinkLifespanConfig differs in {fields ^ FIELDS}"


def test_contract_with_flower_grid_over_http() -> None:
    found = find("flwr.superlink.grid.http_grid.HttpGrid")
    assert isinstance(found, type)
    assert isinstance(vars(found)["_runtime_client"], property), "flwr changed: HttpGrid._runtime_client is gone"
    grid = found(token="a")
    assert grid.node.node_id == find("flwr.common.constant.SUPERLINK_NODE_ID"), "flwr changed: HttpGrid.node"


def test_contract_with_flower_fleet_paths() -> None:
    """What the door lets through are the Fleet API's paths, without those that register nodes."""
    types = find("flwr.supercore.protobuf.translation.PROTOBUF_REQUEST_TYPES")
    assert isinstance(types, dict)
    fleet = {path for method, path in types if path.startswith("/v1/fleet/") and method == "POST"}
    assert fleet - door.PATHS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert types["POST", "/v1/fleet/push-messages"] is PushMessagesRequest
    assert types["POST", "/v1/fleet/push-object"] is PushObjectRequest


def test_contract_with_flower_node_authentication() -> None:
    """The door reads the same headers in the same way as Flower's own authentication."""
    source = inspect.getsource(node_auth.authenticate_node)
    for name in (
        *("FLEET_HTTP_PUBLIC_KEY_HEADER", "FLEET_HTTP_SIGNATURE_HEADER", "TIMESTAMP_HEADER"),
        *("SYSTEM_TIME_TOLERANCE", "TIMESTAMP_TOLERANCE", "verify_signature", "bytes_to_public_key"),
    ):
        assert name in source, f"flwr changed: nodes are authenticated without {name}"


def test_contract_with_uvicorn_protocol() -> None:
    parameters = tuple(inspect.signature(H11Protocol).parameters)
    assert parameters == ("config", "server_state", "app_state", "_loop"), "uvicorn changed: H11Protocol"


def test_contract_with_flower_sqlite_pragmas() -> None:
    found = find("flwr.supercore.sql_mixin.SQLITE_PRAGMAS")
    assert isinstance(found, tuple)
    assert "busy_timeout" in dict(found), "flwr changed: SQLITE_PRAGMAS has no busy_timeout"


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
    assert process.wait(timeout=20) == 0
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
        with urllib.request.urlopen(request, context=trust, timeout=10) as response:
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
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
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
        assert control.nodes()[later["joined-later"] or 0] == "registered"
        assert len(control.nodes()) == len(later)
    status = json.loads(CliRunner().invoke(app, ["status", str(home), "--json"]).stdout)
    assert status["up"] is True
    assert {h["hospital"] for h in status["hospitals"]} == set(later)


def test_the_invitation_names_the_port_that_was_taken(home: Path) -> None:
    assert f'address = "127.0.0.1:{Home(home).running()["fleet"]}"' in (home / "invitation.toml").read_text()


def test_another_ca_is_not_trusted(home: Path, tmp_path: Path) -> None:
    other = tls.create(tmp_path / "other", ["127.0.0.1"])
    with ControlApi(Home(home).running()["admin"], other.ca) as control, pytest.raises(Untrusted):
        control.nodes()


def test_nobody_at_the_address(tmp_path: Path) -> None:
    files = tls.create(tmp_path, ["127.0.0.1"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with ControlApi(free.getsockname()[1], files.ca) as control, pytest.raises(Unreachable, match="up"):
            control.nodes()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", ["127.0.0.1"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 for hospitals"):
            serve(tmp_path, files, Ports("127.0.0.1", port, 0, 0), lambda _: None)
