"""An audit, started with a button, watched while it runs, read when it is done."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError, WardroundError
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.office import LEAST_TRIALS, NOTE, TRIALS
from wardround_client.pages import jobs, work
from wardround_client.pages.desk import Desk

KIND, MOST_TRIALS = "audit", 100_000


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
        bench = desk.site.kept(work.Bench)
        return desk.site.page(
            request,
            "audit.html",
            approved=approved,
            running=bench.running,
            last=bench.last.get(KIND),
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
        with desk.opened() as hospital:
            digest = hospital.approvals.find(form.get("digest", ""))
            name = hospital.approvals.federation(digest).name
        what = f"Audit of {name} ({digest[:12]})"
        work.start(desk.site, desk.home, KIND, what, jobs.audit, digest, int(trials))
        return "/audit"

    return [Action("/audit", start)]
