"""The little of Flower's Control API that the coordinator uses."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from wardround.errors import FederationError, StorageError, Unreachable, Untrusted, WardroundError
from wardround.files import room_on_disk
from wardround.proxies import spare_loopback
from wardround.text import shown
from wardround_server.flower.reasons import ended
from wardround_server.home import Home
from wardround_server.hospitals import LastSeen
from wardround_server.network.listening import LOOPBACK


class ControlApi:
    """The Control API of our own SuperLink on loopback, as a context manager."""

    def __init__(self, admin_port: int, ca: Path) -> None:
        self._address, self._home = f"{LOOPBACK}:{admin_port}", ca.absolute().parent.parent
        spare_loopback()
        try:
            certificate = ca.read_bytes()
        except OSError as error:
            raise Untrusted(f"{ca}: cannot be read ({error.strerror})", do="run `coordinator init`") from None
        self._client = ControlHttpClient.from_server_address(
            server_address=self._address,
            insecure=False,
            root_certificates=certificate,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def keys(self) -> dict[bytes, int]:
        """Node keys that are registered -> node id."""
        with self._explained():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {node.public_key: int(node.node_id) for node in nodes if not node.unregistered_at}

    def register(self, name: str, key_pem: bytes) -> int:
        """Register a hospital's node key, which is not registered. -> node id."""
        with self._explained():
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key_pem, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Forget a node: its session ends, and its key opens nothing any more."""
        with self._explained():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def seen(self) -> dict[int, LastSeen]:
        """Node id -> whether it is there, and since when it is silent."""
        with self._explained():
            nodes, now = self._client.ListNodes(ListNodesRequest()).nodes_info, time.time()
        found = {}
        for node in nodes:
            # Flower believes a node until so many intervals after its last sign of life, or until it took its leave.
            patience_s = HEARTBEAT_PATIENCE * node.heartbeat_interval if node.status == "online" else 0.0
            ago_s = max(0.0, now - node.online_until + patience_s) if node.online_until else None
            found[int(node.node_id)] = LastSeen(node.status, ago_s, node.heartbeat_interval)
        return found

    def start_run(self, bundle: bytes, config: Mapping[str, str | bool]) -> int:
        """Submit a bundle with overrides of its run config -> run id. Raises: FederationError."""
        with self._explained():
            response = self._client.StartRun(
                StartRunRequest(
                    fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
                    override_config=user_config_to_proto(dict(config)),
                )
            )
        if not response.HasField("run_id"):
            raise FederationError("Flower did not accept the run", do="read coordinator.log in the coordinator's home")
        return int(response.run_id)

    def run_status(self, run_id: int) -> tuple[str, str]:
        """-> (pending, starting, running or finished; what Flower says of a finished one).

        "unknown" where the coordinator's process lives and does not say: that it is busy is no news of the run.
        """
        try:
            with self._explained():
                found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        except Unreachable:
            Home(self._home).running()
            return "unknown", ""
        return found.status, f"{found.sub_status} {ended(found.details)}".strip()

    def stop_run(self, run_id: int) -> None:
        """Stop a run; one that has ended stays as it is."""
        with contextlib.suppress(FederationError), self._explained():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise self._refused(error.response) from None
        except httpx.TransportError as error:
            if "CERTIFICATE" in str(error).upper():
                raise Untrusted(
                    f"who answers at {self._address} is not this coordinator ({error})", do="check admin_port"
                ) from None
            raise Unreachable(
                f"no coordinator answers at {self._address}",
                do="start it with `wardround coordinator up`; if it is up, give this command as the same user",
            ) from None

    def _refused(self, response: httpx.Response) -> WardroundError:
        if not room_on_disk(self._home):
            return StorageError(f"the disk of {self._home} is full", do="make room; nothing that was answered is lost")
        return FederationError(
            f"the coordinator answered {response.status_code}: {shown(response.text)}",
            do="read coordinator.log in the coordinator's home",
        )
