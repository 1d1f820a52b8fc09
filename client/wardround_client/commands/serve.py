"""`wardround hospital serve`: predict for new studies of the PACS, and put the results beside them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import FederationError
from wardround.terminal import Fields, Table, emit, say, show
from wardround.text import counted, shown
from wardround_client.commands._at_home import opened
from wardround_client.commands._common import NewHome, checked

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 20


def serve(
    home: NewHome,
    once: Annotated[
        bool, typer.Option("--once", help="Do what can be done now, and end; 6 when something is left.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show what was done and what waits, and end.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what failed, and what waits for another try.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read; 0: one for each core.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Predict for new studies of the PACS, and put the results beside them. [serve] in hospital.toml switches it on.

    It asks the PACS of [pacs] for new studies, or is sent them; the models that [serve] names predict; and what they
    say goes back to the same study of the same PACS, as a structured report (SR), a segmentation or a picture. Nothing
    is sent anywhere else.

    No study is answered twice by one model. It may be killed at any moment: the same command goes on. A result is kept
    until the PACS has said that it has it. Patients who have withdrawn, models whose patients have, and a hospital that
    is paused are left alone.

    This is not a medical device: a prediction is not a diagnosis.
    """
    from wardround.files import locked
    from wardround_client.one_life import check_not_stopped
    from wardround_client.serve.loop import SERVE, Server, busy
    from wardround_client.service.daemon import stopped_by_signals
    from wardround_client.service.log_file import logging_to

    home = checked(home)
    if status:
        _status(home, as_json=as_json)
        return

    def told(line: str) -> None:
        emit(event="serve", detail=line) if as_json else say(line)

    check_not_stopped(home)
    hospital, stop = opened(home), threading.Event()
    with (
        locked(home / f"{SERVE}.lock", busy=busy(home)),
        logging_to(home, hospital.config.operations.log_format, f"{SERVE}.log"),
    ):
        server = Server(hospital, stop, told, workers or None)
        if retry:
            told(f"{counted(server.queue.again(), 'result')} to be tried again")
        with stopped_by_signals(stop):
            done = server.run(once=once)
    if once and not done:
        raise FederationError("something is left to do", do="see `wardround hospital serve --status`; run it again")


def _status(home: Path, *, as_json: bool) -> None:
    from contextlib import closing
    from datetime import datetime

    from wardround_client.serve.loop import SERVE
    from wardround_client.serve.queue import Queue

    path = home / SERVE / "queue.sqlite"
    if not path.exists():
        emit(event="serve", counts={}) if as_json else say("Nothing was done yet.")
        return
    with closing(Queue(path)) as queue:
        counts = queue.counts()
        reasons = {state: queue.reasons(state) for state in ("waiting", "made", "refused", "failed")}
        aside = queue.aside(_SHOWN)
    if as_json:
        emit(event="serve", counts=counts, reasons=reasons, set_aside=[list(row[1:3]) for row in aside])
        return
    show(Fields({_WORDS[state]: f"{count:,}" for state, count in counts.items()}, "Studies, by model"))
    rows = [
        (_WORDS[state], shown(reason), str(count)) for state, each in reasons.items() for reason, count in each.items()
    ]
    if rows:
        show(Table(("", "why", ">studies"), rows[:_SHOWN]))
    for time, what, reason, _ in aside:
        say(f"Set aside {datetime.fromtimestamp(time):%Y-%m-%d %H:%M}: {shown(what)}: {shown(reason)}")


_WORDS = {
    "waiting": "to be predicted",
    "made": "to be sent",
    "sent": "in the PACS",
    "refused": "not answered",
    "failed": "set aside until --retry",
}

command = Command(
    serve,
    panel="Use at home",
    place=7,
    examples=(
        "wardround hospital serve ~/st-anna --once",
        "wardround hospital serve ~/st-anna",
        "wardround hospital serve ~/st-anna --status",
    ),
)
