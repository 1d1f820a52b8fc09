"""The leaderboard as a page, its two pictures, and a table of all numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heat_map import heat_map, signed
from leaderboard_scores import BASELINE, BESIDE, LOCAL, SHOTS, Board, Place, verdict
from leaderboard_sets import SETS
from public_rule import TABLES, by_rule
from rows import NONE
from tables import TABLE, Store, hardware, markdown
from wardround.files import write_atomically

PAGE, WORTH, METHODS = "leaderboard.md", "leaderboard.svg", "leaderboard-methods.svg"
COLUMNS = (NONE, "8", "3", "1")
MIDDLE = 5  # shots of the tables that show one number
_CALLED = {NONE: "not private", "8": "epsilon 8", "3": "epsilon 3", "1": "epsilon 1"}
_SHOTS = {shots: f"{shots} shot{'s' * (shots > 1)}" for shots in SHOTS}
_IN_PICTURES = {shots: _SHOTS[shots] if shots == 1 else str(shots) for shots in SHOTS}  # columns are narrow
_GROUPS = {_CALLED[column]: list(_IN_PICTURES.values()) for column in COLUMNS}


def write(store: Store, folder: Path) -> None:
    """The page and its pictures in a folder, and all numbers beside the store. Raises: StorageError."""
    board = Board(store.rows(), [each.name for each in SETS], [row.name for row in by_rule(TABLES)], COLUMNS)
    for each in (folder, store.folder):
        each.mkdir(parents=True, exist_ok=True)
    parts = (_head(board), _worth(board), _winners(board), _per_set(board), _unable(board), _sets(board))
    write_atomically(folder / PAGE, "\n".join(parts).encode())
    write_atomically(folder / WORTH, _worth_picture(board).encode())
    write_atomically(folder / METHODS, _methods_picture(board).encode())
    write_atomically(store.folder / TABLE, _everything(board).encode())


def _head(board: Board) -> str:
    wanted = sum(len(COLUMNS) if row.private else 1 for each in SETS for row in by_rule(each.features))
    known = len({key.rpartition("/")[0] for key in board.cells})
    hours = sum(cell["cpu_s"] for cell in board.cells.values()) / 3600
    return f"""# Leaderboard

Every method that wardround has, on {len(SETS)} public data sets, each with hospitals that took no part.
`make leaderboard` measures what is missing and writes this page; {known:,} of {wanted:,} cells (a method, a data set,
an epsilon) are filled, in {hours:.1f} processor hours ({hardware()}).

**Nothing was tuned on a patient.** Settings come from one public rule (`benchmarks/public_rule.py`), which knows the
family of a method, what kind of features it sees, how many patients the hospitals declare, and epsilon. So the numbers
are lower than those of [the single tables](benchmarks.md), where each row has its best of six trials. A method that
needs tuning is at a disadvantage here, as it is where tuning has to be paid for. The rule's constants come from those
tables, so skin and hearts have been looked at.

Scores are balanced accuracy (outlines: Dice) in percent, of patients in no support; *ahead* is a difference in points
on the same supports. A shot is a patient of each class. An interval is Student's 95 % over three seeds, a seed being a
draw of noise and three supports; or over data sets, where it says so. {LOCAL.capitalize()} is the same model from its
untrained start.
"""


def _worth(board: Board) -> str:
    lines: list[dict[str, object]] = []
    for column in COLUMNS:
        line: dict[str, object] = {"column": _CALLED[column]}
        for shots in SHOTS:
            found = [board.worth(each, (column, shots)) for each in board.sets]
            counts = Counter(verdict(each) for each in found if each is not None)
            line[str(shots)] = " / ".join(str(counts[said]) for said in ("ahead", "level", "behind")) if counts else ""
        lines.append(line)
    counted = markdown(lines, {"column": "", **{str(shots): _SHOTS[shots] for shots in SHOTS}})
    return f"""## When is it worth learning together?

![Points by which a federation is ahead of local training, by data set, epsilon and shots]({WORTH})

In each cell stands the method that is furthest ahead on the *other* data sets: what one would choose who has read this
page, and not the best of twenty here. Bold: the interval leaves 0 out. Each adapts as the rule says. `hospital adapt`
also chooses how far it goes, and local training where that is better, by cross-validation; that is not measured here,
and where the hospitals that learned have little in common with the new one (chests: one of children, one of adults),
it is what one needs.

