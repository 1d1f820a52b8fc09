"""Flower's SuperLink as the coordinator runs it, and the little of its Control API that we use.

ONE SuperLink behind two TLS listeners. Its Control API knows no accounts: whoever reaches it may register nodes and
start runs. So all of it listens on loopback, for processes of the coordinator's own user alone (peers.py); hospitals
reach a second port behind a gate (gate.py) and a door (door.py), which serves the Fleet paths only.

Private Flower API (flwr 1.42) is used here, in door.py and in mail.py, and nowhere else in the coordinator. Each symbol
has a test that fails by its name when Flower changes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import grpc
import httpx
import uvicorn
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
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import sql_mixin
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStore, ObjectStoreFactory
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from wardround.errors import FederationError, PortInUse, StorageError, Unreachable, Untrusted, WardroundError
from wardround.files import room_on_disk
from wardround.proxies import spare_loopback
from wardround.text import shown
from wardround_server.flower.door import Door
from wardround_server.hospitals import Seen
from wardround_server.network.gate import Gate, tls_context, watched
from wardround_server.network.limits import HEAD_BYTES, SILENT_HOSPITAL_S, Connections, connections, forget_runs
from wardround_server.network.peers import TABLES, is_the_owner
from wardround_server.network.tls import TlsFiles, keep_valid

LOOPBACK = "127.0.0.1"
BUSY_TIMEOUT_MS = 60_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """Where the coordinator listens. 0 means any free port. host is the one that hospitals reach."""

    host: str
    fleet: int
    admin: int
    health: int


def serve(
    home: Path, tls: TlsFiles, ports: Ports, ready: Callable[[Ports], None], bounds: Connections | None = None
) -> None:
    """Run the SuperLink until SIGTERM, or until SIGINT, which raises KeyboardInterrupt when all is tidied up.

    `ready` is told the real ports once everything listens. `bounds`: on the hospitals' connections.

    Raises: PortInUse; FederationError, when SuperExec (which starts the runs) cannot be started, or when this system
        does not say whose process dials the control port; StorageError, when superlink.db is damaged.
    """
    if not TABLES[socket.AF_INET].exists():
        raise FederationError(
            f"this system has no {TABLES[socket.AF_INET]}, so nobody can tell who dials the control port",
            do="run the coordinator on Linux",
        )
    bounds = connections(bounds or Connections())
    forget_runs(home)
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(_bound(ports.host, ports.fleet, "for hospitals"))
        admin = stack.enter_context(_bound(LOOPBACK, ports.admin, "for the coordinator's own commands"))
        checker = _bound(LOOPBACK, ports.health, "for health checks")
        real = Ports(ports.host, _port(fleet), _port(admin), _port(checker))
        checker.close()  # gRPC binds by itself
        stack.enter_context(_health_service(real.health))
        app, store = _flower_app(home / "superlink.db", tls, real.admin)
        with (home / "superexec.log").open("ab") as errors:
            superexec = SuperExec(tls, real.admin, errors)
            asyncio.run(_serve(app, store, home, tls, fleet, admin, bounds, superexec, lambda: ready(real)))


async def _serve(
    app: ASGIApp,
    store: ObjectStore,
    home: Path,
    tls: TlsFiles,
    fleet_socket: socket.socket,
    admin_socket: socket.socket,
    bounds: Connections,
    superexec: SuperExec,
    ready: Callable[[], None],
) -> None:
    context = tls_context(str(tls.certificate), str(tls.key))
    administration = _uvicorn(watched(app), lifespan=True)
    own = Gate(admin_socket, administration, context, bounds, is_the_owner)
    door = Door(app, home, store, lambda connection, owner: hospitals.becomes_known(connection, owner))
    fleet = _uvicorn(watched(door), lifespan=False)
    hospitals = Gate(fleet_socket, fleet, context, bounds)
    heard: list[signal.Signals] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(kind, heard.append, kind)
    serving = [asyncio.create_task(each.serve(sockets=[])) for each in (administration, fleet)]
    accepting: list[asyncio.Task[None]] = []
    try:
        while not (administration.started and fleet.started) and not serving[0].done():
            await asyncio.sleep(0.02)
        if not serving[0].done():
            working = (own.run(), hospitals.run(), keep_valid(tls, [context]))
            accepting = [asyncio.create_task(each) for each in working]
            superexec.start()
            await asyncio.to_thread(ready)  # it calls the Control API, which this loop serves
        while not serving[0].done() and not heard:
            superexec.keep_alive()
            await asyncio.wait([*serving, *accepting], timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            if ended := [each for each in accepting if each.done()]:
                await ended[0]  # raises what ended it
    finally:
        superexec.stop()
        for each in accepting:
            each.cancel()
        administration.should_exit = fleet.should_exit = True
        await asyncio.gather(*serving, *accepting, return_exceptions=True)
    if signal.SIGINT in heard:
        raise KeyboardInterrupt


def _uvicorn(app: ASGIApp, *, lifespan: bool) -> uvicorn.Server:
    """A server without sockets: a gate gives it connections."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on" if lifespan else "off",
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=int(SILENT_HOSPITAL_S),
        timeout_graceful_shutdown=2,
        server_header=False,
        proxy_headers=False,
    )
    return _Quiet(config)


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
        spare_loopback()
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


