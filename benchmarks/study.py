"""What the commands of several tables have in common: options, features that are computed once, progress, output."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from encoded import narrowed
from hospitals import Measurement, Study
from public_rule import IMAGES, TABLES, adds_up_classes, by_rule
from real_data import folder
from rows import MAIN, NONE, Row
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, lines_svg, markdown
from wardround.errors import ConfigError
from wardround.files import write_atomically
from wardround.web.charts import Curve

RESULTS = Path(__file__).parent / "results"
SETTINGS = "settings.md"
BASELINE = "FedAvg + fine-tune"
"""What the others are compared with, on the same supports."""
# Those of the plot, each with its style: more lines cannot be told apart.
DRAWN = {
    "discriminant": "main",
    "FedAvg + fine-tune": "second",
    "reptile": "third",
    "prototypical": "fourth",
    "local only": "faint",
}
CALLED = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "dice": "Dice",
    "concordance": "concordance",
    "brier_score": "Brier score",
}
"""The metrics, in the order of the tables; rows are tuned and drawn by the first that a study has."""
ALONE = ("local only",)
"""Those that learn nothing from others, and cost nobody anything: they stand in the column without privacy alone."""


def parser(name: str, description: str, *, encoder: bool) -> argparse.ArgumentParser:
    """The options of every table; name: of its folder of results. encoder: whether the data are images."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="folder of the data; default: the variable WARDROUND_DATA")
    options.add_argument("--rows", nargs="+", default=["main"], metavar="NAME", help='names, "main" (default) or "all"')
    options.add_argument("--epsilon", nargs="+", default=[NONE, "8", "3", "1"], metavar="E", help='columns; "none" too')
    options.add_argument("--seeds", type=int, default=5, help="at least 2")
    options.add_argument("--study", nargs="+", metavar="NAME", help="parts of the names of those to run; default: all")
    options.add_argument("--out", type=Path, default=RESULTS / name)
    if encoder:
        options.add_argument("--encoder", type=Path, metavar="FILE", help="safetensors; default: the built-in one")
        options.add_argument("--features", type=int, default=64, help="that the encoder gives (64)")
        options.add_argument("--cache", type=Path, help="of encoded images; default: features/ in --out")
    options.add_argument("--by-rule", action="store_true", help="settings of public_rule.py: nothing is tuned")
    options.add_argument("--json", action="store_true", help="a JSON object for each cell instead of the table")
    return options


def run(
    options: argparse.Namespace,
    studies: Callable[[Path, Console], Sequence[Study]],
    rows: Sequence[Row],
) -> None:
    """Measure what is missing, and print.

    Args:
        options: of `parser`.
        studies: made of the folder of the data.
        rows: all that there are.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        if options.seeds < 2:
            raise ConfigError(f"--seeds {options.seeds}", allowed="at least 2: an interval is over seeds")
        measured = _measurements(options, studies(folder(options.data), console), rows, store)
        able = [each for each in measured if not _refused(each, console)]
        _measure(able, options, [row.name for row in rows], console)
    if options.json:
        for _, cell in sorted(store.rows().items()):
            if "row" in cell:
                print(json.dumps(cell))
    else:
        print((options.out / TABLE).read_text(), end="")


def _measurements(
    options: argparse.Namespace, studies: Iterable[Study], rows: Sequence[Row], store: Store
) -> list[Measurement]:
    """In the order of the columns, so that a first table is there soon. Raises: ConfigError."""
    named = {row.name: row for row in rows}
    wanted = [name for each in options.rows for name in {"main": MAIN, "all": tuple(named)}.get(each, (each,))]
    for name in wanted:
        if name not in named:
            raise ConfigError(f"no row is called {name!r}", allowed=", ".join(named), do="correct --rows")
    for column in options.epsilon:
        if column != NONE and not _is_epsilon(column):
            raise ConfigError(f"--epsilon {column}", allowed=f'numbers above 0, and "{NONE}"')
    if options.by_rule:
        rule = IMAGES if "features" in options else TABLES
        named |= {row.name: row for row in by_rule(rule)}
    chosen = [study for study in studies if not options.study or any(part in study.name for part in options.study)]
    return [
        _measurement(study, named[name], column, store, options)
        for column in options.epsilon
        for study in chosen
        for name in wanted
        if column == NONE or named[name].private
    ]


def _measurement(study: Study, row: Row, column: str, store: Store, options: argparse.Namespace) -> Measurement:
    """By the rule, images are seen through as many components as it says."""
    if options.by_rule and "features" in options and row.kind != "floor":
        epsilon = None if column == NONE else float(column)
        study, _ = narrowed(study, epsilon, of_sums=adds_up_classes(row))
    return Measurement(study, row, column, store, options.by_rule)


def _refused(measured: Measurement, console: Console) -> bool:
    """Whether its method cannot be agreed on for such tasks, which is told."""
    row = measured.row
    why = measured.unable((row.exact or row.private)[0]) if row.kind not in ("floor", "outside") else ""
    if why:
        console.print(f"{measured.study.name}, {row.name}, {measured.column}: {why}", markup=False, highlight=False)
    return bool(why)


def _is_epsilon(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _measure(
    measured: Sequence[Measurement], options: argparse.Namespace, names: Sequence[str], console: Console
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    steps = [(each, list(each.steps(options.seeds))) for each in measured]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(len(own) for _, own in steps))
        for each, own in steps:
            what = f"{each.study.name}, {each.row.name}, {each.column}"
            progress.update(task, description=what)
            for step in own:
                step()
                progress.advance(task)
            if not console.is_terminal:
                console.print(f"{what}: done", highlight=False)
            publish(each.store, names)


def publish(store: Store, names: Sequence[str]) -> None:
    """Write the tables, what was chosen, and a plot of each target from all that is known. Raises: StorageError.

    names: of all rows, in the order of the tables.
    """
    cells: list[dict[str, Any]] = [dict(cell) for cell in store.rows().values() if "row" in cell]
    cells.sort(key=lambda cell: names.index(cell["row"]) if cell["row"] in names else len(names))
    metrics = " / ".join(CALLED[name] for name in _metrics(cells))
    parts = [f"{hardware()}. In %, with the half width of the 95 % interval: {metrics}.\n"]
    chosen = []
    for study in dict.fromkeys(cell["study"] for cell in cells):
        own = [cell for cell in cells if cell["study"] == study]
        chosen.append(_settings(study, own))
        for target in own[0]["scores"]:
            for shots in sorted({shots for cell in own for shots in cell["scores"][target]}, key=int):
                parts += [
                    f"\n### {study}: {target}, {shots} shot{'s' * (shots != '1')} a class\n\n",
                    _table(own, target, shots),
                ]
            if plot := _plot(own, study, target):
                write_atomically(store.folder / f"{_slug(study, target)}.svg", plot.encode())
    write_atomically(store.folder / TABLE, "".join(parts).encode())
    write_atomically(store.folder / SETTINGS, "\n".join(chosen).encode())


def _metrics(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that were measured."""
    found = {
        name for cell in cells for by_shots in cell["scores"].values() for each in by_shots.values() for name in each
    }
    return [name for name in CALLED if name in found]


