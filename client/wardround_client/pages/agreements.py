"""One agreement: what it asks, what it costs, and the button. What is shown is what is approved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError, PolicyRefusal
from wardround.schedule import QUESTIONS
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.hospital import Hospital
from wardround_client.office import MOST_DAYS, MOST_RUNS
from wardround_client.office.offer import Offer, Proposed, proposed
from wardround_client.office.terms import rows_of
from wardround_client.pages.desk import Desk
from wardround_client.pages.drawings import budget_bar


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def agreement(request: Request) -> Response:
        with desk.opened() as hospital:
            found = _named(desk, hospital, request)
            runs = _number(request.query_params.get("runs", "1"), "runs", 1, MOST_RUNS)
            days = _number(request.query_params.get("days", "0"), "days", 0, MOST_DAYS)
            offer = Offer.of(hospital, found.file, runs)
            return desk.site.page(request, "agreement.html", **_shown(offer, found, days))

    return {"/agreements/{key:str}": agreement}


def actions(desk: Desk) -> list[Action]:
    """What the button does."""

    def approve(request: Request) -> str:
        form = form_of(request.scope)
        with desk.opened() as hospital:
            found = _named(desk, hospital, request)
            runs = _number(form.get("runs", ""), "runs", 1, MOST_RUNS)
            days = _number(form.get("days", ""), "days", 0, MOST_DAYS)
            offer = Offer.of(hospital, found.file, runs)
            if (form.get("digest"), form.get("seal")) != (offer.digest, offer.seal):
                what = "the agreement" if form.get("digest") != offer.digest else "its cost, the cohort or the policy"
                raise PolicyRefusal(
                    "approved",
                    asked=f"what was shown before {what} changed",
                    allowed="what the page shows now: go back, load it again, and read it again",
                )
            if form.get("read") != "yes":
                raise ConfigError("the box beside the button is empty", do="go back, read the agreement, and tick it")
            if offer.obstacle and form.get("anyway") != "yes":
                raise offer.obstacle
            until = offer.approve(hospital, days)
        end = f", if it begins before {until:%Y-%m-%d %H:%M} UTC" if until else ""
        name, digest = offer.terms["name"], offer.digest
        request.state.session.said.append(f"Approved for {counted(runs, 'run')}{end}: {name} ({digest[:12]}).")
        return "/"

    return [Action("/agreements/{key:str}/approve", approve)]


def _named(desk: Desk, hospital: Hospital, request: Request) -> Proposed:
    """The file that an address stands for."""
    for each in proposed(hospital, desk.named):
        if each.key == request.path_params["key"]:
            return each
    raise HTTPException(404)


def _number(text: str, name: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most:
        return int(text)
    raise ConfigError(f"{name} is {text[:20]!r}", allowed=f"{least} to {most}")


def _shown(offer: Offer, found: Proposed, days: int) -> dict[str, Any]:
    terms = offer.terms
    price = terms["epsilon_spent_before"], terms["epsilon_after_this_run"], terms["epsilon_budget"]
    return {
        "offer": offer,
        "terms": terms,
        "file": str(found.file),
        "key": found.key,
        "waits": found.waits,
        "days": days,
        "most_runs": MOST_RUNS,
        "most_days": MOST_DAYS,
        "digest": " ".join(offer.digest[place : place + 4] for place in range(0, len(offer.digest), 4)),
        "questions": [
            (name, times, QUESTIONS[name].described) for name, times in dict[str, int](terms["questions"]).items()
        ],
        "bar": budget_bar(*price),
        "leaves": f"{terms['outbound_bytes']:,}",
        "rows": list(rows_of(terms).items()),
        "patients": list(offer.patients.items()),
    }
