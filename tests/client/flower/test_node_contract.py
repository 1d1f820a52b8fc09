"""One test for each private Flower symbol that flower/fleet.py uses, so that an upgrade fails by its name."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

import pytest

SYMBOLS: dict[str, tuple[str, ...] | None] = {
    "flwr.app.message.remove_content_from_message": ("message",),
    "flwr.common.serde.message_from_proto": ("message_proto",),
    "flwr.common.serde.message_to_proto": ("message",),
    "flwr.supercore.inflatable.inflatable_object.get_all_nested_objects": ("obj",),
    "flwr.supercore.inflatable.inflatable_object.get_object_tree": ("obj",),
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": ("tree",),
    "flwr.supercore.inflatable.inflatable_object.no_object_id_recompute": (),
    "flwr.supercore.inflatable.inflatable_protobuf_utils.make_confirm_message_received_fn_protobuf": (
        "confirm_message_received_protobuf",
        "node",
        "run_id",
    ),
    "flwr.supercore.inflatable.inflatable_protobuf_utils.make_pull_object_fn_protobuf": (
        "pull_object_protobuf",
        "node",
        "run_id",
    ),
    "flwr.supercore.inflatable.inflatable_protobuf_utils.make_push_object_fn_protobuf": (
        "push_object_protobuf",
        "node",
        "run_id",
        "session_id",
    ),
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": ("object_id", "object_contents"),
    "flwr.supercore.inflatable.inflatable_utils.pull_objects": ("object_ids", "pull_object_fn"),
    "flwr.supercore.inflatable.inflatable_utils.push_object_contents_from_iterable": (
        "object_contents",
        "push_object_fn",
    ),
    "flwr.supercore.runtime_version_compatibility.RuntimeVersionMetadata.from_local_component": ("component_name",),
    "flwr.supercore.runtime_version_compatibility.RuntimeVersionMetadata.as_metadata": (),
    "flwr.supercore.runtime_version_compatibility.get_runtime_version_incompatibility_exit_message": (
        "serialized_error",
    ),
    "flwr.supercore.protobuf.client.ProtobufCall": None,
    "flwr.supercore.protobuf.client.ProtobufRequestContext": ("rpc_method", "message", "request"),
    "flwr.supercore.primitives.asymmetric.public_key_to_bytes": ("public_key",),
    "flwr.supernode.fleet_http_client.FleetHttpClient": ("base_url", "interceptors"),
    "flwr.supercore.primitives.asymmetric.sign_message": ("private_key", "message"),
    "flwr.common.constant.TIMESTAMP_HEADER": None,
    "flwr.supercore.constant.FLEET_HTTP_PUBLIC_KEY_HEADER": None,
    "flwr.supercore.constant.FLEET_HTTP_SIGNATURE_HEADER": None,
}
CALLS = (
    "ActivateNode",
    "DeactivateNode",
    "SendNodeHeartbeat",
    "PullMessages",
    "PushMessages",
    "GetRun",
    "PushObject",
    "PullObject",
    "ConfirmMessageReceived",
)
FIELDS = {
    "fleet_pb2.ActivateNodeRequest": {"public_key", "heartbeat_interval"},
    "fleet_pb2.ActivateNodeResponse": {"node_id"},
    "fleet_pb2.DeactivateNodeRequest": {"node_id"},
    "fleet_pb2.PullMessagesRequest": {"node"},
    "fleet_pb2.PullMessagesResponse": {"messages_list", "message_object_trees"},
    "fleet_pb2.PushMessagesRequest": {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    },
    "fleet_pb2.PushMessagesResponse": {"objects_to_push", "session_id"},
    "heartbeat_pb2.SendNodeHeartbeatRequest": {"node", "heartbeat_interval"},
    "heartbeat_pb2.SendNodeHeartbeatResponse": {"success"},
    "message_pb2.ObjectTree": {"object_id", "children"},
    "node_pb2.Node": {"node_id"},
    "run_pb2.GetRunRequest": {"node", "run_id"},
    "run_pb2.Run": {"fab_hash"},
}


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return getattr(_find(module), name, None) if "." in module else None


@pytest.mark.parametrize("path", SYMBOLS, ids=lambda path: path.rpartition(".")[2])
def test_flower_still_has(path: str) -> None:
    found = _find(path)
    assert found is not None, f"Flower no longer has {path}, which fleet.py uses"
    wanted = SYMBOLS[path]
    if wanted is None:  # a type alias
        return
    parameters = tuple(name for name in inspect.signature(found).parameters if name not in ("cls", "self"))
    assert parameters[: len(wanted)] == wanted, f"{path} now takes {parameters}; fleet.py passes {wanted}"


@pytest.mark.parametrize("call", CALLS)
def test_the_fleet_client_still_calls(call: str) -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    method = getattr(FleetHttpClient, call, None)
    assert method is not None, f"FleetHttpClient no longer has {call}, which fleet.py calls"
    assert list(inspect.signature(method).parameters) == ["self", "request"], f"{call} takes other things"


@pytest.mark.parametrize("message", FIELDS)
def test_protobuf_still_has_the_fields_of(message: str) -> None:
    found = _find(f"flwr.proto.{message}")
    assert found is not None, f"Flower no longer has flwr.proto.{message}"
    missing = FIELDS[message] - set(found.DESCRIPTOR.fields_by_name)
    assert not missing, f"flwr.proto.{message} lost {sorted(missing)}, which fleet.py uses"


def test_error_code_of_an_invalid_bundle() -> None:
    from flwr.common.constant import ErrorCode

    from wardround_client.flower.app import ERROR_CODE

    assert isinstance(ErrorCode.INVALID_FAB, int), "ErrorCode.INVALID_FAB changed, which fleet.py sends"
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == ERROR_CODE, "Flower renumbered CLIENT_APP_RAISED_EXCEPTION"


def test_the_object_errors_are_still_exceptions() -> None:
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

    assert issubclass(ObjectPullError, Exception)
    assert issubclass(ObjectPushError, Exception)


def test_a_message_still_keeps_its_identity_where_the_node_writes_it() -> None:
    from flwr.app import RecordDict
    from flwr.common.serde import message_from_proto, recorddict_to_proto
    from flwr.proto.message_pb2 import Message, Metadata

    metadata = Metadata(message_type="query.wardround")
    message = message_from_proto(Message(metadata=metadata, content=recorddict_to_proto(RecordDict())))
    message.metadata.__dict__["_message_id"] = "abc"
    assert message.metadata.message_id == "abc", (
        "Metadata keeps message_id elsewhere: fleet.py sets it before it pushes"
    )


def test_the_coordinator_still_takes_our_heartbeats_and_believes_us_for_two_of_them() -> None:
    from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE

    from wardround_client.flower.pace import BELIEVED_S, SLOWEST_BEAT_S

    assert HEARTBEAT_MIN_INTERVAL <= BELIEVED_S <= HEARTBEAT_MAX_INTERVAL
    assert 3 * SLOWEST_BEAT_S <= HEARTBEAT_PATIENCE * BELIEVED_S, "three may fail before it is believed dead"


def test_the_client_still_sends_through_an_httpx_client_that_can_be_bounded() -> None:
    import httpx
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient

    with FleetHttpClient("https://127.0.0.1:1") as client:
        assert isinstance(client._client, httpx.Client), "fleet.py bounds what this client reads"
        client._client.close()
        asked: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            return httpx.Response(200)

        client._client = httpx.Client(transport=httpx.MockTransport(answer))
        client.PullMessages(PullMessagesRequest())
        assert asked == ["/v1/fleet/pull-messages"], "fleet.py gives it a client whose lines stay open"


def test_an_array_is_still_stored_so_that_its_length_can_be_told() -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from wardround_flower import pack
    from wardround_flower.parts import array_bytes

    for size in (100, 6 << 20):  # one chunk, and two
        stored = {name: part.deflate() for name, part in get_all_nested_objects(pack(os.urandom(size))).items()}
        assert size <= array_bytes(stored) <= size + 1000, "parts.py reads Flower's stored objects"
