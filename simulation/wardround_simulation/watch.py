"""What a person, a pipe or a program sees of a simulation while it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from wardround.screen import Screen
from wardround.terminal import Table
from wardround.text import capital
from wardround_server.events import Attacked, Event, RoundEnded, RoundMissed, RunEnded
from wardround_server.words import facts, in_words, remarks
from wardround_simulation.tables import show_audit, show_membership

OFF = (
    "PRIVACY OFF: no clipping, no noise. This run protects nobody. "
    "Use it for research on synthetic or public images only."
)
FINDINGS = {"membership": show_membership, "audit": show_audit}


class Watch(Protocol):
    """Told what happens; decides how it looks."""

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """The run starts."""
        ...

    def step(self, stage: str, done: int, total: int) -> None:
        """A stage before the rounds (writing, reading) has come so far."""
        ...

    def note(self, text: str) -> None:
        """A sentence for a person."""
        ...

    def event(self, event: Event) -> None:
        """A round has ended, something was found (`membership`, `audit`), or (`done`) the run has."""
        ...


class JsonWatch:
    """One JSON object a line: every round, every finding, and last `done`. Nothing else reaches the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """Nothing: each line carries `"privacy": "OFF"` itself."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """The event as it stands in events.jsonl."""
        self._stream.write(event.line() + "\n")
        self._stream.flush()


class PlainWatch:
    """Plain lines, for a log or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds, self._privacy_on = 0, True

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """The title, and the warning."""
        self._rounds, self._privacy_on = rounds, privacy_on
        self._warn()
        self._say(title)

    def step(self, stage: str, done: int, total: int) -> None:
        """A line when a stage begins, and one when it is through."""
        if done == 0:
            self._say(f"{stage} ...")
        if done == total:
            self._say(f"{stage}: {total} of {total}")

    def note(self, text: str) -> None:
        """The sentence."""
        self._say(text)

    def event(self, event: Event) -> None:
        """A line a round; tables of what was found, and at the end where the report lies."""
        match event:
            case Attacked():
                FINDINGS[event.event](self._console, event.model_dump())
            case RunEnded():
                self.stop()
                show_comparison(self._console, event.comparison)
                self._warn()
                self._say(f"report: {event.report}", "bold")
            case RoundEnded() | RoundMissed():
                self._round(event)

    def stop(self) -> None:
        """Leave the screen in order, also after an error."""

    def _round(self, event: RoundEnded | RoundMissed) -> None:
        for line in in_words(event, self._rounds):
            self._say(line)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _warn(self) -> None:
        if not self._privacy_on:
            self._say(f"*** {OFF} ***")


class RichWatch(PlainWatch):
    """Progress bars in a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """The title, the red banner where it is due, and the bars."""
        super().begin(title, privacy_on=privacy_on, rounds=rounds)
        self._progress.start()

    def step(self, stage: str, done: int, total: int) -> None:
        """Moves the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, facts="")
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def note(self, text: str) -> None:
        """The sentence, above the bars."""
        self._say(text, "dim")

    def stop(self) -> None:
        """Take the bars to their end."""
        self._progress.stop()

    def _warn(self) -> None:
        if not self._privacy_on:
            self._console.print(Panel(Text(OFF, style="bold white"), style="white on red"))

    def _round(self, event: RoundEnded | RoundMissed) -> None:
        if isinstance(event, RoundEnded):
            self.step("rounds", event.training_round or 0, self._rounds)
            self._progress.update(self._tasks["rounds"], facts=facts(event))
        for line in remarks(event):
            self._say(line, "yellow")


@contextmanager
def watching(*, as_json: bool) -> Iterator[Watch]:
    """The watch that fits where standard output goes."""
    if as_json:
        yield JsonWatch(sys.stdout)
        return
    console = Screen()
    watch = RichWatch(console) if console.is_terminal else PlainWatch(console)
    try:
        yield watch
    finally:
        watch.stop()


def show_comparison(console: Console, comparison: Mapping[str, Any] | None) -> None:
    """The last table: k-shot accuracy from the meta-learned and from a fresh model."""
    if not comparison:
        return
    score, by_chance = comparison.get("score", "balanced accuracy"), comparison["chance"]
    chance = "" if by_chance is None else f"; chance {100 * by_chance:.0f} %"
    rows = [
        (
            str(row["shots"] or "not adapted"),
            _cell(row["fresh"]),
            _cell(row["meta"]),
            f"{100 * (row['meta']['mean'] - row['fresh']['mean']):+.1f}",
        )
        for row in comparison["rows"]
    ]
    table = Table(
        (">patients a class", ">fresh model", ">meta-learned model", ">points gained"),
        rows,
        f"{capital(score)} at {comparison['hospital']}, which took no part, after adapting to a few patients",
        f"mean of {comparison['repeats']} draws (95 % interval){chance}",
    )
    console.print(table, crop=False)


def _cell(value: Mapping[str, float]) -> str:
    interval = f" ({100 * value['low']:.1f} to {100 * value['high']:.1f})" if value["low"] < value["high"] else ""
    return f"{100 * value['mean']:.1f} %{interval}"
