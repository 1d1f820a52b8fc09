"""All pages of a hospital, put together."""

from __future__ import annotations

from starlette.types import ASGIApp

from wardround_client.pages import agreements, at_home, audit, intake, ledger, overview, patients
from wardround_client.pages.desk import Desk

_PARTS = (overview, agreements, ledger, patients, intake, audit, at_home)


def app(desk: Desk) -> ASGIApp:
    """The application, to stand behind a guard."""
    pages = {path: page for part in _PARTS for path, page in part.pages(desk).items()}
    return desk.site.app(pages, [action for part in _PARTS for action in part.actions(desk)])
