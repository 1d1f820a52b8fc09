"""Patients who said no: who has withdrawn, what is stored of them, and taking out more."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError
from wardround.text import counted
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.office.withdrawals import STORED, Withdrawal, budget, registered, short, withdraw
from wardround_client.pages.desk import Desk

SHOWN_DIGITS = 8
MOST = 2000
"""Withdrawn patients that the page lists; `withdraw --list` lists all."""


@dataclass
class _Last:
    """What the last press of a button came to; no PatientID is in it. key: what stands for it in an address."""

    done: Withdrawal | None = None
    key: str = field(default_factory=secrets.token_urlsafe)
    only_looked: bool = False


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def patients(request: Request) -> Response:
        last = desk.site.kept(_Last)
        mine = last.done if request.query_params.get("result") == last.key else None
        with desk.opened() as hospital:
            everybody, spent = registered(hospital), budget(hospital)
        return desk.site.page(
            request,
            "patients.html",
            count=len(everybody),
            rows=[
                (short(each.withdrawn or ""), each.pseudonym.hex()[:SHOWN_DIGITS], STORED[each.stored])
                for each in everybody[-MOST:]
            ],
            done=mine,
            only_looked=last.only_looked,
            unsure=mine is not None and any(not use.certain for patient in mine.found for use in patient.rounds),
            stored=STORED,
            digits=SHOWN_DIGITS,
            short=short,
            spent=f"epsilon {spent['epsilon_spent']:.4g} of {spent['epsilon_budget']:g}",
        )

    return {"/patients": patients}


def actions(desk: Desk) -> list[Action]:
    """Look, or take out."""

    def take_out(request: Request) -> str:
        form = form_of(request.scope)
        ids = [line for line in form.get("patients", "").splitlines() if line.strip()]
        only_look = form.get("do") != "withdraw"
        if not ids:
            raise ConfigError("no PatientID was given", allowed="PatientIDs, one a line")
        if not only_look and form.get("sure") != "yes":
            raise ConfigError("the box above the button is empty", do="go back and tick it: a withdrawal is for good")
        said: list[str] = request.state.session.said

        def failing() -> None:
            said.append("They are withdrawn: the register is written. The next step failed.")

        with desk.opened() as hospital:
            erase = not only_look and form.get("erase") == "yes"
            done = withdraw(hospital, ids, erase=erase, only_look=only_look, failing=failing)
        desk.site.keep(last := _Last(done, only_looked=only_look))
        if not only_look:
            said.append(f"Withdrawn: {counted(len(done.found), 'patient')}, from the next round on and for good.")
        done.check()
        return f"/patients?result={last.key}"

    return [Action("/patients/withdraw", take_out)]
