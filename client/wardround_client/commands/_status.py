"""What a hospital does now, as `status`, `watch`, `pause` and `resume` show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wardround.terminal import Fields, emit, say, show
from wardround_client.commands._common import checked
from wardround_client.office.status import from_daemon, lines


def set_paused(home: Path, yes: bool, as_json: bool) -> None:
    home = checked(home)
    from wardround_client.service.control import Control

    with Control(home) as control:
        status = from_daemon(control.pause() if yes else control.resume())
    if as_json:
        emit(event="status", **status)
    else:
        say(f"{status['name']} {'refuses every round until `resume`' if yes else 'answers rounds again'}.")


def status_fields(status: dict[str, Any]) -> Fields:
    """The status, for a person."""
    return Fields(lines(status), status["name"])


def print_status(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(event="status", **status)
    else:
        show(status_fields(status))
