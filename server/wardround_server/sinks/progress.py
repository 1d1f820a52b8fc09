"""A run on the screen: a bar on a terminal, else a line a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from wardround.screen import Screen
from wardround_server.events import Event, RoundEnded, RoundMissed, RunStarted, Waiting
from wardround_server.sinks import Tell
from wardround_server.words import facts, in_words, remarks, until


@contextmanager
def sink(folder: Path, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Show the run on standard output."""
    with on(Screen()) as tell:
        yield tell


@contextmanager
def on(screen: Screen) -> Iterator[Tell]:
    """Show a run on a screen."""

    def show(lines: list[str]) -> None:
        for line in lines:
            screen.print(line, soft_wrap=True)

    if not screen.is_terminal:
        yield lambda event: show(in_words(event))
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen) as progress:
        bar = progress.add_task("starting", total=None, news="")

        def tell(event: Event) -> None:
            match event:
                case RunStarted():
                    progress.update(bar, total=event.rounds, completed=event.from_round, description=event.run)
                    show(in_words(event)[1:])
                case Waiting():
                    progress.update(bar, news=until(event))
                case RoundEnded():
                    progress.update(bar, completed=event.round + 1, news=facts(event))
                    show(remarks(event))
                case RoundMissed():
                    show(remarks(event))
                case _:
                    show(in_words(event))

        yield tell
