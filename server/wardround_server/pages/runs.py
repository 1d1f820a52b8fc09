"""A run as it happens: whom its last round lacks and why, what it costs; stopping it, and going on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError, RunStopped, WardroundError
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_server.events import Event, Proceeding, RoundEnded, RoundMissed, RunStarted, Waiting, whole_lines
from wardround_server.flower.control import ControlApi
from wardround_server.follow import follow
from wardround_server.office.runs import Order, all_going_on, stop
from wardround_server.pages.desk import Desk
from wardround_server.report import write_report
from wardround_server.report.data import RunRecord, read_run
from wardround_server.report.page import curves, each
from wardround_server.report.page import hospitals as hospital_table
from wardround_server.report.story import story
from wardround_server.sinks.jsonl import FILE as EVENTS
from wardround_server.words import in_words, until

LINES, MOST_WAIT_S, WAIT_S = 200, 86_400, 60
log = logging.getLogger(__name__)


@dataclass
class Followed:
    """Of runs that this page started and that ended with an error: name -> what it was, which no event may say."""

    said: dict[str, str] = field(default_factory=dict)


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def run(request: Request) -> Response:
        folder = _folder(desk, request)
        now, said = all_going_on(desk.home, [folder.name]), desk.site.kept(Followed).said.get(folder.name, "")
        shared: dict[str, Any] = {
            "name": folder.name,
            "goes_on": bool(now),
            "number": (now or {}).get(folder.name, ""),
            "up": now is not None,
            "wait": WAIT_S,
            "most_wait": MOST_WAIT_S,
        }
        if not (folder / EVENTS).exists():
            return desk.site.page(request, "begins.html", **shared, said_of_it=said)
        record = read_run(folder)
        events = [event for _, event in whole_lines(folder / EVENTS)]
        columns, rows = hospital_table(record)
        return desk.site.page(
            request,
            "run.html",
            **shared,
            record=record,
            story=story(record),
            ended=("", "") if now else _ended(record, said),
            now=_now(events[-1]) if now and events else "",
            columns=columns,
            rows=rows,
            late=_late(events),
            curves=curves(record) if record.federation else None,
            each=each(record),
            lines=_lines(events[-LINES:]),
            report=str(folder / "report.html"),
        )

    return {"/runs/{name:str}": run}


def actions(desk: Desk) -> list[Action]:
    """Stop, or go on."""

    def stopped(request: Request) -> str:
        name = _folder(desk, request).name
        stop(desk.home, name, number=form_of(request.scope).get("number") or "none")
        return f"/runs/{name}"

    def resume(request: Request) -> str:
        folder = _folder(desk, request)
        wait_s = wait_of(form_of(request.scope))
        return begin(
            desk, Order.checked(desk.home, folder / "federation.toml", folder.name, resume=True, wait_s=wait_s)
        )

    return [Action("/runs/{name:str}/stop", stopped), Action("/runs/{name:str}/resume", resume)]


def begin(desk: Desk, order: Order) -> str:
    """Start a run -> the path of its page. Raises: WardroundError."""
    with ControlApi(order.admin, desk.home.tls.ca) as control:
        run_id, offset = order.start(control)
    followed = desk.site.kept(Followed)
    followed.said.pop(order.name, None)
    desk.site.keep(followed)
    threading.Thread(target=_follow, args=(desk, order, run_id, offset, followed), name="run", daemon=True).start()
    return f"/runs/{order.name}"


def wait_of(form: Mapping[str, str]) -> int:
    """Seconds to wait for all hospitals. Raises: ConfigError."""
    text = form.get("wait", "")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= MOST_WAIT_S):
        raise ConfigError(f"{text[:20]!r} seconds", allowed=f"0 to {MOST_WAIT_S}")
    return int(text)


def _follow(desk: Desk, order: Order, run_id: int, offset: int, followed: Followed) -> None:
    """As the command does: to the run's end, and then its report."""
    said = ""
    try:
        with ControlApi(order.admin, desk.home.tls.ca) as control:
            follow(control, run_id, order.folder / EVENTS, offset, lambda event: None)
    except RunStopped:
        pass  # its page says so by itself
    except WardroundError as error:
        said = str(error)
    except Exception:
        log.exception("following the run %s", order.name)
        said = "An error of this program; the log has its details."
    try:
        if (order.folder / EVENTS).exists():  # it may have been stopped before it said anything
            write_report(order.folder)
    except WardroundError as error:
        said = f"{said} The report could not be written: {error}".strip()
    if said:
        followed.said[order.name] = said


def _ended(record: RunRecord, said: str) -> tuple[str, str]:
    """(a class of the style sheet, what became of a run that does not go on)."""
    if record.outcome == "done":
        return "", f"The run is done. {said}".strip()
    if record.outcome == "failed" or said:
        return "bad", said if record.outcome != "failed" else story(record).trouble
    done = f"{len(record.rounds)} of {counted(record.planned, 'round')}" if record.planned else "its first round"
    return "warn", f"The run is stopped after {done}. What they came to is kept, and nothing is asked twice."


def _now(last: Event) -> str:
    """What a run that goes on does, by the last that was heard of it."""
    match last:
        case Waiting():
            return until(last)
        case RunStarted():
            return f"round {last.from_round} of {last.rounds} is being asked"
        case RoundEnded() if last.round + 1 < last.rounds:
            return f"round {last.round + 1} of {last.rounds} is being asked"
        case Proceeding():
            return f"round {last.round} is being asked"
    return "the run goes on"


def _folder(desk: Desk, request: Request) -> Path:
    for folder in desk.runs():
        if folder.name == request.path_params["name"]:
            return folder
    raise HTTPException(404)


def _late(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Whom the last round lacks, and why."""
    last = next((event for event in reversed(events) if isinstance(event, RoundEnded | RoundMissed)), None)
    if last is None:
        return []
    return [*((name, "not connected") for name in last.absent), *last.rejected.items()]


def _lines(events: Sequence[Event]) -> list[tuple[str, str]]:
    """(when, what happened), the newest first."""
    told = [(event.time[:19].replace("T", " "), line) for event in events for line in in_words(event)]
    return told[::-1]
