"""Flower's SuperLink as the coordinator runs it, and the little of its Control API that we use.

ONE SuperLink behind two TLS listeners. Its Control API knows no accounts: whoever reaches it may register nodes and
start runs. So all of it listens on loopback, and hospitals reach a second port that serves the Fleet paths only.

This is the only file of the coordinator that uses private Flower API (flwr 1.41). Each symbol has a test that fails by
its name when Flower changes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import grpc
import httpx
import uvicorn
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import sql_mixin
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from wardround.errors import FederationError, PortInUse, Unreachable, Untrusted
from wardround_server.tls import TlsFiles, keep_valid

LOOPBACK = "127.0.0.1"
BUSY_TIMEOUT_MS = 60_000
PART_WAIT_S = 0.05
CLOSED_TO_HOSPITALS = frozenset({"/v1/fleet/register-node", "/v1/fleet/unregister-node"})
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """Where the coordinator listens. 0 means any free port. host is the one that hospitals reach."""

    host: str
    fleet: int
    admin: int
    health: int


class FleetOnly:
    """ASGI filter in front of the SuperLink: hospitals get POST /v1/fleet/* and GET /health, everything else is 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or end it."""
        if scope["type"] == "http" and _open_to_hospitals(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})


def _open_to_hospitals(method: str, path: str) -> bool:
    if path == "/health":
        return method == "GET"
    plain = path.startswith("/v1/fleet/") and "//" not in path and ".." not in path
    return method == "POST" and plain and path.rstrip("/") not in CLOSED_TO_HOSPITALS


def serve(home: Path, tls: TlsFiles, ports: Ports, ready: Callable[[Ports], None]) -> None:
    """Run the SuperLink until SIGTERM, or until SIGINT, which raises KeyboardInterrupt when all is tidied up.

    `ready` is told the real ports once everything listens.

    Raises: PortInUse; FederationError, when SuperExec (which starts the runs) cannot be started.
    """
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(_bound(ports.host, ports.fleet, "for hospitals"))
        admin = stack.enter_context(_bound(LOOPBACK, ports.admin, "for the coordinator's own commands"))
        checker = _bound(LOOPBACK, ports.health, "for health checks")
        real = Ports(ports.host, _port(fleet), _port(admin), _port(checker))
        checker.close()  # gRPC binds by itself
        stack.enter_context(_health_service(real.health))
        app = _flower_app(home / "superlink.db", tls, real.admin)
        with (home / "superexec.log").open("ab") as errors:
            asyncio.run(_serve(app, tls, fleet, admin, SuperExec(tls, real.admin, errors), lambda: ready(real)))


async def _serve(
    app: ASGIApp,
    tls: TlsFiles,
    fleet_socket: socket.socket,
    admin_socket: socket.socket,
    superexec: SuperExec,
    ready: Callable[[], None],
) -> None:
    def server(application: ASGIApp, lifespan: Literal["on", "off"]) -> uvicorn.Server:
        return _Quiet(
            uvicorn.Config(
                application,
                ssl_certfile=str(tls.certificate),
                ssl_keyfile=str(tls.key),
                log_config=None,
                access_log=False,
                lifespan=lifespan,
                timeout_graceful_shutdown=2,
            )
        )

    admin, fleet = server(app, "on"), server(FleetOnly(app), "off")
    heard: list[signal.Signals] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(kind, heard.append, kind)
    serving = asyncio.create_task(fleet.serve(sockets=[fleet_socket]))
    try:
        administration = asyncio.create_task(admin.serve(sockets=[admin_socket]))
        while not (admin.started and fleet.started) and not administration.done():
            await asyncio.sleep(0.02)
        if not administration.done():
            superexec.start()
            await asyncio.to_thread(ready)  # it calls the Control API, which this loop serves
        renewal = asyncio.create_task(keep_valid(tls, [each.config.ssl for each in (admin, fleet) if each.config.ssl]))
        while not administration.done() and not heard:
            superexec.keep_alive()
            await asyncio.wait([administration], timeout=0.2)
        renewal.cancel()
        admin.should_exit = True
        await administration
    finally:
        superexec.stop()
        fleet.should_exit = True
        await serving
    if signal.SIGINT in heard:
        raise KeyboardInterrupt


class _Quiet(uvicorn.Server):
    """A server that leaves the signals to us; uvicorn's own would end the process before we have tidied up."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SuperExec:
    """Flower's `flower-superexec`, which starts a process for each run. It is restarted when it dies."""

    def __init__(self, tls: TlsFiles, admin_port: int, output: IO[bytes]) -> None:
        self._command = [
            str(Path(sys.executable).with_name("flower-superexec")),
            *("--root-certificates", str(tls.ca)),
            *("--runtime-api-address", f"{LOOPBACK}:{admin_port}"),
            *("--parent-pid", str(os.getpid())),
        ]
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises: FederationError."""
        # It looks its own helpers up on PATH, where a virtual environment that is not activated is missing.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=os.environ | {"PATH": path, "WARDROUND_COORDINATOR_PID": str(os.getpid())},
                start_new_session=True,  # Ctrl-C at the terminal is for the coordinator; it then stops this one
            )
        except OSError as error:
            raise FederationError(
                f"flower-superexec cannot be started ({error.strerror})", do="install flwr beside wardround"
            ) from None

    def keep_alive(self) -> None:
        """Start it again if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            log.warning("flower-superexec ended with %s: starting it again", self._process.returncode)
            self.start()

    def stop(self) -> None:
        """Stop it, and with it the runs that it started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _flower_app(database: Path, tls: TlsFiles, admin_port: int) -> ASGIApp:
    """The SuperLink's FastAPI application, with SQLite for state and RAM for messages.

    Messages in SQLite took twice the time at 50 MB, and locked the database at 400 MB.
    """
    pragmas = dict(vars(sql_mixin)["SQLITE_PRAGMAS"]) | {"busy_timeout": str(BUSY_TIMEOUT_MS)}
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())

    def factories(_: str, federation_manager: Any) -> tuple[ObjectStoreFactory, LinkStateFactory]:
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        return objects, LinkStateFactory(str(database), federation_manager, objects)

    vars(superlink_main)["get_objectstore_linkstate_factories"] = factories
    config = SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:0",
        health_server_address=None,
        host=LOOPBACK,
        port=admin_port,
        insecure=False,
        certificates=(tls.ca.read_bytes(), tls.certificate.read_bytes(), tls.key.read_bytes()),
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(tls.ca),
        ssl_certfile=str(tls.certificate),
        ssl_keyfile=str(tls.key),
        database=str(database),
        isolation="process",  # we start SuperExec ourselves: then its output has a file, and it is restarted
        runtime_dependency_install=False,
    )
    return superlink_main.create_app(config, SuperLinkLifespan)


@contextmanager
def _health_service(port: int) -> Iterator[None]:
    """The standard gRPC health service (grpc.health.v1) on loopback, SERVING for as long as this lasts."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    try:
        server.add_insecure_port(f"{LOOPBACK}:{port}")
    except RuntimeError:
        raise PortInUse(f"port {port} for health checks is in use", do="set another health_port") from None
    server.start()
    service.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        service.enter_graceful_shutdown()
        server.stop(grace=1).wait()


def _bound(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket. Raises: PortInUse, also for a host that is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise PortInUse(
            f"{host!r} is no address to listen on ({error.strerror})", do="set another listen.host in coordinator.toml"
        ) from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(256)
    except OSError as error:
        found.close()
        raise PortInUse(
            f"port {port} of {host} {purpose} cannot be taken ({error.strerror})",
            do="stop the program that listens there, or set another port in coordinator.toml",
        ) from None
    return found


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


class Control:
    """The Control API of our own SuperLink on loopback, as a context manager."""

    def __init__(self, admin_port: int, ca: Path) -> None:
        self._address = f"{LOOPBACK}:{admin_port}"
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

    def register(self, name: str, key_pem: bytes) -> int:
        """Register a hospital's node key; an already registered one keeps its node id. -> node id."""
        with self._explained():
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info:
                if node.public_key == key_pem and not node.unregistered_at:
                    return int(node.node_id)
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key_pem, name=name)).node_id)

    def nodes(self) -> dict[int, str]:
        """Node id -> "registered", "online", "offline" or "unregistered"."""
        with self._explained():
            return {int(node.node_id): node.status for node in self._client.ListNodes(ListNodesRequest()).nodes_info}

    def start_run(self, bundle: bytes, config: dict[str, str | bool]) -> int:
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
        """-> (pending, starting, running or finished; what Flower says of a finished one)."""
        with self._explained():
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return found.status, f"{found.sub_status} {found.details}".strip()

    def stop_run(self, run_id: int) -> None:
        """Stop a run; one that has ended stays as it is."""
        with contextlib.suppress(FederationError), self._explained():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise FederationError(
                f"the coordinator answered {error.response.status_code}: {error.response.text[:200]}",
                do="read coordinator.log in the coordinator's home",
            ) from None
        except httpx.TransportError as error:
            if "CERTIFICATE" in str(error).upper():
                raise Untrusted(
                    f"who answers at {self._address} is not this coordinator ({error})", do="check admin_port"
                ) from None
            raise Unreachable(
                f"no coordinator answers at {self._address}", do="start it with `wardround coordinator up`"
            ) from None


def ask_again_soon() -> None:
    """Make Flower's Grid ask again soon for a part of a reply that is still on its way.

    A reply is announced before its parts have arrived, and the Grid then waits a second: half of a quick round. The
    Grid takes no option for it, so its default is changed (private; a test fails by its name when Flower changes it).
    """
    defaults = pull_objects.__kwdefaults__ or {}
    if "initial_backoff" in defaults:
        defaults["initial_backoff"] = PART_WAIT_S
