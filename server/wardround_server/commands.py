"""`wardround coordinator ...`: set up, start, run a federation, look at it."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from wardround.certificates import until
from wardround.config import Name, load_federation
from wardround.errors import ConfigError, StorageError, Unreachable
from wardround.files import private_folder, write_atomically
from wardround.given import TOML_BYTES, given_text
from wardround.text import shown
from wardround_server.answers import AnswerBook
from wardround_server.follow import follow, last_event
from wardround_server.home import COORDINATOR_TOML, FEDERATION_TOML, Home
from wardround_server.hospitals import Card, Registry, load_card
from wardround_server.network import tls
from wardround_server.network.limits import Connections

EXIT_CODES = (
    "Exit codes: 0 done, 1 other error, 2 impossible file or option, 5 malformed message, "
    "6 the federation cannot go on (unreachable, untrusted, quorum missed), 7 disk, 8 port in use, 130 interrupted."
)
LONGEST_LINE = 4000
app = typer.Typer(no_args_is_help=True, help="The coordinator: it asks hospitals and never sees a patient.")
console = Console()
HomeArgument = Annotated[Path, typer.Argument(help="The coordinator's home folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def _example(*lines: str) -> str:
    return "\n\n".join(["Examples:", *(f"    {line}" for line in lines), EXIT_CODES])


@app.command(epilog=_example("wardround coordinator init ~/coordinator --host fl.example.org --port 9092"))
def init(
    home: HomeArgument,
    host: Annotated[
        str, typer.Option(help="Host name or IP address that hospitals dial; default: 127.0.0.1, or as it is.")
    ] = "",
    port: Annotated[int, typer.Option(help="Port that hospitals dial; 0: any free one.", min=0, max=65535)] = 9092,
    listen: Annotated[
        str, typer.Option(help="Address to listen on; default: --host if it is loopback, else all.")
    ] = "",
    admin_port: Annotated[int, typer.Option(help="Loopback port of the commands.", min=0, max=65535)] = 9093,
    health_port: Annotated[int, typer.Option(help="Loopback port of health checks.", min=0, max=65535)] = 9094,
) -> None:
    """Make a home: certificates, coordinator.toml, an example federation.toml and the hospitals' invitation.toml.

    Done again it keeps what is there and renews only a certificate that no longer fits. With another --host it writes
    that into coordinator.toml and the invitation; the certificate then covers the old name and the new one.
    """
    place = Home(home)
    if not place.config_file.exists():
        host = host or "127.0.0.1"
        loopback, six = host in ("localhost", "127.0.0.1", "::1"), ":" in host
        tls.create(place.tls.folder, [host])
        text = COORDINATOR_TOML.format(
            address=host,
            host=listen or (("::1" if six else "127.0.0.1") if loopback else "::" if six else "0.0.0.0"),
            port=port,
            admin_port=admin_port,
            health_port=health_port,
        )
        place.write("coordinator.toml", text)
    config = place.config()
    if host and host != config.address:
        tls.create(place.tls.folder, [host])  # what is no host ends here
        config = place.move_to(host)
    tls.create(place.tls.folder, [config.address])
    if not (home / "federation.toml").exists():
        place.write("federation.toml", FEDERATION_TOML)
    invitation = place.invite(config, config.listen.port)
    console.print(f"The coordinator's home is [bold]{home}[/].")
    console.print(f"Give {invitation} to each hospital; it answers with a join.json for `coordinator register`.")


@app.command(
    "renew-ca",
    epilog=_example(
        "wardround coordinator renew-ca ~/coordinator", "wardround coordinator renew-ca ~/coordinator --switch"
    ),
)
def renew_ca(
    home: HomeArgument,
    switch: Annotated[
        bool, typer.Option("--switch", help="Let the new CA sign from now on, and forget the old one.")
    ] = False,
) -> None:
    """Replace the certificate authority without a day on which nobody connects.

    1. Without --switch a new CA is made beside the old one, and invitation.toml holds both. Each hospital joins again
    with it, whenever it likes, and keeps its approvals: it then believes either. 2. When all have, or shortly before
    the old one ends: stop the coordinator, run this with --switch, and start it again.
    """
    place = Home(home)
    config = place.config()
    try:
        port = int(place.running()["fleet"])
        if switch:
            raise ConfigError("the coordinator is running", do="stop it, run this again, and start it again")
    except Unreachable:
        port = config.listen.port
    tls.renew_ca(place.tls, switch=switch)
    if switch:
        tls.create(place.tls.folder, [config.address])
    invitation = place.invite(config, port)
    if switch:
        console.print(f"The new CA signs now. Who has not joined with it yet needs {invitation}.")
        return
    console.print(f"A new CA is made; nothing changes yet. Give {invitation} to each hospital: it joins again with it.")
    console.print(f"When all have: stop the coordinator, then `wardround coordinator renew-ca {home} --switch`.")


@app.command(
    epilog=_example(
        "wardround coordinator register ~/coordinator st-anna/join.json",
        "wardround coordinator register ~/coordinator st-anna/join.json --patients 400 --yes",
    )
)
def register(
    home: HomeArgument,
    card: Annotated[Path, typer.Argument(help="The hospital's join.json.", show_default=False)],
    patients: Annotated[
        int, typer.Option(help="Count it with so many patients; 0: as it declares.", min=0, max=10**9)
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Nobody is asked where there is no terminal.")] = False,
) -> None:
    """Let a hospital take part, with the weight that is shown. While the coordinator is down this is noted for `up`."""
    place = Home(home)
    place.config()
    registry, wanted = Registry(home), load_card(card)
    if patients and patients != wanted.declared_patients:
        console.print(
            f"It declares {wanted.declared_patients:,} patients; its own hospital.toml has to say {patients:,}."
        )
        wanted = Card.model_validate(wanted.model_dump() | {"declared_patients": patients})
    for name, value in {
        "hospital": wanted.name,
        "key": wanted.fingerprint,
        "patients": f"{wanted.declared_patients:,}",
        "weight": f"{registry.share(wanted):.1%} of the federation's, unless it is agreed to weigh all alike",
    }.items():
        console.print(f"{name:>9}: {value}", markup=False, highlight=False, soft_wrap=True)
    if not yes and _at_a_terminal() and not typer.confirm("Register it?"):
        console.print("Not registered. Nothing was changed.")
        raise typer.Exit(1)
    hospital = registry.add(wanted)
    try:
        node_id = _register_nodes(place, int(place.running()["admin"]))[hospital.name]
        console.print(f"{hospital.name} is registered, as node {node_id}.")
    except Unreachable:
        console.print(f"{hospital.name} is noted; it can connect after the next `wardround coordinator up {home}`.")


@app.command(epilog=_example("wardround coordinator remove ~/coordinator st-anna"))
def remove(
    home: HomeArgument,
    name: Annotated[str, typer.Argument(help="The hospital's name, as `status` shows it.", show_default=False)],
) -> None:
    """Take a hospital out, at once, also in the middle of a run: it is neither asked nor believed any more."""
    place = Home(home)
    place.config()
    hospital = Registry(home).remove(name)
    with contextlib.suppress(Unreachable):  # then the next `up` forgets its key
        _register_nodes(place, int(place.running()["admin"]))
    console.print(f"{hospital.name} is removed. What it has contributed stays in the models that it helped to make.")


@app.command(epilog=_example("wardround coordinator up ~/coordinator"))
def up(home: HomeArgument) -> None:
    """Start the coordinator and stay until SIGTERM or Ctrl-C. Flower's own log goes to coordinator.log."""
    place = Home(home.absolute())
    config = place.config()
    private_folder(place.folder)
    tls.create(place.tls.folder, [config.address])
    from wardround_server.flower.environment import prepare

    prepare(place.folder)  # Flower reads its environment when it is imported
    from wardround.files import locked
    from wardround_server.flower.superlink import Ports, serve

    def ready(ports: Ports) -> None:
        place.announce({"fleet": ports.fleet, "admin": ports.admin, "health": ports.health})
        _register_nodes(place, ports.admin)
        place.invite(config, ports.fleet)
        console.print(f"The coordinator is up: hospitals dial {config.address}:{ports.fleet}.", highlight=False)

    wanted = Ports(config.listen.host, config.listen.port, config.listen.admin_port, config.listen.health_port)
    bounds = Connections(
        all=config.limits.connections,
        strangers=config.limits.connections // 2,
        an_address=config.limits.connections_per_address,
    )
    with locked(place.folder, otherwise=f"a coordinator runs on {home} already", do="stop it, or use another home"):
        try:
            serve(place.folder, place.tls, wanted, ready, bounds)
        except KeyboardInterrupt:
            console.print("The coordinator has stopped.")
            raise
        finally:
            place.retire()


