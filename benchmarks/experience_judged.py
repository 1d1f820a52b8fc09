"""What `wardround recommend` is worth on data that it has not seen, and what it learns before it ships.

    python benchmarks/experience_judged.py [--data DIR] [--cache DIR] [--out DIR] [--fits 6] [--epsilon 8]
                                           [--publish]

Each data set in turn is left out as a whole: all its tasks, all its runs. From the others, lengths are fitted by
likelihood, settings are recommended for each of its tasks, and these are run. So are wardround's
default, FedAvg by the leaderboard's rule, the settings that are best on average elsewhere, and what a random forest and
scikit-learn's Gaussian process choose of the same candidates. Against them stands the best of the runs that are known
of the task. All are run anew, with noise and supports that nothing was chosen by: the best of twenty is not judged by
its luck. Then all images are left out, and all tables, so that far is known too. At last the clip norm and the number
of features that are recommended for skin are held against all others.

--publish writes the lengths, and how far is far, to the file that comes with wardround.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.optimize import minimize
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import experience_tasks
from experience import CLIP_NORMS, Done, described, means, parser
from experience_tasks import Known
from real_data import folder
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.experience import advice as advising
from wardround.experience.advice import DEFAULT, LEARNED, SHOTS, Learned, advise, candidates, fitted
from wardround.experience.file import FILE
from wardround.experience.regression import Lengths, Process, Space, gain, method
from wardround.experience.row import Described, Row, Settings
from wardround.experience.rule import by_rule
from wardround.files import write_atomically

GRID_DRAWS = 2
"""Of each clip norm with each number of features."""
FRESH = 1
"""Runs of what was chosen, with draws that no choice has seen."""
BOUND, HELD = 3.0, 2.0  # of the logarithm of a length against its start
MOST_FITTED = 400
"""Rows, evenly spaced: lengths need no more, and their price grows with the cube."""
OURS, BEST = "recommended", "best known of this task"
Choice = Callable[[Described, Sequence[Row]], Settings]


def lengths_of(rows: Sequence[Row], fits: int) -> Lengths:
    """Those under which the rows' gains are most likely, held by where they start: there are few data sets."""
    start, rows = Lengths(), some(rows)

    def unlikely(by: Any) -> float:
        try:
            evidence = Process.of(rows, start.moved(by)).evidence
        except np.linalg.LinAlgError:
            return 1e9
        return -evidence + HELD * float(np.square(by).sum())

    sizes = len(asdict(start))
    found = minimize(
        unlikely, np.zeros(sizes), method="L-BFGS-B", bounds=[(-BOUND, BOUND)] * sizes, options={"maxiter": fits}
    )
    return start.moved(found.x)


def some(rows: Sequence[Row]) -> Sequence[Row]:
    """MOST_FITTED at most."""
    return [rows[at] for at in np.unique(np.linspace(0, len(rows) - 1, MOST_FITTED).round().astype(int))]


def default(task: Described, rows: Sequence[Row]) -> Settings:
    """Whatever the task."""
    return fitted(DEFAULT, task)


def on_average(task: Described, rows: Sequence[Row]) -> Settings:
    """What gained most elsewhere, against the mean of all that was run on the same task; of what ran on most tasks."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.task.model_dump_json(), []).append(row)
    found: dict[str, list[float]] = {}
    settings: dict[str, Settings] = {}
    for group in groups.values():
        middle = fmean(gain(row) for row in group)
        for row in group:
            if (row.task.kind == "table") == (task.kind == "table"):
                here = fitted(row.settings, task)
                key = json.dumps(here, sort_keys=True)
                settings[key] = here
                found.setdefault(key, []).append(gain(row) - middle)
    if not found:
        return default(task, rows)
    most = max(len(values) for values in found.values())
    often = {key: fmean(values) for key, values in found.items() if len(values) * 2 >= most}
    return settings[max(often, key=lambda key: often[key])]


def public(task: Described, rows: Sequence[Row]) -> Settings:
    """FedAvg as the leaderboard's rule sets it, from the numbers of patients and epsilon alone."""
    return by_rule(task)


