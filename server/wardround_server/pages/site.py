"""All pages of a coordinator, put together."""

from __future__ import annotations

from starlette.types import ASGIApp

from wardround_server.pages import hospitals, overview, runs
from wardround_server.pages.desk import Desk

_PARTS = (overview, runs, hospitals)


def app(desk: Desk) -> ASGIApp:
    """The application, to stand behind a guard."""
    pages = {path: page for part in _PARTS for path, page in part.pages(desk).items()}
    return desk.site.app(pages, [action for part in _PARTS for action in part.actions(desk)])