@app.command(
    epilog=_example(
        "wardround coordinator run ~/coordinator federation.toml",
        "wardround coordinator run ~/coordinator federation.toml --run spring --resume",
        "wardround coordinator run ~/coordinator federation.toml --json",
    )
)
def run(
    home: HomeArgument,
    federation: Annotated[
        Path, typer.Argument(help="The agreement, as the hospitals approved it.", show_default=False)
    ],
    run_name: Annotated[str, typer.Option("--run", help="The run's name; default: the federation's.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a federation to its end and write the report. Ctrl-C stops it; --resume goes on where it was."""
    agreement = load_federation(federation)
    place = Home(home.absolute())
    place.config()
    admin = int(place.running()["admin"])
    name = run_name or agreement.name
    folder = place.run_folder(_run_name(name))
    if not resume and (folder / "checkpoint.safetensors").exists():
        raise ConfigError(f"run {name!r} exists already", do="continue it with --resume, or choose another --run")
    if resume and not folder.is_dir():
        raise ConfigError(f"there is no run {name!r} to resume", do="leave --resume out, or name an earlier --run")
    from wardround import bundle
    from wardround_server.checkpoint import Checkpointer
    from wardround_server.flower.superlink import Control

    with Checkpointer(folder).held():  # what is going on already keeps its agreement
        _keep_agreement(place, federation, folder, agreement.model.encoder)

    with Control(admin, place.tls.ca) as control:
        start = (folder / "events.jsonl").stat().st_size if (folder / "events.jsonl").exists() else 0
        run_id = control.start_run(bundle.build(agreement), {"run": name, "resume": resume})
        follow(control, run_id, folder, start, as_json=as_json, console=console)

    from wardround_server.report import write_report

    report = write_report(folder)
    done = {"event": "done", "run": name, "report": str(report)}
    print(json.dumps(done)) if as_json else console.print(f"The report is {report}.")


@app.command(epilog=_example("wardround coordinator status ~/coordinator"))
def status(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Who is registered, who is connected, and how far each run is."""
    place = Home(home)
    place.config()
    up_, nodes = False, dict[int, str]()
    try:
        admin = int(place.running()["admin"])
        from wardround_server.flower.superlink import Control

        with Control(admin, place.tls.ca) as control:
            nodes, up_ = control.nodes(), True
    except Unreachable:
        pass
    registered = list(Registry(home))
    book = AnswerBook.of_home(home, registered)
    hospitals = [
        {
            "hospital": hospital.name,
            "declared_patients": hospital.declared_patients,
            "status": nodes.get(hospital.node_id or 0, "unknown" if up_ else "coordinator down"),
            "answers": len(book.of(hospital.name)),
        }
        for hospital in registered
    ]
    runs = [
        {"run": folder.name, **last_event(folder)} for folder in sorted((home / "runs").glob("*")) if folder.is_dir()
    ]
    ends = place.tls.ends()
    if as_json:
        certificates = {name: end.isoformat() for name, end in ends.items()}
        print(json.dumps({"up": up_, "hospitals": hospitals, "runs": runs, "certificates": certificates}))
        return
    console.print(f"The coordinator is {'up' if up_ else 'down'}.")
    for name, end in ends.items():
        console.print(f"The {name} ends on {until(end)}.", highlight=False)
    _print_table(
        "hospital", "declared patients", "status", "answers", rows=[[str(v) for v in h.values()] for h in hospitals]
    )
    keys = ("run", "event", "round", "rounds", "replied")
    _print_table(
        "run", "last event", "round", "of", "replied", rows=[[shown(r.get(k, "")) for k in keys] for r in runs]
    )


@app.command(epilog=_example("wardround coordinator report ~/coordinator spring"))
def report(home: HomeArgument, run_name: Annotated[str, typer.Argument(metavar="RUN", show_default=False)]) -> None:
    """Write report.html of a run, finished or not."""
    from wardround_server.report import write_report

    console.print(f"The report is {write_report(Home(home).run_folder(_run_name(run_name)))}.")


def _at_a_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty()


def _run_name(name: str) -> str:
    """The name, if a run may have it: it is a folder's name, and every hospital's ledger keeps it."""
    try:
        return str(TypeAdapter(Name).validate_python(name))
    except ValidationError:
        raise ConfigError(
            f"the run name {name!r}",
            allowed="up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or a digit",
            do="choose another --run",
        ) from None


def _register_nodes(place: Home, admin: int) -> dict[str, int]:
    """Make the SuperLink know the hospitals of the registry and no other; done again it changes nothing.

    -> name, node id.
    """
    from wardround_server.flower.superlink import Control

    registry, nodes = Registry(place.folder), dict[str, int]()
    with Control(admin, place.tls.ca) as control:
        for hospital in list(registry):
            nodes[hospital.name] = control.register(hospital.name, hospital.key_pem)
            if nodes[hospital.name] != hospital.node_id:
                registry.set_node(hospital.name, nodes[hospital.name])
        for node, state in control.nodes().items():
            if node not in nodes.values() and state != "unregistered":
                control.unregister(node)
    return nodes


def _keep_agreement(place: Home, federation: Path, folder: Path, encoder: str) -> None:
    """Copy the agreement, and the encoder it names, into the run's folder. Raises: ConfigError, StorageError."""
    place.write(f"runs/{folder.name}/federation.toml", given_text(federation, TOML_BYTES, do="name a federation.toml"))
    if encoder == "builtin":
        return
    weights = federation.parent / encoder
    if not weights.is_file():
        raise ConfigError(f"{federation}: model.encoder names {weights}, which is not there", do="put it there")
    copy = folder / encoder
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, weights.read_bytes())
    except OSError as error:
        raise StorageError(f"{copy}: cannot be written ({error.strerror})", do="check the disk") from None


def _print_table(*columns: str, rows: list[list[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
