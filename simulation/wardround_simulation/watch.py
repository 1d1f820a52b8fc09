"""What a person, a pipe or a program sees of a simulation while it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wardround.schedule import TRAINING
from wardround.screen import Screen
from wardround_simulation.tables import show_audit, show_membership

Event = Mapping[str, Any]
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
        """Says nothing: each line carries `"privacy": "OFF"` itself."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def event(self, event: Event) -> None:
        """The event as it stands in events.jsonl."""
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class PlainWatch:
    """Plain lines, for a log or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds, self._privacy_on = 0, True

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """The title, and the warning."""
        self._rounds, self._privacy_on = rounds, privacy_on
        if not privacy_on:
            self._say(f"*** {OFF} ***")
        self._say(title)

    def step(self, stage: str, done: int, total: int) -> None:
        """A line when a stage is through."""
        if done == total:
            self._say(f"{stage}: {total} of {total}")

    def note(self, text: str) -> None:
        """The sentence."""
        self._say(text)

    def event(self, event: Event) -> None:
        """A line a round."""
        if event.get("event") == "round":
            self._say(round_line(event, self._rounds, self._privacy_on))
            for name, reason in (event.get("rejected") or {}).items():
                self._say(f"  rejected {name}: {reason}")
        if event.get("event") in FINDINGS:
            FINDINGS[event["event"]](self._console, event)
        if event.get("event") == "done":
            show_comparison(self._console, event.get("comparison"))
            if not self._privacy_on:
                self._say(f"*** {OFF} ***")
            self._say(f"report: {event.get('report')}")

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class RichWatch:
    """Progress bars in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._rounds, self._privacy_on = 0, True

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """The title, the red banner where it is due, and the bars."""
        self._rounds, self._privacy_on = rounds, privacy_on
        if not privacy_on:
            self._banner()
        self._console.print(Text(title, style="bold"))
        self._progress.start()

    def step(self, stage: str, done: int, total: int) -> None:
        """Moves the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, facts="")
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def note(self, text: str) -> None:
        """The sentence, above the bars."""
        self._progress.console.print(Text(text, style="dim"))

    def event(self, event: Event) -> None:
        """Moves the bar of the rounds; at the end shows the table and where the report lies."""
        if event.get("event") == "round":
            training = int(event.get("training_round") or 0)
            self.step("rounds", training, self._rounds)
            self._progress.update(self._tasks["rounds"], facts=facts(event, self._privacy_on))
            for name, reason in (event.get("rejected") or {}).items():
                self._progress.console.print(Text(f"rejected {name}: {reason}", style="yellow"))
        if event.get("event") in FINDINGS:
            FINDINGS[event["event"]](self._progress.console, event)
        if event.get("event") == "done":
            self.stop()
            show_comparison(self._console, event.get("comparison"))
            if not self._privacy_on:
                self._banner()
            self._console.print(Text(f"report: {event.get('report')}", style="bold"), soft_wrap=True)

    def stop(self) -> None:
        """Leave the terminal in order, also after an error."""
        self._progress.stop()

    def _banner(self) -> None:
        self._console.print(Panel(Text(OFF, style="bold white"), style="white on red"))


@contextmanager
def watching(*, as_json: bool) -> Iterator[Watch]:
    """The watch that fits where standard output goes."""
    if as_json:
        yield JsonWatch(sys.stdout)
        return
    console = Screen()
    if not console.is_terminal:
        yield PlainWatch(console)
        return
    watch = RichWatch(console)
    try:
        yield watch
    finally:
        watch.stop()


def facts(event: Event, privacy_on: bool) -> str:
    """What is worth knowing about a round, short."""
    parts = [f"{event.get('replied')}/{event.get('hospitals')} replied"]
    epsilon = event.get("epsilon_max")
    parts.append(
        f"epsilon {epsilon:.2f}" if privacy_on and epsilon is not None else "privacy OFF" if not privacy_on else ""
    )
    accuracy = event.get("accuracy")
    parts.append(f"accuracy {100 * accuracy:.0f} %" if accuracy is not None else "")
    return ", ".join(part for part in parts if part)


def round_line(event: Event, rounds: int, privacy_on: bool) -> str:
    """A round as one line of text."""
    training = event.get("training_round") or 0
    what = f"round {training} of {rounds}" if event.get("question") in TRAINING else str(event.get("question"))
    return f"{what}: {facts(event, privacy_on)} ({event.get('seconds', 0):.2f} s)"


def show_comparison(console: Console, comparison: Mapping[str, Any] | None) -> None:
    """The last table: k-shot accuracy from the meta-learned and from a fresh model."""
    if not comparison:
        return
    table = Table(
        title=f"Balanced accuracy at {comparison['hospital']}, which took no part, after adapting to a few patients",
        caption=f"mean of {comparison['repeats']} draws (95 % interval); chance {100 * comparison['chance']:.0f} %",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("patients a class", "fresh model", "meta-learned model", "points gained"):
        table.add_column(heading, justify="right")
    for row in comparison["rows"]:
        meta, fresh = row["meta"], row["fresh"]
        gain = 100 * (meta["mean"] - fresh["mean"])
        table.add_row(str(row["shots"] or "not adapted"), _cell(fresh), _cell(meta), f"{gain:+.1f}")
    console.print(table)


def _cell(value: Mapping[str, float]) -> str:
    interval = f" ({100 * value['low']:.1f} to {100 * value['high']:.1f})" if value["low"] < value["high"] else ""
    return f"{100 * value['mean']:.1f} %{interval}"
