"""The first page: whether the coordinator is up, how far each run is, and starting one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from wardround.config import load_federation
from wardround.errors import ConfigError, WardroundError
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_server.events import RunEnded, RunFailed
from wardround_server.follow import last_event
from wardround_server.office.hospitals import there
from wardround_server.office.runs import Order, all_going_on, how_far
from wardround_server.pages.desk import Desk
from wardround_server.pages.runs import MOST_WAIT_S, WAIT_S, begin, wait_of
from wardround_server.sinks.jsonl import FILE as EVENTS


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def overview(request: Request) -> Response:
        hospitals, down = there(desk.home)
        online = sum(row["status"] == "online" for row in hospitals)
        return desk.site.page(
            request,
            "overview.html",
            up=not down,
            why=str(down or ""),
            online=f"{online} of {counted(len(hospitals), 'hospital')} connected"
            if hospitals
            else "no hospital is registered",
            runs=_runs(desk),
            agreements=[found | {"run": _free(found["name"], desk)} for found in map(_agreement, desk.agreements)],
            wait=WAIT_S,
            most_wait=MOST_WAIT_S,
        )

    return {"/": overview}


def actions(desk: Desk) -> list[Action]:
    """Start."""

    def start(request: Request) -> str:
        form = form_of(request.scope)
        for file in desk.agreements:
            if _key(file) == form.get("agreement"):
                found = _agreement(file)
                if found["digest"] != form.get("digest"):
                    raise ConfigError(
                        "the agreement changed after this page was made", do="go back, and look at it again"
                    )
                order = Order.checked(desk.home, file, form.get("name", "").strip(), resume=False, wait_s=wait_of(form))
                return begin(desk, order)
        raise ConfigError("no agreement was chosen", do="go back and choose one")

    return [Action("/start", start)]


def _runs(desk: Desk) -> list[dict[str, Any]]:
    """The newest first: what is known of each, and whether it goes on."""
    rows, unfinished = [], []
    for folder in desk.runs():
        event, why = last_event(folder / EVENTS)
        what, since = how_far(event)
        ended = "done" if isinstance(event, RunEnded) else "failed" if isinstance(event, RunFailed) else "stopped"
        rows.append({"name": folder.name, "what": why or what, "since": since, "ended": ended})
        unfinished += [] if isinstance(event, RunEnded) else [folder.name]
    now = all_going_on(desk.home, unfinished) if unfinished else {}
    return [{**row, "goes_on": row["name"] in (now or ())} for row in rows]


def _free(name: str, desk: Desk) -> str:
    """The name, or the first with a number behind it that no run has."""
    taken = {folder.name for folder in desk.runs()}
    return next(
        each for each in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))) if each not in taken
    )


def _key(file: Path) -> str:
    return hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _agreement(file: Path) -> dict[str, Any]:
    """What can be chosen; error: why not."""
    found = {"key": _key(file), "file": str(file), "name": "", "digest": "", "error": ""}
    try:
        federation = load_federation(file)
    except WardroundError as error:
        return found | {"error": str(error)}
    digest = federation.digest
    fours = " ".join(digest[place : place + 4] for place in range(0, len(digest), 4))  # as a hospital's page shows it
    return found | {"name": federation.name, "digest": digest, "fours": fours}