def _flower_app(database: Path, tls: TlsFiles, admin_port: int) -> tuple[ASGIApp, ObjectStore]:
    """The SuperLink's FastAPI application, with SQLite for state and RAM for messages, and that RAM.

    Messages in SQLite took twice the time at 50 MB, and locked the database at 400 MB.

    Raises: StorageError, when the database cannot be used.
    """
    _check_database(database)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    pragmas = dict(vars(sql_mixin)["SQLITE_PRAGMAS"]) | {"busy_timeout": str(BUSY_TIMEOUT_MS)}
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())

    def factories(_: str, federation_manager: Any) -> tuple[ObjectStoreFactory, LinkStateFactory]:
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
    try:
        return superlink_main.create_app(config, SuperLinkLifespan), objects.store()
    except Exception as error:  # SQLAlchemy's and alembic's have no root in common
        log.exception("Flower's database cannot be opened")
        raise _damaged(database, type(error).__name__) from None


def _check_database(database: Path) -> None:
    """Read Flower's database through, if there is one. Raises: StorageError."""
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            said = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        raise _damaged(database, said)


def _damaged(database: Path, why: str) -> StorageError:
    return StorageError(
        f"{database} cannot be used ({shown(why)})",
        do=f"`mv {database} {database}.damaged`, and start again: hospitals.json says who is registered, and every run "
        "goes on from its checkpoint with --resume",
    )


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
    if family == socket.AF_INET6:  # "::" is every address of the machine, of both kinds
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
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

    def register(self, name: str, key_pem: bytes) -> int:
        """Register a hospital's node key; an already registered one keeps its node id. -> node id."""
        with self._explained():
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info:
                if node.public_key == key_pem and not node.unregistered_at:
                    return int(node.node_id)
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key_pem, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Forget a node: its session ends, and its key opens nothing any more."""
        with self._explained():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> dict[int, str]:
        """Node id -> "registered", "online", "offline" or "unregistered"."""
        return {node_id: seen.status for node_id, seen in self.seen().items()}

    def seen(self) -> dict[int, Seen]:
        """Node id -> whether it is there, and since when it is silent."""
        with self._explained():
            nodes, now = self._client.ListNodes(ListNodesRequest()).nodes_info, time.time()
        found = {}
        for node in nodes:
            # Flower believes a node until so many intervals after its last sign of life, or until it took its leave.
            patience_s = HEARTBEAT_PATIENCE * node.heartbeat_interval if node.status == "online" else 0.0
            ago_s = max(0.0, now - node.online_until + patience_s) if node.online_until else None
            found[int(node.node_id)] = Seen(node.status, ago_s)
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
