"""`wardround hospital up | status | watch | pause | resume`: the daemon, and looking at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from wardround.errors import StorageError, Unreachable
from wardround_client.commands.common import (
    HERE,
    HomeArgument,
    JsonOption,
    app,
    checked,
    console,
    emit,
    example,
    say,
    show,
)

if TYPE_CHECKING:
    from wardround_client.service._proto import hospital_pb2 as pb


@app.command(
    epilog=example(
        "wardround hospital up ~/st-anna",
        "wardround hospital up ~/st-anna --give-up-after-s 60",
        "wardround hospital up ~/st-anna --once",
    )
)
def up(
    home: HomeArgument = HERE,
    give_up_after_s: Annotated[
        float, typer.Option(help="End with exit code 6 when nothing connects for so long; 0: try for ever.", min=0)
    ] = 0.0,
    once: Annotated[bool, typer.Option("--once", help="Connect, say so and end: a test of network and keys.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the hospital's daemon until SIGTERM or Ctrl-C. It dials out, opens no port and reconnects by itself."""
    home = checked(home)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported: this program talks to its coordinator alone
    from wardround_client.service.daemon import Daemon, locked, logging_to, stopped_by_signals

    def tell(line: str) -> None:
        if as_json:
            emit(event="link", detail=line)
        else:
            say(line)
        if once and line.startswith("connected"):
            daemon.stop.set()

    with locked(home), logging_to(home):
        daemon = Daemon(home, say=tell)
        with stopped_by_signals(daemon.stop):
            daemon.run(give_up_after_s=give_up_after_s or (0.0 if once else None))


@app.command(epilog=example("wardround hospital status ~/st-anna", "wardround hospital status ~/st-anna --json"))
def status(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """How the daemon stands. Where none runs, what the ledger says, and exit code 6.

    `approved` lists the digests; `wardround hospital revoke HOME DIGEST` takes an approval back.
    """
    home = checked(home)
    from wardround_client.service.control import Control

    try:
        with Control(home) as control:
            told = _fields(control.status()) | _beside(home)
    except Unreachable as error:
        told = _from_files(home) | _beside(home)
        _print_status(told, as_json)
        if not as_json:
            say(str(error))
        raise typer.Exit(error.exit_code) from None
    _print_status(told, as_json)


@app.command(epilog=example("wardround hospital watch ~/st-anna", "wardround hospital watch ~/st-anna --json"))
def watch(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """The same, again at every change, until Ctrl-C or the daemon's end."""
    home = checked(home)
    from wardround_client.service.control import Control

    with Control(home) as control:
        if as_json or not console.is_terminal:
            for reply in control.watch():
                _print_status(_fields(reply), as_json)
            return
        with Live(console=console, auto_refresh=False) as live:
            for reply in control.watch():
                live.update(_table(_fields(reply)), refresh=True)


@app.command(epilog=example("wardround hospital pause ~/st-anna"))
def pause(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Refuse every round until `resume`, also over a restart. A round that is being answered is finished."""
    _set_paused(home, True, as_json)


@app.command(epilog=example("wardround hospital resume ~/st-anna"))
def resume(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Answer rounds again."""
    _set_paused(home, False, as_json)


def _set_paused(home: Path, yes: bool, as_json: bool) -> None:
    home = checked(home)
    from wardround_client.service.control import Control

    with Control(home) as control:
        told = _fields(control.pause() if yes else control.resume())
    if as_json:
        emit(event="status", **told)
    else:
        say(f"{told['name']} {'refuses every round until `resume`' if yes else 'answers rounds again'}.")


def _fields(reply: pb.StatusReply) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    told: dict[str, Any] = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # JSON of 64-bit numbers is text in protobuf's own mapping.
    return told | {"running": True, "declared_patients": reply.declared_patients, "pid": reply.pid}


def _from_files(home: Path) -> dict[str, Any]:
    """What can be said without a daemon."""
    from wardround_client.config import load_hospital_config
    from wardround_client.consent.approvals import ApprovalFolder
    from wardround_client.privacy.ledger import Ledger
    from wardround_client.service.control import PAUSED

    config = load_hospital_config(home / "hospital.toml")
    book = Ledger.of(home)
    try:
        released = [entry for entry in book.entries() if entry.kind == "released"]
        spent = book.spent(config.delta)
    finally:
        book.close()
    return {
        "running": False,
        "name": config.hospital.name,
        "declared_patients": config.hospital.declared_patients,
        "coordinator": config.coordinator.address,
        "link": "down",
        "link_detail": "the daemon is not running",
        "paused": (home / PAUSED).exists(),
        "run": released[-1].run if released else "",
        "round": released[-1].round if released else 0,
        "answered": 0,
        "epsilon_spent": spent,
        "epsilon_budget": config.budget.epsilon,
        "delta": config.delta,
        "last_error": "",
        "approved": sorted(ApprovalFolder(home).digests()),
    }


def _beside(home: Path) -> dict[str, Any]:
    """What only the home says: how many have withdrawn, which no daemon ever says, and why the hospital has stopped."""
    from wardround_client.cohort.optout import Register
    from wardround_client.one_life import why

    told: dict[str, Any] = {"stopped": why(home), "ca_ends": _authority(home)}
    try:
        return told | {"withdrawn": len(Register.of(home).read())}
    except StorageError as error:
        return told | {"withdrawn": None, "withdrawn_error": str(error)}


def _authority(home: Path) -> list[str]:
    """When each certificate of the joined CA file ends, ISO 8601; empty, where it cannot be told."""
    from wardround.certificates import ends_of
    from wardround_client.config import load_hospital_config

    try:
        pem = (home / load_hospital_config(home / "hospital.toml").coordinator.ca_file).read_bytes()
        return [end.isoformat() for end in ends_of(pem)]
    except (OSError, ValueError):
        return []


def _table(told: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=told["name"], title_justify="left")
    for name, value in _lines(told).items():
        table.add_row(name, value)
    return table


def _print_status(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(event="status", **told)
    else:
        show(_lines(told), title=told["name"])


def _ending(ends: list[str]) -> str:
    from datetime import datetime

    from wardround.certificates import until

    return "ends on " + "; the next on ".join(until(datetime.fromisoformat(end)) for end in ends)


def _lines(told: dict[str, Any]) -> dict[str, str]:
    last = f"{told['run']}, round {told['round']}" if told["run"] else "none yet"
    stopped = (
        f"the coordinator has an answer that is not in this ledger ({told.get('stopped')}): a copy of this home runs, "
    )
    stopped += "or an old one was restored; `wardround hospital accept-history` tells more"
    return {
        **({"STOPPED": stopped} if told.get("stopped") else {}),
        "coordinator": told["coordinator"] or "none: `wardround hospital join`",
        **({"coordinator's CA": _ending(told["ca_ends"])} if told.get("ca_ends") else {}),
        "link": f"{told['link']}: {told['link_detail']}",
        "paused": "yes, every round is refused" if told["paused"] else "no",
        "last answer": f"{last} ({told['answered']} since the start)",
        "epsilon": f"{told['epsilon_spent']:.4g} of {told['epsilon_budget']:g} spent, at delta {told['delta']:.3g}",
        "last refusal": told["last_error"] or "none",
        "approved": ", ".join(digest[:12] for digest in told["approved"]) or "nothing: `wardround hospital approve`",
        **({"withdrawn": told.get("withdrawn_error") or str(told["withdrawn"])} if "withdrawn" in told else {}),
    }
