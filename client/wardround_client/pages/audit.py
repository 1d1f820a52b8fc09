"""An audit, started with a button, watched while it runs, read when it is done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError, WardroundError
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.audit import AuditReport
from wardround_client.office import LEAST_TRIALS, NOTE, TRIALS
from wardround_client.office.auditing import audited
from wardround_client.pages.desk import Desk

MOST_TRIALS = 100_000
log = logging.getLogger(__name__)


@dataclass
class Running:
    """The audit of this page, the one that runs or the last one. of: which agreement."""

    runs: bool = False
    of: str = ""
    progress: str = ""
    when: str = ""
    report: AuditReport | None = None
    error: str = ""


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def audit(request: Request) -> Response:
        with desk.opened() as hospital:
            approved = []
            for digest in sorted(hospital.approvals.digests()):
                try:
                    approved.append((digest, hospital.approvals.federation(digest).name))
                except WardroundError:
                    continue  # it cannot be used, and so not be attacked
        return desk.site.page(
            request,
            "audit.html",
            approved=approved,
            now=desk.site.kept(Running),
            note=NOTE,
            trials=TRIALS,
            least=LEAST_TRIALS,
            most=MOST_TRIALS,
        )

    return {"/audit": audit}


def actions(desk: Desk) -> list[Action]:
    """Start one; one at a time."""

    def start(request: Request) -> str:
        form = form_of(request.scope)
        trials = form.get("trials", "")
        if not (trials.isascii() and trials.isdigit() and LEAST_TRIALS <= int(trials[:9]) <= MOST_TRIALS):
            raise ConfigError(f"{trials[:20]!r} trials", allowed=f"{LEAST_TRIALS} to {MOST_TRIALS}")
        if desk.site.kept(Running).runs:
            raise ConfigError("an audit runs already", do="wait for its end")
        with desk.opened() as hospital:
            digest = hospital.approvals.find(form.get("digest", ""))
            name = hospital.approvals.federation(digest).name
        running = Running(runs=True, of=f"{name} ({digest[:12]})", progress="begins")
        desk.site.keep(running)
        arguments = (desk, running, digest, int(trials))
        threading.Thread(target=_run, args=arguments, name="audit", daemon=True).start()
        return "/audit"

    return [Action("/audit", start)]


def _run(desk: Desk, running: Running, digest: str, trials: int) -> None:
    def told(name: str, done: int, total: int) -> None:
        running.progress = f"{name}: {done:,} of {total:,} answers"

    try:
        _, running.report = audited(desk.home, digest, trials=trials, progress=told)
    except WardroundError as error:
        running.error = str(error)
    except Exception:
        log.exception("the audit")
        running.error = "An error of this program; the log has its details."
    finally:
        running.when = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
        running.runs = False
