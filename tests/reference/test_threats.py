"""docs/threats.md is kept honest: every row of "attack, who, what happens" names tests that exist and are run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.reference.test_specification import OPTIONAL, functions, module, never_runs

ROOT = Path(__file__).parents[2]
WHO = {
    "stranger", "registered liar", "coordinator", "local user", "thief of a home", "sleepy administrator", "odd file",
    "busy machine",
}  # fmt: skip


@dataclass(frozen=True)
class Threat:
    """One row. tests: path::name, as written. to_do: of a branch that is not merged yet."""

    who: str
    attack: str
    answer: str
    tests: tuple[str, ...]
    to_do: bool

    def __str__(self) -> str:
        return f"{self.who}: {self.attack}"


def threats(text: str) -> list[Threat]:
    """The rows of the table, whatever number of cells they have."""
    found = []
    for line in [line for line in text.splitlines() if line.startswith("|")][2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        who, attack, answer, tests = cells if len(cells) == 4 else ["", line, "", ""]
        found.append(Threat(who, attack, answer, tuple(re.findall(r"`([^`]+)`", tests)), "TODO" in tests))
    return found


def fault(threat: Threat) -> str:
    """What is wrong with a row; empty when nothing is."""
    if threat.who not in WHO or not (threat.attack and threat.answer):
        return "needs one of the known attackers, an attack and an answer, and no | within"
    if not threat.tests:
        return "names no test"
    always = False
    for test in threat.tests:
        path, _, name = test.partition("::")
        if not (ROOT / path).is_file() or not path.startswith("tests/"):
            return f"there is no file {path}"
        tree = module(path)
        if not name.startswith("test_") or name not in functions(tree):
            return f"{path} has no test {name!r}"
        if why := never_runs(tree, functions(tree)[name]):
            return f"{test} {why}"
        always = always or not {arg.arg for arg in functions(tree)[name].args.args} & OPTIONAL
    return "" if always else "each of its tests needs data that not everybody has"


THREATS = threats((ROOT / "docs" / "threats.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("threat", [each for each in THREATS if not each.to_do], ids=str)
def test_a_row_names_tests_that_exist_and_are_run(threat: Threat) -> None:
    assert not (why := fault(threat)), f"{threat}: {why}"


def test_no_row_is_left_to_do() -> None:
    assert not [str(threat) for threat in THREATS if threat.to_do]


def test_every_attacker_is_there_and_no_attack_twice() -> None:
    assert {threat.who for threat in THREATS} == WHO
    assert len({threat.attack for threat in THREATS}) == len(THREATS)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("| stranger | a | b | |", "names no test"),
        ("| stranger | a | b |", "known attackers"),
        ("| stranger | a | b | by reading |", "names no test"),
        ("| somebody | a | b | `tests/reference/test_threats.py::test_no_row_is_left_to_do` |", "known attackers"),
        ("| stranger | a | | `tests/reference/test_threats.py::test_no_row_is_left_to_do` |", "an answer"),
        ("| stranger | a or | b | c | `tests/reference/test_threats.py::fault` |", "no \\| within"),
        ("| stranger | a | b | `tests/reference/test_absent.py::test_it` |", "no file"),
        ("| stranger | a | b | `docs/threats.md::test_it` |", "no file"),
        ("| stranger | a | b | `tests/reference/test_threats.py::test_absent` |", "has no test"),
        ("| stranger | a | b | `tests/reference/test_threats.py` |", "has no test"),
        ("| stranger | a | b | `tests/reference/test_threats.py::fault` |", "has no test"),
        ("| stranger | a | b | `tests/client/intake/test_ingest_table.py::test_four_real_hospitals` |", "needs data"),
    ],
)
def test_a_row_that_holds_nothing_is_noticed(row: str, why: str) -> None:
    (threat,) = threats(f"| who | attack | answer | test |\n|---|---|---|---|\n{row}\n")
    assert re.search(why, fault(threat))