@dataclass(frozen=True)
class Regressor:
    """A regressor of scikit-learn over the same coordinates, and the candidate that it expects most of. few: learned
    from MOST_FITTED rows.
    """

    make: Callable[[], Any]
    few: bool = False
    lengths: Lengths = field(default_factory=Lengths)

    def of(self, rows: Sequence[Row]) -> Choice:
        """Learned once from rows, for every task."""
        space, known = Space.of(rows, self.lengths), some(rows) if self.few else rows
        names = sorted({method(row.settings) for row in rows})

        def table(pairs: Sequence[tuple[Described, Settings]]) -> Any:
            points = space.points(pairs)
            which = [[float(method(settings) == name) for name in names] for _, settings in pairs]
            return np.hstack([points.task, points.settings, np.array(which)])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            learner = self.make().fit(
                table([(row.task, row.settings) for row in known]), np.array([gain(row) for row in known])
            )

        def choose(task: Described, rows: Sequence[Row]) -> Settings:
            tried = [default(task, rows), *candidates(rows, task)]
            return tried[int(np.argmax(learner.predict(table([(task, each) for each in tried]))))]

        return choose


def forest() -> Any:
    """100 trees."""
    return RandomForestRegressor(100, min_samples_leaf=2, random_state=0)


def process_of_theirs() -> Any:
    """One length for every coordinate."""
    kernel = ConstantKernel(0.05) * RBF(length_scale=np.full(1, 3.0)) + WhiteKernel(0.01)
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)


@dataclass(frozen=True)
class Left:
    """What is left out. rows: what is left to learn from. tasks: which of the known ones are judged."""

    name: str
    rows: Sequence[Row]
    tasks: Sequence[tuple[Known, float]]


def left_out(rows: Sequence[Row], tasks: Sequence[Known], epsilons: Sequence[float]) -> Iterator[Left]:
    """Each data set; then everything of a kind."""
    for source in sorted({known.source for known in tasks}):
        own = [(known, epsilon) for known in tasks if known.source == source for epsilon in epsilons]
        yield Left(source, [row for row in rows if row.source != source], own)
    for kind in ("image", "table"):
        own = [(known, epsilons[0]) for known in tasks if known.task.kind == kind]
        yield Left(f"every {kind}", [row for row in rows if row.task.kind != kind], own)


def judge(
    left: Left, rows: Sequence[Row], fresh: Done, store: Store, fits: int, console: Console
) -> Iterator[dict[str, Any]]:
    """Of each task that is left out, what every way of choosing chose, and what it got."""
    learned = Learned(_fitted(left, store, fits))
    choices: dict[str, Choice] = {"default": default}
    if not left.name.startswith("every"):
        choices |= {
            "FedAvg by the public rule": public,
            "best on average": on_average,
            "random forest": Regressor(forest).of(left.rows),
            "Gaussian process of scikit-learn": Regressor(process_of_theirs, few=True).of(left.rows),
        }
    for known, epsilon in left.tasks:
        task = described(known, epsilon)
        key = f"{left.name}/{known.name}/{epsilon:g}"
        cell = store.rows().get(key)
        if cell is None:
            advice = advise(task, left.rows, learned)
            chosen = {name: choose(task, left.rows) for name, choose in choices.items()}
            chosen[OURS] = advice.settings
            own = [row for row in rows if row.task == task and row.source == known.source]
            chosen[BEST] = max(own, key=lambda row: gain(row)).settings
            points = {name: 100 * score(fresh, known, settings, epsilon) for name, settings in chosen.items()}
            cell = {
                "left": left.name,
                "task": known.name,
                "epsilon": epsilon,
                "alike": advice.nearest[0].alike,
                "expected": 100 * advice.score,
                "spread": 100 * advice.spread,
                "chosen": chosen,
                "points": points,
            }
            store.put(key, cell)
            console.print(f"{key}: {points[OURS]:.1f}, default {points['default']:.1f}", highlight=False)
        yield cell


def score(fresh: Done, known: Known, settings: Settings, epsilon: float) -> float:
    """Balanced accuracy with SHOTS patients a class, with draws that no choice has seen."""
    plain = {key: value for key, value in settings.items() if known.features or key != "model.features"}
    if "model.features" in plain:
        plain["model.features"] = min(float(plain["model.features"]), float(max(known.features)))
    return fmean(row.scores[SHOTS] for row in fresh.run(known, plain, epsilon, FRESH))


