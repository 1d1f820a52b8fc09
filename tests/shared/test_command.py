"""What a stranger reads: every help page, in the order of use, at 80 columns, with examples that a shell takes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from wardround.cli import command, run
from wardround.command import Commands

GROUPS = ("hospital", "coordinator", "encoder")


def pages() -> Iterator[tuple[str, ...]]:
    """The words of every command and group that is installed."""
    root = command()
    context = click.Context(root)
    yield ()
    for word in root.list_commands(context):  # type: ignore[attr-defined]
        yield (word,)
        found = root.get_command(context, word)  # type: ignore[attr-defined]
        if isinstance(found, Commands):
            yield from ((word, name) for name in found.list_commands(context))


@pytest.mark.parametrize("words", list(pages()), ids=" ".join)
def test_a_page_fits_and_its_examples_can_be_pasted(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert "\\[" not in page and "[/" not in page, "markup shows"
    if not words or (words[0] in GROUPS and len(words) == 1):
        return
    examples = page.split("Examples:\n")[1].split("\n\n")[0].replace("\\\n", " ")
    for line in examples.splitlines():
        assert tuple(shlex.split(line)[: len(words) + 1]) == ("wardround", *words), line


@pytest.mark.parametrize("words", [words for words in pages() if len(words) == 2], ids=" ".join)
def test_every_argument_and_option_says_what_it_is(words: tuple[str, ...]) -> None:
    root = command()
    group = root.get_command(click.Context(root), words[0])  # type: ignore[attr-defined]
    found = group.get_command(click.Context(group), words[1])
    for parameter in found.params:
        text = getattr(parameter, "help", "")
        if getattr(parameter, "hidden", False):
            continue
        assert text, (words, parameter.name)
        if isinstance(parameter, click.Argument):
            assert text.split()[0] in found.get_help(click.Context(found)), "the help of an argument is shown"


def test_the_journey_names_commands_that_are_there() -> None:
    root = command()
    for word in GROUPS:
        group = root.get_command(click.Context(root), word)  # type: ignore[attr-defined]
        for journey in group.journeys:
            assert set(journey.commands) <= set(group.kind.names)
        assert {group.kind[name].panel for name in group.kind.built_in} == set(group.panels)
        places = [(group.kind[name].panel, group.kind[name].place) for name in group.kind.built_in]
        assert len(set(places)) == len(places)


def test_a_typing_error_gets_the_name_that_is_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hospital", "aprove"]) == 2
    assert "Did you mean 'approve'" in capsys.readouterr().err


def test_the_first_page_waits_for_nothing_heavy() -> None:
    program = "import sys; from wardround.cli import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "flwr", "pydantic", "pydicom"} & set(done.stderr.split())
