"""`wardround recommend`: which algorithm and which settings, for a task that nobody has run yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import Fields, Table, emit, say, show

if TYPE_CHECKING:
    from wardround.experience.advice import Near
    from wardround.experience.row import Row

SHOTS = 5

PatientsOption = Annotated[
    str, typer.Option(help="Patients that each hospital declares, such as 200,150,90.", show_default=False)
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(help="Epsilon of the whole run.", min=1e-3, max=1e9, show_default="the file's, or 8"),
]
ExperienceOption = Annotated[
    list[Path] | None,
    typer.Option(help="Rows of your own runs, beside ours: a coordinator's experience.jsonl. Can be repeated."),
]


def recommend(
    task: Annotated[
        Path, typer.Argument(metavar="TASK.toml", help="A table [task], or a federation.toml.", show_default=False)
    ],
    patients: PatientsOption = "",
    epsilon: EpsilonOption = None,
    shots: Annotated[
        int, typer.Option(help="Labelled patients a class that a new hospital has.", min=0, max=100)
    ] = SHOTS,
    experience: ExperienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which algorithm and which settings to agree on, what to expect of them, and how sure that is.

    It is learned from runs on public data, and from your own: no patient is asked, and nothing is charged. Far from
    all that is known it says so, and names FedAvg by a public rule.
    """
    # One thread is the fastest with so few numbers, and more wait for each other; said before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from wardround.experience.asked import asked, described

    found, _ = asked(task)
    wanted = described(found, patients, epsilon)
    rows = known_rows(experience or (), tell=not as_json)
    from wardround.experience.advice import Learned, advise, in_words
    from wardround.experience.advice import as_json as plain

    advice = advise(wanted, rows, Learned.ours(), shots=shots)
    if as_json:
        emit(event="recommendation", task=wanted.model_dump(mode="json"), **plain(advice))
        return
    if not advice.known:
        say(f"I don't know: {advice.why_not}. What follows is FedAvg by a public rule.")
    values = {
        "task": in_words(wanted),
        **{key.removeprefix("algorithm.name") or "algorithm": _written(each) for key, each in advice.settings.items()},
    }
    if advice.tasks:
        score = f"{100 * advice.score:.0f} ± {100 * advice.spread:.0f} % {advice.metric}"
        values["expected"] = f"{score} at a new hospital with {shots} patients a class"
    if advice.known:
        ahead = f"{100 * advice.ahead:+.0f} ± {100 * advice.ahead_spread:.0f}"
        values["ahead"] = f"{ahead} points of the default, of which {100 * advice.default:.0f} % are expected"
    show(Fields(values))
    if advice.nearest:
        show(Table(("nearest", "task", ">alike", ">best", "by"), [_row(each) for each in advice.nearest], title=" "))
        say(f"Learned from {advice.runs:,} runs on {advice.tasks} tasks.")
    say("`wardround coordinator init HOME --like TASK.toml --patients ...` writes it into a federation.toml.")


def _row(near: Near) -> Sequence[str]:
    from wardround.experience.advice import in_words

    score = f"{100 * near.best:.0f} %"
    return near.source or "your own", in_words(near.task), f"{near.alike:.2f}", score, near.algorithm


def known_rows(paths: Sequence[Path], *, tell: bool) -> list[Row]:
    """Ours, and those of files. tell: say what of them is passed over. Raises: ConfigError."""
    from wardround.experience.file import ours, read

    rows = list(ours())
    for path in paths:
        found = read(path)
        if found.passed_over and tell:
            say(f"{path}: passed over {found.passed_over}.")
        rows += found.rows
    return rows


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


app = Command(
    recommend,
    panel="",
    place=2,
    examples=(
        "wardround recommend task.toml --patients 200,150,90",
        "wardround recommend federation.toml --patients 200,150,90 --epsilon 3 --experience experience.jsonl",
    ),
)