def _fitted(left: Left, store: Store, fits: int) -> Lengths:
    key = f"lengths/{left.name}"
    cell = store.rows().get(key)
    if cell is None or cell["rows"] != len(left.rows):
        cell = {"rows": len(left.rows), "lengths": asdict(lengths_of(left.rows, fits))}
        store.put(key, cell)
    known: Any = cell["lengths"]
    return Lengths(**known)


def least_alike(cells: Sequence[Mapping[str, Any]]) -> float:
    """The likeness from which on advice was worth most in all, the default being what is said below it."""
    pairs = sorted(((cell["alike"], cell["points"][OURS] - cell["points"]["default"]) for cell in cells), reverse=True)
    if not pairs:
        return 0.0
    sums = np.cumsum([ahead for _, ahead in pairs])
    return float(pairs[int(sums.argmax())][0])


def skin_grid(
    rows: Sequence[Row], tasks: Sequence[Known], epsilons: Sequence[float], grid: Done, store: Store, fits: int
) -> str:
    """What the recommended clip norm and number of features lose on skin against the best of all, of rows that know
    nothing of skin. The best is chosen by half of the draws and judged, with the recommended, by the others.
    """
    left = next(each for each in left_out(rows, tasks, epsilons) if each.name == "skin")
    learned, lines = Learned(_fitted(left, store, fits)), []
    for known, epsilon in left.tasks:
        if "seven classes" not in known.name:
            continue
        chosen = advise(described(known, epsilon), left.rows, learned).settings
        cells = {
            (clip, features): {**chosen, "privacy.clip_norm": clip, "model.features": float(features)}
            for clip in CLIP_NORMS
            for features in experience_tasks.FEATURES
            if features >= float(chosen["model.embedding"])
        }
        own = (float(chosen["privacy.clip_norm"]), int(float(chosen["model.features"])))
        cells[own] = dict(chosen)
        found = {cell: [100 * row.scores[SHOTS] for row in grid.run(known, settings, epsilon, GRID_DRAWS)]
                 for cell, settings in cells.items()}  # fmt: skip
        half = GRID_DRAWS // 2
        best = max(found, key=lambda cell: fmean(found[cell][:half]))
        lines.append(
            {
                "task": known.name,
                "epsilon": f"{epsilon:g}",
                "by": method(chosen),
                "chosen": f"{own[0]:g}, {own[1]}",
                "best": f"{best[0]:g}, {best[1]}",
                "behind": f"{fmean(found[best][half:]) - fmean(found[own][half:]):+.1f}",
                "worst": f"{fmean(found[best][half:]) - min(fmean(each[half:]) for each in found.values()):+.1f}",
            }
        )
    return markdown(lines, _GRID)


_GRID = {
    "task": "task",
    "epsilon": "epsilon",
    "by": "algorithm",
    "chosen": "chosen clip norm, features",
    "best": "best",
    "behind": "behind it",
    "worst": "the worst is behind it",
}


def tables(cells: Sequence[dict[str, Any]]) -> str:
    """The regret of every way of choosing, by data set and in all; then how far is far."""
    near = [cell for cell in cells if not cell["left"].startswith("every")]
    sources = sorted({cell["left"] for cell in near})
    lines = []
    for name in near[0]["points"]:
        line: dict[str, object] = {"by": name}
        for what, base in (("regret", BEST), ("ahead", "default")):
            sign = -1 if what == "regret" else 1
            by_source = [
                fmean(sign * (c["points"][name] - c["points"][base]) for c in near if c["left"] == source)
                for source in sources
            ]
            line[what] = _points(by_source)
        lines.append(line)
    text = "\n### Each data set left out\n\n" + markdown(
        lines, {"by": "", "regret": "behind the best known", "ahead": "ahead of the default"}
    )
    text += "\n" + markdown([_of_source(near, source) for source in sources], _COLUMNS)
    return text + "\n### How far is far\n\n" + markdown(list(_far(cells)), _FAR)


