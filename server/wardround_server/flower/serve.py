"""The coordinator, serving: Flower's SuperLink behind two TLS listeners, and the process that starts its runs.

The Control API knows no accounts: who reaches it may register nodes and start runs. So the SuperLink listens on
loopback, for processes of the coordinator's own user alone (wardround.web.peers); hospitals reach a second port behind
a gate (network/gate.py) and a door (door.py), which serves the Fleet paths only.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from wardround.errors import FederationError
from wardround.web.peers import TABLES, is_the_owner
from wardround_server.flower.door import Door
from wardround_server.flower.news import News
from wardround_server.flower.starts import Starts
from wardround_server.flower.superexec import SuperExec
from wardround_server.flower.superlink import Superlink, flower_app
from wardround_server.network.gate import Gate, tls_context, watched
from wardround_server.network.limits import HEAD_BYTES, SILENT_HOSPITAL_S, Connections, connections, forget_runs
from wardround_server.network.listening import LOOPBACK, health_service, listening, port_of
from wardround_server.network.tls import TlsFiles, keep_valid


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
        fleet = stack.enter_context(listening(ports.host, ports.fleet, "for hospitals"))
        admin = stack.enter_context(listening(LOOPBACK, ports.admin, "for the coordinator's own commands"))
        checker = listening(LOOPBACK, ports.health, "for health checks")
        real = Ports(ports.host, port_of(fleet), port_of(admin), port_of(checker))
        checker.close()  # gRPC binds by itself
        stack.enter_context(health_service(real.health))
        superlink = flower_app(home / "superlink.db", tls, real.admin)
        with (home / "superexec.log").open("ab") as errors:
            superexec = SuperExec(tls, real.admin, errors)
            asyncio.run(_serve(superlink, home, tls, fleet, admin, bounds, superexec, lambda: ready(real)))


async def _serve(
    superlink: Superlink,
    home: Path,
    tls: TlsFiles,
    fleet_socket: socket.socket,
    admin_socket: socket.socket,
    bounds: Connections,
    superexec: SuperExec,
    ready: Callable[[], None],
) -> None:
    context = tls_context(str(tls.certificate), str(tls.key))
    news = News(superlink.app, superlink.waiting)
    administration = _uvicorn(watched(Starts(news, superlink.fail)), lifespan=True)
    own = Gate(admin_socket, administration, context, bounds, is_the_owner)
    door = Door(
        superlink.app, home, superlink.store, lambda connection, owner: hospitals.becomes_known(connection, owner), news
    )
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
