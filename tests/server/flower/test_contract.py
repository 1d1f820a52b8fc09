"""Flower's private symbols that the coordinator stands on, each by name: an upgrade fails here first."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.superlink.routers.fleet import node_auth
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround_server.flower import door

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
    "flwr.supercore.inflatable.inflatable_utils.ObjectPushError": ("object_id", "run_id", "session_id"),
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
