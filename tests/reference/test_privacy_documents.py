"""docs/privacy.md and docs/privacy-specification.md say what the code says: figures, rules, algorithms and commands."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.chosen import UNITS, algorithm

from wardround.algorithms import ALGORITHMS
from wardround_client.commands import app
from wardround_client.config import BudgetLimits, Policy

ROOT = Path(__file__).parents[2]
LETTER = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
SPECIFICATION = (ROOT / "docs" / "privacy-specification.md").read_text(encoding="utf-8")
FIGURES: dict[str, str] = runpy.run_path(str(ROOT / "benchmarks" / "privacy_example.py"))["figures"]()
ROW = re.compile(r"^\| `([\w-]+)` \| .* \| ([k12+ ]+) x `(\w+)` \|$", re.MULTILINE)
PRICES: dict[str, Callable[[int], int]] = {
    "1": lambda k: 1,
    "k": lambda k: k,
    "k + 1": lambda k: k + 1,
    "2 k": lambda k: 2 * k,
}


@pytest.mark.parametrize(("what", "figure"), FIGURES.items())
def test_each_figure_of_the_example_is_what_the_accountant_says(what: str, figure: str) -> None:
    assert figure in " ".join(LETTER.split()), what


def test_each_limit_of_the_hospital_is_explained() -> None:
    rules = [*Policy.model_fields, *BudgetLimits.model_fields]
    assert [rule for rule in rules if f"| `{rule}` |" not in LETTER] == []


def test_each_algorithm_stands_with_its_price_for_every_kind_of_task() -> None:
    table = {(name, question): times for name, times, question in ROW.findall(SPECIFICATION)}
    choices = [algorithm(name, tasks=tasks) for name, units in UNITS.items() for tasks in units]
    assert set(table) == {(choice.name, choice.question) for choice in choices}
    for choice in choices:
        for k in (1, 5):
            asked = choice.model_copy(update={"local_steps": k}).answers_per_round
            assert asked == PRICES[table[choice.name, choice.question]](k), choice


def test_the_algorithms_that_ask_for_class_means_as_well_are_named() -> None:
    found = re.search(r"besides the table: ([^.]*)\.", " ".join(SPECIFICATION.split()))
    assert found is not None
    named = set(re.findall(r"`([\w-]+)`", found[1]))
    assert named == {name for name in UNITS if ALGORITHMS[name].closes_with_means}


def test_each_command_that_is_named_exists_with_its_options() -> None:
    text = " ".join(LETTER.split())
    for command in sorted(set(re.findall(r"`wardround hospital (\w+)", text))):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, command
        for said in re.findall(rf"`wardround hospital {command}([^`]*)`", text):
            for option in re.findall(r"--[a-z-]+", said):
                assert option in shown.output, f"{command} {option}"


def test_each_file_that_is_linked_or_named_exists() -> None:
    for text in (LETTER, SPECIFICATION):
        linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        for name in linked:
            assert (ROOT / "docs" / name).is_file(), name
    ours, _, _ = LETTER.partition("## Beside other software")
    for name in re.findall(r"`((?:tests|benchmarks|docs|deploy)/[\w/.-]+)`", ours + SPECIFICATION):
        assert (ROOT / name).exists(), name
