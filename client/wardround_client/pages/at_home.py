"""What this hospital has of the federation: predictions with heat maps, and whom to label next; made here, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError, WardroundError
from wardround.text import shown
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_client.hospital import Hospital
from wardround_client.office.at_home import (
    MOST,
    Kept,
    Predictions,
    cut_off,
    key_of,
    picture,
    prediction_folders,
    predictions,
    suggestion_lists,
    suggestions,
)
from wardround_client.pages import jobs, work
from wardround_client.pages.desk import Desk
from wardround_client.personal.adapted_file import names

PICTURES, ROWS = 48, 200
"""Of one page."""
PREDICTION, SUGGESTION = "prediction", "suggestion"
_PATHS = {PREDICTION: "/home/predictions", SUGGESTION: "/home/suggestions"}
MOST_PATHS, MOST_PATIENTS = 100, 100_000


@dataclass(frozen=True)
class _Summary:
    """A line of the list. why: it cannot be read."""

    why: str = ""
    model: str = ""
    complete: bool = False
    images: int = 0
    patients: int = 0
    unlike: int = 0
    refused: int = 0


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def everything(request: Request) -> Response:
        with desk.opened() as hospital:
            gone = frozenset(hospital.patients.register.read())
            approved = _approved(hospital)
        bench = desk.site.kept(work.Bench)
        return desk.site.page(
            request,
            "at_home.html",
            running=bench.running,
            ended=[_became(each) for each in bench.last.values() if each.kind in _PATHS and not each.runs],
            folders=[(kept, *_summary(kept, gone)) for kept in prediction_folders(desk.home)],
            lists=suggestion_lists(desk.home),
            models=names(desk.home),
            approved=approved,
            most=MOST_PATIENTS,
        )

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
        columns = _columns(rows)
        return desk.site.page(
            request,
            "suggestions.html",
            kept=kept,
            columns=columns,
            headings=[(name.removeprefix("# ") or "column", "") for name in columns],
            lines=[row | {name: row[name][:8] for name in ("# pseudonym",) if name in row} for row in rows[:ROWS]],
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
    """Predict, go on with what was cut off, suggest; one at a time, as everything that takes long."""

    def predict(request: Request) -> str:
        form = form_of(request.scope)
        paths = [_there(line) for line in form.get("paths", "").split("\n") if line.strip()]
        if not 1 <= len(paths) <= MOST_PATHS:
            raise ConfigError(f"{len(paths)} files or folders", allowed=f"1 to {MOST_PATHS}")
        return _predict(desk, paths, form.get("adapted", ""), form.get("heatmap") == "yes")

    def go_on(request: Request) -> str:
        asked = cut_off(_one_of(prediction_folders(desk.home), request).path)
        if asked is None:
            raise ConfigError("these predictions are complete, or cannot be read", do="predict again")
        return _predict(desk, asked.paths, asked.adapted, asked.heatmap)

    def suggest(request: Request) -> str:
        form = form_of(request.scope)
        count = form.get("count", "")
        if not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= MOST_PATIENTS):
            raise ConfigError(f"{shown(count, 20)!r} patients", allowed=f"1 to {MOST_PATIENTS:,}")
        where, labels = (str(_there(form[name])) if form.get(name, "").strip() else "" for name in ("where", "labels"))
        federation = form.get("federation", "")
        with desk.opened() as hospital:
            if federation and federation not in dict(_approved(hospital)):
                raise ConfigError("no approved agreement was chosen", do="go back and choose one")
        what = f"Whom to label next, of {shown(where or labels)}"
        work.start(desk.site, desk.home, SUGGESTION, what, jobs.suggest, int(count), where, labels, federation)
        return "/home"

    def stop(request: Request) -> str:
        form = form_of(request.scope)
        stopped = work.stop(desk.site, form.get("key", ""), at_once=form.get("how") == "at once")
        return "/home" if stopped.kind in _PATHS else "/audit"

    return [
        Action("/home/predict", predict),
        Action("/home/predictions/{key:str}/go-on", go_on),
        Action("/home/suggest", suggest),
        Action("/stop", stop),
    ]


def _predict(desk: Desk, paths: Sequence[Path], adapted: str, heatmap: bool) -> str:
    if adapted not in names(desk.home):
        raise ConfigError(
            "no adapted model of this hospital was chosen",
            allowed=", ".join(names(desk.home)) or "none: nothing was adapted here yet",
            do="go back and choose one",
        )
    what = f"Predictions by {adapted} of {shown(paths[0])}" + (f" and {len(paths) - 1} more" if paths[1:] else "")
    work.start(desk.site, desk.home, PREDICTION, what, jobs.predict, paths, adapted, heatmap)
    return "/home"


def _became(ended: work.Work) -> dict[str, str]:
    """What became of one: in words, and where it can be read."""
    if ended.state == "done":
        said, file = ended.result
        return {"class": "", "what": ended.what, "said": said, "path": f"{_PATHS[ended.kind]}/{key_of(Path(file))}"}
    if ended.state == "failed":
        return {"class": "bad", "what": ended.what, "said": ended.error, "path": ""}
    kept = " What was done is kept: press Go on below." if ended.kind == PREDICTION else ""
    return {"class": "warn", "what": ended.what, "said": f"It was stopped at {ended.when} UTC.{kept}", "path": ""}


def _there(line: str) -> Path:
    """The file or folder that somebody typed. Raises: ConfigError."""
    try:
        path = Path(line.strip())
        if path.is_absolute() and path.exists():
            return path
        why = "is not there" if path.is_absolute() else "is not a whole path"
    except (OSError, ValueError) as error:  # of a name that no disk takes
        why = f"cannot be looked at ({error})"
    raise ConfigError(
        f"{shown(line)} {shown(why)}",
        allowed="what is on this machine, from / on",
        do="go back and correct it",
    )


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Who and why first; what is to be filled in, and so is empty in every line, is left out."""
    told = [name for name in (rows[0] if rows else ()) if any(row.get(name) for row in rows)]
    first = [name for name in ("# PatientID", "PatientID", "# why") if name in told]
    return [*first, *(name for name in told if name not in first)]


def _approved(hospital: Hospital) -> list[tuple[str, str]]:
    """(digest, name) of each approved agreement that can be read."""
    found = []
    for digest in sorted(hospital.approvals.digests()):
        try:
            found.append((digest, hospital.approvals.federation(digest).name))
        except WardroundError:
            continue
    return found


def _withdrawn(desk: Desk) -> Sequence[bytes]:
    with desk.opened() as hospital:
        return list(hospital.patients.register.read())


@lru_cache(maxsize=MOST)  # what was written does not change; while something runs the page looks each second
def _summary(kept: Kept, gone: frozenset[bytes]) -> tuple[_Summary | None, bool]:
    """(what is in it, None where nobody wrote that; whether it can be gone on with)."""
    again = cut_off(kept.path) is not None
    try:
        if again and not kept.path.exists():
            return None, again
        found = predictions(kept.path, gone)
    except WardroundError as error:
        return _Summary(str(error)), again
    unlike = sum(row["out_of_distribution"] for row in found.images)
    counts = len(found.images), len(found.patients), unlike, len(found.refused)
    return _Summary("", str(found.about["adapted"]), found.complete, *counts), again


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
