"""`wardround coordinator up`: start the coordinator."""

from __future__ import annotations

from wardround.command import Command, JsonOption
from wardround.files import Held, private_folder
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home
from wardround_server.network import tls
from wardround_server.network.limits import Connections
from wardround_server.office.hospitals import register_nodes


def up(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Start the coordinator and stay until SIGTERM or Ctrl-C. Flower's own log goes to coordinator.log."""
    coordinator = Home(home.absolute())
    config = coordinator.config()
    private_folder(coordinator.folder)
    tls.create(coordinator.tls.folder, [config.address])
    from wardround_server.flower.environment import prepare

    prepare(coordinator.folder, config.operations.log_format)  # Flower reads its environment when it is imported
    from wardround.files import locked
    from wardround_server.flower.serve import Ports, serve
    from wardround_server.operations import watched

    def ready(ports: Ports) -> None:
        coordinator.announce({"fleet": ports.fleet, "admin": ports.admin, "health": ports.health})
        register_nodes(coordinator, ports.admin)
        coordinator.invite(config, ports.fleet)
        address = f"{config.address}:{ports.fleet}"
        if as_json:
            emit(event="up", address=address, admin_port=ports.admin, health_port=ports.health)
        else:
            say(f"The coordinator is up: hospitals dial {address}.")

    wanted = Ports(config.listen.host, config.listen.port, config.listen.admin_port, config.listen.health_port)
    bounds = Connections(
        all=config.limits.connections,
        strangers=config.limits.connections // 2,
        an_address=config.limits.connections_per_address,
    )
    busy = Held(f"a coordinator runs on {home} already", do="stop it, or use another home")
    with locked(coordinator.folder / "lock", busy=busy):
        try:
            with watched(coordinator, config.operations):
                serve(coordinator.folder, coordinator.tls, wanted, ready, bounds)
        except KeyboardInterrupt:
            if not as_json:
                say("The coordinator has stopped.")
            raise
        finally:
            coordinator.retire()


command = Command(
    up,
    panel="Set up",
    place=2,
    examples=("wardround coordinator up ~/coordinator",),
)
