"""The first page: what waits for a person, what the budget is, what the daemon does, what is approved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.consent.approvals import ApprovalFolder
from wardround_client.hospital import Hospital
from wardround_client.office.offer import PROPOSED, proposed
from wardround_client.office.status import lines, of_home
from wardround_client.pages.desk import Desk
from wardround_client.pages.drawings import budget_chart
from wardround_client.service.control import Control


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def overview(request: Request) -> Response:
        with desk.opened() as hospital:
            there, status = proposed(hospital, desk.named), of_home(desk.home)
            waiting = [each for each in there if each.waits and each.approval is None]
            return desk.site.page(
                request,
                "overview.html",
                waiting=waiting,
                used=[each for each in there if each.waits and each.approval is not None],
                others=[each for each in there if not each.waits],
                broken=sum(bool(each.error) for each in there),
                news=_news(len(waiting)),
                last=_now(status),
                now=status,
                facts=[(name, value) for name, value in lines(status).items() if name not in ("approved", "epsilon")],
                budget=_budget(hospital, status),
                approved=[_approved(hospital, digest) for digest in status["approved"]],
                proposed_folder=str(desk.home / PROPOSED),
            )

    return {"/": overview}


def actions(desk: Desk) -> list[Action]:
    """What the buttons do."""

    def pause(request: Request) -> str:
        with Control(desk.home) as control:
            control.pause()
        request.state.session.said.append("Paused: every round is refused until you resume.")
        return "/"

    def resume(request: Request) -> str:
        with Control(desk.home) as control:
            control.resume()
        request.state.session.said.append("Resumed: rounds are answered again.")
        return "/"

    def revoke(request: Request) -> str:
        approvals = ApprovalFolder(desk.home)
        digest = approvals.find(form_of(request.scope).get("digest", "").strip() or "nothing")
        approvals.remove(digest)
        request.state.session.said.append(f"Revoked: {digest}. Every round of it is refused from the next message on.")
        return "/"

    return [Action("/pause", pause), Action("/resume", resume), Action("/revoke", revoke)]


def _news(waiting: int) -> str:
    waits = counted(waiting, "agreement waits", "agreements wait") if waiting else "Nothing waits"
    return f"{waits} for your answer."


def _now(status: Mapping[str, Any]) -> str:
    """What is spoken when it changes, beside what waits."""
    last = f"Last answer: run {status['run']}, round {status['round']}." if status["run"] else "No answer yet."
    return f"{last}{' Paused: every round is refused.' if status['paused'] else ''}"


def _budget(hospital: Hospital, status: Mapping[str, Any]) -> dict[str, Any]:
    spent, limit = status["epsilon_spent"], status["epsilon_budget"]
    return {
        "spent": f"{spent:.3g}",
        "limit": f"{limit:g}",
        "left": f"{max(0.0, limit - spent):.3g}",
        "delta": f"{status['delta']:.3g}",
        "chart": budget_chart(hospital.ledger.entries(), limit),
    }


def _approved(hospital: Hospital, digest: str) -> dict[str, Any]:
    """What was approved, as far as it can still be read."""
    try:
        name = hospital.approvals.federation(digest).name
        approval = hospital.approvals.approval(digest)
    except WardroundError as error:
        return {"digest": digest, "name": "not usable", "how": str(error)}
    begun = len(hospital.ledger.runs_of(digest))
    until = f", until {approval.until:%Y-%m-%d %H:%M} UTC" if approval.until else ""
    return {"digest": digest, "name": name, "how": f"{begun} of {counted(approval.runs, 'run')} begun{until}"}