Data sets where it is ahead of local training / level (within the interval) / behind:

{counted}
{_not_worth(board)}"""


def _not_worth(board: Board) -> str:
    lines = []
    for column in COLUMNS:
        found = {each: [board.worth(each, (column, shots)) for shots in SHOTS] for each in board.sets}
        not_worth = [
            name for name, own in found.items() if all(each is not None and verdict(each) != "ahead" for each in own)
        ]
        if any(each is not None for own in found.values() for each in own):
            lines.append(f"* {_CALLED[column]}: {'; '.join(not_worth) or 'none'}.")
    if not lines:
        return ""
    because = "because no number of shots is ahead of local training beyond its interval"
    return f"**Not worth it**, {because}:\n\n" + "\n".join(lines) + "\n"


def _winners(board: Board) -> str:
    lines: list[dict[str, object]] = []
    for row in board.federated:
        line: dict[str, object] = {"row": row}
        for column in COLUMNS:
            mean = board.mean_ahead(row, BASELINE, (column, MIDDLE))
            wins = sum(board.best(each, (column, MIDDLE))[:1] == [row] for each in board.sets)
            if row == BASELINE:
                line[column], line[f"{column} wins"] = "", wins
            elif mean is not None:
                line[column] = f"{signed(mean.mean)} ± {100 * mean.half_width:.1f}"
                line[f"{column} wins"] = wins
        if len(line) > 1:
            lines.append(line)
    headings = {"row": ""}
    for column in COLUMNS:
        headings |= {column: _CALLED[column], f"{column} wins": "best in"}
    return f"""## Who is ahead?

![Points by which a method is ahead of FedAvg + fine-tune, mean over data sets]({METHODS})

Mean over data sets of the points ahead of {BASELINE} at {MIDDLE} shots, with the interval over data sets,
and in how many it is the best (by the mean, whatever the interval). A method has the data sets that it can run on.

{markdown(lines, headings)}"""


def _per_set(board: Board) -> str:
    lines: list[dict[str, object]] = []
    for dataset in board.sets:
        line: dict[str, object] = {"set": dataset}
        own = board.score(dataset, LOCAL, (NONE, MIDDLE))
        if own is not None:
            line["local"] = f"{100 * own.mean:.1f} ± {100 * own.half_width:.1f}"
        for column in COLUMNS:
            place = (column, MIDDLE)
            ranked = board.best(dataset, place)
            if ranked:
                level = [row for row in ranked[1:] if _level(board, dataset, ranked[0], row, place)]
                score, ahead = board.score(dataset, ranked[0], place), board.ahead(dataset, ranked[0], LOCAL, place)
                assert score is not None
                gain = "" if ahead is None else f", {signed(ahead.mean)} ± {100 * ahead.half_width:.1f}"
                line[column] = f"{ranked[0]} {100 * score.mean:.1f}{gain}; {len(level)} of {len(ranked) - 1} level"
        if len(line) > 1:
            lines.append(line)
    headings = {"set": f"{MIDDLE} shots", "local": LOCAL, **{column: _CALLED[column] for column in COLUMNS}}
    return f"""## Who wins where, and by how much?

The best method, its score, how far it is ahead of {LOCAL}, and how many others its lead does not tell from it. The
best of twenty is a lucky one: expect less of it on the next data set. All numbers, at 1, 5 and 20 shots:
`benchmarks/results/leaderboard/{TABLE}`.

{markdown(lines, headings)}"""


def _level(board: Board, dataset: str, best: str, row: str, place: Place) -> bool:
    found = board.ahead(dataset, best, row, place)
    return found is not None and verdict(found) == "level"


def _unable(board: Board) -> str:
    reasons: dict[str, dict[str, None]] = {}
    for key, cell in board.cells.items():
        if "reason" in cell:
            dataset, _, row, _ = key.split("/")
            reasons.setdefault(f"{row}: {cell['reason']}", {})[dataset] = None
    if not reasons:
        return ""
    lines = [f"* {reason} ({'; '.join(where)})" for reason, where in sorted(reasons.items())]
    return "## Empty cells, and why\n\n" + "\n".join(lines) + "\n"


def _sets(board: Board) -> str:
    lines: list[dict[str, object]] = []
    for each in SETS:
        spent = [cell["cpu_s"] for key, cell in board.cells.items() if key.startswith(f"{each.name}/")]
        says: dict[str, object] = {"set": each.name, "says": each.says, "hospitals": each.hospitals}
        lines.append({**says, "minutes": round(sum(spent) / 60), "cells": len(spent)})
    headings = {"set": "", "says": "what", "hospitals": "hospitals", "cells": "runs", "minutes": "processor minutes"}
    return f"""## The data sets

