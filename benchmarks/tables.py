"""What the tables of this folder have in common: intervals, a store that a run can be continued from, Markdown, plots.

A folder of results holds results.json, in which each row has a key, table.md, and an SVG for each learning curve.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from rich.console import Console
from scipy import stats

from wardround.errors import StorageError, WardroundError
from wardround.files import Held, locked, write_atomically
from wardround.web.charts import Curve, line_chart, style_sheet

Row = dict[str, object]
RESULTS, TABLE = "results.json", "table.md"
LOCK_PATIENCE_S = 10.0


@contextmanager
def ending(console: Console, *, stopped: str) -> Iterator[None]:
    """A refusal is a sentence and its exit code; Ctrl-C is `stopped`, and 130."""
    try:
        yield
    except WardroundError as error:
        console.print(str(error), highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print(stopped)
        sys.exit(130)


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval, both as fractions."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, at least two, with Student's interval.

    >>> str(estimate([0.5, 0.75, 1.0]))
    '75.00 ± 62.10'
    """
    sample = torch.tensor(values, dtype=torch.float64)
    error = sample.std().item() / len(values) ** 0.5
    return Estimate(sample.mean().item(), float(stats.t.ppf(0.975, len(values) - 1)) * error)


def hardware() -> str:
    """What this was measured on: processor, cores that this process may use, torch's threads and version."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} used, torch {torch.__version__}"


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed. The kernel's new pages otherwise cost a convolution up to half of its time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


class Store:
    """Rows of results by key, on the disk, a line each. Several processes may add to one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self) -> dict[str, Row]:
        """All rows, by key, in alphabetical order. Raises: StorageError, for a file that is none of ours."""
        path = self.folder / RESULTS
        try:
            rows: dict[str, Row] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: cannot be read ({error})", do="move it away, and run again") from None
        return dict(sorted(rows.items()))

    def put(self, key: str, row: Row) -> None:
        """Add a row, or replace it. Raises: StorageError."""
        with locked(
            self.folder / "lock",
            busy=Held(f"{self.folder} is being written by another process", do="wait for it"),
            patience_s=LOCK_PATIENCE_S,
        ):
            rows = self.rows() | {key: row}
            lines = (f"{json.dumps(name)}: {json.dumps(rows[name], sort_keys=True)}" for name in sorted(rows))
            write_atomically(self.folder / RESULTS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def markdown(rows: Iterable[Mapping[str, object]], columns: Mapping[str, str]) -> str:
    """A table; columns: headings by key of a row. What a row does not have stays empty.

    >>> print(markdown([{"name": "maml", "steps": 5}], {"name": "method", "steps": "steps"}), end="")
    | method | steps |
    |---|---|
    | maml | 5 |
    """
    cells = [[str(row.get(key, "")) for key in columns] for row in rows]
    lines = [f"| {' | '.join(each)} |\n" for each in (list(columns.values()), *cells)]
    lines.insert(1, "|" + "---|" * len(columns) + "\n")
    return "".join(lines)


def curve_svg(line: Curve, *, title: str, x_label: str, aim: float | None = None) -> str:
    """A learning curve in percent as a file of its own.

    Args:
        line: points (x, fraction), at least one. The axis shows the last four fifths of the way to the best one's
            errors; what lies below is left out.
        title: for those who cannot see it.
        x_label: what x is.
        aim: a published fraction, for a line of its own.
    """
    best = max(y for _, y in line.points)
    floor = max(0.0, math.floor(20 * (1 - 5 * (1 - best))) / 20)
    chart = line_chart(
        [replace(line, points=[point for point in line.points if point[1] >= floor])],
        title=title,
        x_label=x_label,
        y_label="accuracy",
        percent=True,
        y_range=(floor, 1.0),
        marks=[] if aim is None else [(aim, f"published: {100 * aim:.1f} %")],
    )
    return standing(chart)


def lines_svg(lines: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> str:
    """Curves of fractions as a file of their own, with a list of what they are."""
    drawing = line_chart(lines, title=title, x_label=x_label, y_label=y_label, percent=True, y_range=_around(lines))
    names = "".join(
        f'<text class="value {line.style}" x="310" y="{200 - 15 * place}">{escape(line.label)}</text>'
        for place, line in enumerate(reversed(lines))
    )
    return standing(str(drawing).replace("</svg>", f"{names}</svg>"))


def standing(chart: str) -> str:
    """A chart of a report, with its styles, as a file of its own."""
    style = style_sheet()
    standing = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return standing.replace("</title>", f"</title><style>{style}</style>", 1)


def _around(lines: Sequence[Curve]) -> tuple[float, float]:
    """Twentieths below and above all points."""
    values = [y for line in lines for _, y in line.points]
    return math.floor(20 * min(values, default=0.0)) / 20, math.ceil(20 * max(values, default=1.0)) / 20