def _values(cells: Iterable[Mapping[str, Any]], target: str, shots: str, metric: str) -> dict[int, float]:
    """By seed."""
    return {cell["seed"]: cell["scores"][target][shots][metric] for cell in cells if shots in cell["scores"][target]}


def _by(cells: Sequence[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Cells by the value of a key."""
    return {
        value: [cell for cell in cells if cell[key] == value] for value in dict.fromkeys(cell[key] for cell in cells)
    }


def _columns(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Without privacy first, then by falling epsilon."""
    return sorted({cell["column"] for cell in cells}, key=lambda name: -float("inf") if name == NONE else -float(name))


def _table(cells: Sequence[dict[str, Any]], target: str, shots: str) -> str:
    """Each row's metrics by column, and how far it is ahead of BASELINE in the same column, seed by seed."""
    lines = []
    for name, own in _by(cells, "row").items():
        line: dict[str, object] = {"row": name}
        for column, here in _by(own, "column").items():
            metrics = _metrics(cells)
            found = [_values(here, target, shots, metric) for metric in metrics]
            if len(found[0]) > 1:
                line[column] = " / ".join(str(estimate(list(values.values()))) for values in found)
            base = [cell for cell in cells if (cell["row"], cell["column"]) == (BASELINE, column)]
            known = _values(base, target, shots, metrics[0])
            ahead = [value - known[seed] for seed, value in found[0].items() if seed in known]
            if len(ahead) > 1 and name != BASELINE:
                line[f"ahead {column}"] = f"{'+' if fmean(ahead) > 0 else ''}{estimate(ahead)}"
        lines.append(line)
    headings = {"row": ""}
    for column in _columns(cells):
        headings[column] = "not private" if column == NONE else f"epsilon {column}"
        headings[f"ahead {column}"] = "ahead"
    return markdown(lines, headings)


def _settings(study: str, cells: Sequence[dict[str, Any]]) -> str:
    lines: list[dict[str, object]] = []
    for name, own in _by(cells, "row").items():
        for column, here in _by(own, "column").items():
            found = here[0]["chosen"]
            if found:
                trial = {**found["trial"], **found["trial"]["settings"]}
                del trial["settings"]
                said = ", ".join(f"{key} {value}" for key, value in trial.items())
                adapting = found["adapting"].get("1", "")
                score = "" if found["score"] is None else f"{100 * found['score']:.1f}"
                lines.append({"row": name, "column": column, "trial": said, "adapting": adapting, "score": score})
    headings = {"row": "row", "column": "epsilon", "trial": "chosen", "adapting": "adapting, 1 shot"}
    return f"### {study}\n\n" + markdown(lines, {**headings, "score": "at the pseudo-targets"})


def _plot(cells: Sequence[dict[str, Any]], study: str, target: str) -> str:
    """The first metric over shots, at the greatest epsilon that was measured; empty without a row of DRAWN."""
    column = next((name for name in _columns(cells) if name != NONE), NONE)
    lines = []
    for name, own in _by(cells, "row").items():
        here = [cell for cell in own if cell["column"] == (NONE if name in ALONE else column)]
        if name not in DRAWN or not here:
            continue
        points = [
            (float(shots), fmean(values.values()))
            for shots in sorted(here[0]["scores"][target], key=int)
            if (values := _values(here, target, shots, _metrics(cells)[0]))
        ]
        lines.append(Curve(name, points, DRAWN[name]))
    if not lines:
        return ""
    what = "without privacy" if column == NONE else f"at epsilon {column}"
    return lines_svg(
        lines, title=f"{study}: {target}, {what}", x_label="patients a class", y_label=CALLED[_metrics(cells)[0]]
    )


def _slug(*parts: str) -> str:
    return re.sub("[^a-z0-9_]+", "-", "-".join(parts))
