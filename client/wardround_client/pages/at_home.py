"""What this hospital has of the federation: predictions with heat maps, and whom to label next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import WardroundError
from wardround.web.views import Action, View
from wardround_client.office.at_home import (
    Kept,
    Predictions,
    picture,
    prediction_folders,
    predictions,
    suggestion_lists,
    suggestions,
)
from wardround_client.pages.desk import Desk

PICTURES, ROWS = 48, 200
"""Of one page."""


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def everything(request: Request) -> Response:
        gone = _withdrawn(desk)
        folders = [(kept, *_summary(kept.path, gone)) for kept in prediction_folders(desk.home)]
        return desk.site.page(request, "at_home.html", folders=folders, lists=suggestion_lists(desk.home))

    def one(request: Request) -> Response:
        kept, found = _predictions(desk, request)
        start = _start(request, len(found.images))
        return desk.site.page(
            request,
            "predictions.html",
            kept=kept,
            found=found,
            images=list(enumerate(found.images))[start : start + PICTURES],
            start=start,
            following=start + PICTURES if start + PICTURES < len(found.images) else 0,
            rows=ROWS,
        )

    def drawing(request: Request) -> Response:
        kept, found = _predictions(desk, request)
        number = _start(request, len(found.images), request.path_params["number"])
        png = picture(kept.path, found.images[number]) if found.images else None
        if png is None:
            raise HTTPException(404)
        return Response(png, media_type="image/png")

    def labels(request: Request) -> Response:
        kept = _one_of(suggestion_lists(desk.home), request)
        rows = suggestions(kept.path, _withdrawn(desk))
        columns = list(rows[0]) if rows else []
        return desk.site.page(
            request,
            "suggestions.html",
            kept=kept,
            columns=columns,
            headings=[(name.removeprefix("# ") or "column", "") for name in columns],
            lines=rows[:ROWS],
            count=len(rows),
            most=ROWS,
        )

    return {
        "/home": everything,
        "/home/predictions/{key:str}": one,
        "/home/predictions/{key:str}/{number:str}.png": drawing,
        "/home/suggestions/{key:str}": labels,
    }


def actions(desk: Desk) -> list[Action]:
    """None: `predict` and `suggest` are given files."""
    return []


def _withdrawn(desk: Desk) -> Sequence[bytes]:
    with desk.opened() as hospital:
        return list(hospital.patients.register.read())


def _summary(file: Path, gone: Sequence[bytes]) -> tuple[Predictions | None, str]:
    try:
        return predictions(file, gone), ""
    except WardroundError as error:
        return None, str(error)


def _predictions(desk: Desk, request: Request) -> tuple[Kept, Predictions]:
    kept = _one_of(prediction_folders(desk.home), request)
    return kept, predictions(kept.path, _withdrawn(desk))


def _one_of(there: Sequence[Kept], request: Request) -> Kept:
    for each in there:
        if each.key == request.path_params["key"]:
            return each
    raise HTTPException(404)


def _start(request: Request, count: int, text: str = "") -> int:
    asked = text or request.query_params.get("from", "0")
    if not (asked.isascii() and asked.isdigit() and len(asked) < 9 and int(asked) < max(count, 1)):
        raise HTTPException(404)
    return int(asked)
