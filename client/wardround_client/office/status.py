"""What a hospital does now: from its daemon where one runs, from its files where none does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardround.errors import StorageError, Unreachable

if TYPE_CHECKING:
    from wardround_client.service._proto import hospital_pb2 as pb


def of_home(home: Path) -> dict[str, Any]:
    """The status now, whether a daemon runs or not."""
    from wardround_client.service.control import Control

    try:
        with Control(home) as control:
            return from_daemon(control.status()) | beside(home)
    except Unreachable:
        return from_files(home) | beside(home)


def from_daemon(reply: pb.StatusReply) -> dict[str, Any]:
    """What a daemon says of itself."""
    from google.protobuf.json_format import MessageToDict

    status: dict[str, Any] = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # JSON of 64-bit numbers is text in protobuf's own mapping.
    return status | {"running": True, "declared_patients": reply.declared_patients, "pid": reply.pid}


def from_files(home: Path) -> dict[str, Any]:
    """What can be said without a daemon."""
    from wardround_client.config import load_hospital_config
    from wardround_client.consent.approvals import ApprovalFolder
    from wardround_client.privacy.ledger import Ledger
    from wardround_client.service.control import PAUSED, last_refusal

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
        "last_error": last_refusal(home),
        "approved": sorted(ApprovalFolder(home).digests()),
    }


def beside(home: Path) -> dict[str, Any]:
    """What only the home says: how many have withdrawn, which no daemon ever says, and why the hospital has stopped."""
    from wardround_client.cohort.optout import Register
    from wardround_client.one_life import why

    status: dict[str, Any] = {"stopped": why(home), "ca_ends": _authority(home)}
    try:
        return status | {"withdrawn": len(Register.of(home).read())}
    except StorageError as error:
        return status | {"withdrawn": None, "withdrawn_error": str(error)}


def _authority(home: Path) -> list[str]:
    """When each certificate of the joined CA file ends, ISO 8601; empty where that cannot be read."""
    from wardround.certificates import ends_of
    from wardround_client.config import load_hospital_config

    try:
        pem = (home / load_hospital_config(home / "hospital.toml").coordinator.ca_file).read_bytes()
        return [end.isoformat() for end in ends_of(pem)]
    except (OSError, ValueError):
        return []


def _ending(ends: list[str]) -> str:
    from datetime import datetime

    from wardround.certificates import until

    return "ends on " + "; the next on ".join(until(datetime.fromisoformat(end)) for end in ends)


def lines(status: dict[str, Any]) -> dict[str, str]:
    """The status in words, a line each, by name."""
    detail = status["link_detail"]
    last = f"{status['run']}, round {status['round']}" if status["run"] else "none yet"
    stopped = (
        f"the coordinator has an answer that is not in this ledger ({status.get('stopped')}): a copy of this home "
        "runs, or an old one was restored; see `wardround hospital accept-history --help`"
    )
    spent = f"{status['epsilon_spent']:.4g} of {status['epsilon_budget']:g} spent"
    return {
        **({"STOPPED": stopped} if status.get("stopped") else {}),
        "coordinator": status["coordinator"] or "none: `wardround hospital join`",
        **({"coordinator's CA": _ending(status["ca_ends"])} if status.get("ca_ends") else {}),
        "link": detail if detail.startswith(status["link"]) else f"{status['link']}: {detail}",
        "paused": "yes, every round is refused" if status["paused"] else "no",
        "last answer": f"{last} ({status['answered']} since the daemon started)",
        "epsilon": f"{spent}, at delta {status['delta']:.3g}",
        "last refusal": status["last_error"] or "none",
        "approved": ", ".join(digest[:12] for digest in status["approved"]) or "nothing: `wardround hospital approve`",
        **({"withdrawn": status.get("withdrawn_error") or str(status["withdrawn"])} if "withdrawn" in status else {}),
    }