_COLUMNS = {
    "left": "left out",
    "tasks": "tasks",
    "default": "default",
    OURS: OURS,
    BEST: "best known",
    "inside": "within what was expected",
    "answered": "answered",
}
_FAR = {
    "left": "left out",
    "tasks": "tasks",
    "alike": "alike",
    "answered": "answered",
    "ahead": "ahead of the default, answered",
    "declined": "ahead of the default, had it answered",
}


def _points(values: Sequence[float]) -> str:
    found = estimate(values)
    return f"{found.mean:+.1f} ± {found.half_width:.1f}"


def _threshold(cells: Sequence[Mapping[str, Any]], source: str) -> float:
    """Chosen without it."""
    return least_alike([cell for cell in cells if cell["left"] != source])


def _of_source(cells: Sequence[Mapping[str, Any]], source: str) -> dict[str, object]:
    own = [cell for cell in cells if cell["left"] == source]
    inside = [abs(c["points"][OURS] - c["expected"]) <= c["spread"] for c in own]
    answered = [cell["alike"] >= _threshold(cells, source) for cell in own]
    means_of = {name: f"{fmean(cell['points'][name] for cell in own):.1f}" for name in ("default", OURS, BEST)}
    return {
        "left": source,
        "tasks": len(own),
        **means_of,
        "inside": f"{sum(inside)} of {len(own)}",
        "answered": f"{sum(answered)} of {len(own)}",
    }


def _far(cells: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    groups = {"a data set": [cell for cell in cells if not cell["left"].startswith("every")]}
    groups |= {kind: [c for c in cells if c["left"] == kind] for kind in ("every image", "every table")}
    for name, own in groups.items():
        if own:
            ahead: dict[bool, list[float]] = {True: [], False: []}
            for cell in own:
                answered = cell["alike"] >= _threshold(cells, cell["left"])
                ahead[answered].append(cell["points"][OURS] - cell["points"]["default"])
            yield {
                "left": name,
                "tasks": len(own),
                "alike": f"{min(c['alike'] for c in own):.2f} to {max(c['alike'] for c in own):.2f}",
                "answered": len(ahead[True]),
                "ahead": f"{fmean(ahead[True]):+.1f}" if ahead[True] else "",
                "declined": f"{fmean(ahead[False]):+.1f}" if ahead[False] else "",
            }


def main(arguments: list[str] | None = None) -> None:
    """Judge what is not judged yet."""
    known = parser()
    known.description = (__doc__ or "").split("\n")[0]
    known.add_argument("--fits", type=int, default=6, help="steps towards the most likely lengths (6)")
    known.add_argument("--epsilon", type=float, nargs="+", default=[8.0], help="at which it is judged (8)")
    options = known.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        every = Done(options.out / FILE)
        rows = means([row for found in every.found.values() for row in found])
        fresh = Done(options.out / "judged.jsonl", first=options.draws)
        known_tasks = [
            each
            for each in experience_tasks.every(folder(options.data), options.cache or options.out / "features", console)
            if not options.tasks or any(part in each.name for part in options.tasks)
        ]
        ran = {row.task.model_dump_json() for row in rows}
        cells: list[dict[str, Any]] = []
        for left in left_out(rows, known_tasks, options.epsilon):
            own = [pair for pair in left.tasks if described(*pair).model_dump_json() in ran]
            cells += judge(replace(left, tasks=own), rows, fresh, store, options.fits, console)
        text = f"{hardware()}. {len(rows)} settings of {len(ran)} tasks, in points of balanced accuracy.\n"
        text += tables(cells)
        if any(each.source == "skin" for each in known_tasks):
            grid = Done(options.out / "grid.jsonl", first=options.draws + FRESH)
            text += "\n### Clip norm and features on skin\n\n"
            text += skin_grid(rows, known_tasks, options.epsilon, grid, store, options.fits)
        write_atomically(options.out / TABLE, text.encode(), mode=0o644)
        print(text, end="")
        if options.publish:
            learned = {"lengths": asdict(lengths_of(rows, options.fits)), "least_alike": round(least_alike(cells), 4)}
            path = Path(advising.__file__).with_name(LEARNED)
            write_atomically(path, (json.dumps(learned, indent=1) + "\n").encode(), mode=0o644)


if __name__ == "__main__":
    main()