*Simulated*: each data set plays a hospital with classes of its own. Sources and licences: [Benchmarks](benchmarks.md).
Images are seen through frozen public encoders: skin and chests at 128 px and the modalities at 28 px through
EfficientNet-Lite0's ImageNet weights (`benchmarks/imagenet_encoder.py`; without `--encoders` the built-in one),
outlines through the built-in one. Of the modalities at most 1,000 patients of a data set learn; of outlines 6 frames or
12 slices of a patient, and 48 patients are judged. Where more hospitals could be new, the largest are, to save time.
Golub's leukaemia is left out: its hospital tells its class.

{markdown(lines, headings)}

The encoders of `--encoders DIR`, a minute each:

{ENCODERS}"""


_MAKES = "    python benchmarks/imagenet_encoder.py --kind"
_ALL = "--image-size-px 128 --side-px 128 --stages 0 1 2 3 4 5 6"
ENCODERS = f"""{_MAKES} dermatoscopy {_ALL} --copies h --images 700 --features 256 --out DIR/skin.safetensors
{_MAKES} grey {_ALL} --images 700 --features 96 --out DIR/chest.safetensors
{_MAKES} colour --images 1500 --features 96 --out DIR/small.safetensors
"""
"""What makes the files that the sets name."""


def _worth_picture(board: Board) -> str:
    cells = {
        (dataset, _CALLED[column], _IN_PICTURES[shots]): found
        for dataset in board.sets
        for column, shots in board.places
        if (found := board.worth(dataset, (column, shots))) is not None
    }
    return heat_map(
        "Points ahead of local training",
        "of the method that is best on the other data sets; blue: the federation is ahead; bold: beyond its interval",
        board.sets,
        _GROUPS,
        cells,
    )


def _methods_picture(board: Board) -> str:
    cells = {
        (row, _CALLED[column], _IN_PICTURES[shots]): found
        for row in board.rows
        if row != BASELINE
        for column, shots in board.places
        if (found := board.mean_ahead(row, BASELINE, (column, shots))) is not None
    }
    names = sorted((row for row in board.rows if row != BASELINE), key=lambda row: _rank(board, row))
    return heat_map(
        f"Points ahead of {BASELINE}",
        "mean over the data sets that a method can run on; bold: beyond its interval over data sets",
        names,
        _GROUPS,
        cells,
    )


def _rank(board: Board, row: str) -> tuple[bool, float]:
    found = [board.mean_ahead(row, BASELINE, place) for place in board.places]
    means = [each.mean for each in found if each is not None]
    return row in BESIDE, -sum(means) / len(means) if means else 1.0


def _everything(board: Board) -> str:
    parts = ["All numbers of docs/leaderboard.md, in %, at 1 / 5 / 20 shots, with halves of 95 % intervals.\n"]
    for dataset in board.sets:
        lines: list[dict[str, object]] = []
        for row in board.rows:
            line: dict[str, object] = {"row": row}
            for column in COLUMNS if row not in BESIDE else (NONE,):
                said = _three(board, dataset, row, column)
                if said:
                    line[column] = said
            if len(line) > 1:
                lines.append(line)
        if lines:
            parts.append(f"\n### {dataset}\n\n" + markdown(lines, {"row": "", **_CALLED}))
    return "".join(parts)


def _three(board: Board, dataset: str, row: str, column: str) -> str:
    found: Sequence[Any] = [board.score(dataset, row, (column, shots)) for shots in SHOTS]
    if any(each is None for each in found):
        return ""
    return " / ".join(f"{100 * each.mean:.1f} ± {100 * each.half_width:.1f}" for each in found)
