"""The first page: whether the coordinator is up, how far each run is, and starting one."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround.config import load_federation
from wardround.errors import ConfigError, WardroundError
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_server.events import Event, RoundEnded, RoundMissed, whole_lines
from wardround_server.flower.control import ControlApi
from wardround_server.follow import follow, last_event
from wardround_server.office.hospitals import there
from wardround_server.office.runs import Order, how_far
from wardround_server.pages.desk import Desk
from wardround_server.report import write_report
from wardround_server.report.data import read_run
from wardround_server.report.page import curves, each
from wardround_server.report.page import hospitals as hospital_table
from wardround_server.report.story import story
from wardround_server.sinks.jsonl import FILE as EVENTS
from wardround_server.words import in_words

LINES, MOST_WAIT_S, WAIT_S = 200, 86_400, 60
log = logging.getLogger(__name__)


@dataclass
class Followed:
    """Runs that this page started: name -> what became of it; "" while it goes on."""

    ended: dict[str, str] = field(default_factory=dict)


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def overview(request: Request) -> Response:
        hospitals, down = there(desk.home)
        online = sum(row["status"] == "online" for row in hospitals)
        runs = []
        for folder in desk.runs():
            try:
                event, why = last_event(folder / EVENTS), ""
            except WardroundError as error:
                event, why = None, str(error)
            what, since = how_far(event)
            runs.append({"name": folder.name, "what": why or what, "since": since})
        return desk.site.page(
            request,
            "overview.html",
            up=not down,
            why=str(down or ""),
            online=f"{online} of {counted(len(hospitals), 'hospital')} connected",
            hospitals=hospitals,
            runs=runs,
            followed=desk.site.kept(Followed).ended,
            agreements=[_agreement(file) for file in desk.agreements],
            wait=WAIT_S,
            most_wait=MOST_WAIT_S,
        )

    def run(request: Request) -> Response:
        folder = _folder(desk, request)
        if not (folder / EVENTS).exists():
            return desk.site.page(request, "begins.html", name=folder.name, ended=_ended(desk, folder.name))
        record = read_run(folder)
        events = [event for _, event in whole_lines(folder / EVENTS)]
        columns, rows = hospital_table(record)
        drawn = curves(record) if record.federation else None
        small = each(record)
        return desk.site.page(
            request,
            "run.html",
            name=folder.name,
            record=record,
            story=story(record),
            columns=columns,
            rows=rows,
            late=_late(events),
            curves=drawn,
            each=small,
            lines=_lines(events[-LINES:]),
            ended=_ended(desk, folder.name),
            report=str(folder / "report.html"),
            wait=WAIT_S,
            most_wait=MOST_WAIT_S,
        )

    return {"/": overview, "/runs/{name:str}": run}


def actions(desk: Desk) -> list[Action]:
    """Start, or go on."""

    def start(request: Request) -> str:
        form = form_of(request.scope)
        for file in desk.agreements:
            if _key(file) == form.get("agreement"):
                found = _agreement(file)
                if found["digest"] != form.get("digest"):
                    raise ConfigError(
                        "the agreement changed after this page was made", do="go back, and look at it again"
                    )
                order = Order.checked(desk.home, file, form.get("name", "").strip(), resume=False, wait_s=_wait(form))
                return _begin(desk, order)
        raise ConfigError("no agreement was chosen", do="go back and choose one")

    def resume(request: Request) -> str:
        folder = _folder(desk, request)
        wait_s = _wait(form_of(request.scope))
        return _begin(
            desk, Order.checked(desk.home, folder / "federation.toml", folder.name, resume=True, wait_s=wait_s)
        )

    return [Action("/start", start), Action("/runs/{name:str}/resume", resume)]


def _begin(desk: Desk, order: Order) -> str:
    with ControlApi(order.admin, desk.home.tls.ca) as control:
        run_id, offset = order.start(control)
    followed = desk.site.kept(Followed)
    followed.ended[order.name] = ""
    desk.site.keep(followed)
    threading.Thread(target=_follow, args=(desk, order, run_id, offset, followed), name="run", daemon=True).start()
    return f"/runs/{order.name}"


def _follow(desk: Desk, order: Order, run_id: int, offset: int, followed: Followed) -> None:
    """As the command does: to the run's end, and then its report."""
    try:
        with ControlApi(order.admin, desk.home.tls.ca) as control:
            follow(control, run_id, order.folder / EVENTS, offset, lambda event: None)
        said = "done"
    except WardroundError as error:
        said = str(error)
    except Exception:
        log.exception("following the run %s", order.name)
        said = "An error of this program; the log has its details."
    try:
        write_report(order.folder)
    except WardroundError as error:
        said = f"{said}. The report could not be written: {error}"
    followed.ended[order.name] = said


def _ended(desk: Desk, name: str) -> str | None:
    """What became of a run that this page started; "" while it goes on, None of another."""
    return desk.site.kept(Followed).ended.get(name)


def _wait(form: Mapping[str, str]) -> int:
    text = form.get("wait", "")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= MOST_WAIT_S):
        raise ConfigError(f"{text[:20]!r} seconds", allowed=f"0 to {MOST_WAIT_S}")
    return int(text)


def _folder(desk: Desk, request: Request) -> Path:
    for folder in desk.runs():
        if folder.name == request.path_params["name"]:
            return folder
    raise HTTPException(404)


def _key(file: Path) -> str:
    return hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _agreement(file: Path) -> dict[str, Any]:
    """What can be chosen; error: why not."""
    found = {"key": _key(file), "file": str(file), "name": "", "digest": "", "error": ""}
    try:
        federation = load_federation(file)
    except WardroundError as error:
        return found | {"error": str(error)}
    return found | {"name": federation.name, "digest": federation.digest}


def _late(events: list[Event]) -> list[tuple[str, str]]:
    """Whom the last round lacks, and why."""
    last = next((event for event in reversed(events) if isinstance(event, RoundEnded | RoundMissed)), None)
    if last is None:
        return []
    return [*((name, "not connected") for name in last.absent), *last.rejected.items()]


def _lines(events: list[Event]) -> list[tuple[str, str]]:
    """(when, what happened), the newest first."""
    told = [(event.time[:19].replace("T", " "), line) for event in events for line in in_words(event)]
    return told[::-1]
