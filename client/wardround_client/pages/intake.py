"""What the cohort holds, and what was set aside with its reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.web.views import Action, View
from wardround_client.hospital import Hospital
from wardround_client.office.quarantine import MOST, quarantine
from wardround_client.pages.desk import Desk

_LISTED = 100
"""Reasons, and lines of the cohort's tables."""


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def intake(request: Request) -> Response:
        reason = request.query_params.get("reason", "")
        with desk.opened() as hospital:
            facts, why = _cohort(hospital)
        return desk.site.page(
            request,
            "intake.html",
            facts=facts,
            why=why,
            aside=quarantine(desk.home / "cohort", reason),
            reason=reason,
            most=MOST,
            listed=_LISTED,
        )

    return {"/intake": intake}


def actions(desk: Desk) -> list[Action]:
    """None: what is taken in is IT's."""
    return []


def _cohort(hospital: Hospital) -> tuple[list[tuple[str, str]], str]:
    """(what it holds, why that cannot be said)."""
    try:
        cohort = hospital.patients.cohort()
    except WardroundError as error:
        return [], str(error)
    facts = [
        ("patients", f"{len(set(cohort.pseudonyms)):,}"),
        ("declared", f"{hospital.config.hospital.declared_patients:,}"),
    ]
    facts += [("images" if cohort.kind != "table" else "rows", f"{len(cohort):,}"), ("kind", cohort.kind)]
    for name, values in (("modality", cohort.modalities), ("manufacturer", cohort.manufacturers)):
        counts = Counter(values).most_common(_LISTED)
        facts.append(
            (f"by {name}", ", ".join(f"{value or 'not named'} {count:,}" for value, count in counts) or "none")
        )
    return facts, ""
