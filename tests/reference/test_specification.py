"""docs/privacy-specification.md is kept honest: each numbered sentence has a test that exists and is run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.reference.specification import TESTS

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(r"^- \*\*P(\d+)\*\* (.+)$", re.MULTILINE)
OPTIONAL = {"shared_data"}  # fixtures without which a test is skipped


def sentences() -> dict[str, str]:
    """Number -> sentence, in the order of the document."""
    text = (ROOT / "docs" / "privacy-specification.md").read_text(encoding="utf-8")
    return {f"P{number}": sentence for number, sentence in SENTENCE.findall(text)}


@cache
def module(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def marks(decorators: list[ast.expr]) -> set[str]:
    """The names of the pytest marks among some expressions."""
    found = set()
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
                found.add(node.attr)
    return found


def skips(statement: ast.stmt) -> bool:
    """Whether this statement, and not one inside it, ends a test or a module as skipped or expected to fail."""
    return isinstance(statement, ast.Expr) and ast.unparse(statement.value).startswith(
        ("pytest.skip(", "pytest.xfail(", "pytest.importorskip(")
    )


def module_marks(tree: ast.Module) -> set[str]:
    return marks(
        [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    )


def never_runs(tree: ast.Module, function: ast.FunctionDef) -> str:
    """Why a test never counts; empty when it does."""
    if (marks(function.decorator_list) | module_marks(tree)) & {"skip", "xfail"}:
        return "is marked to be skipped or to fail"
    if any(skips(statement) for statement in [*tree.body, *function.body]):
        return "skips itself"
    return ""


def may_be_skipped(tree: ast.Module, function: ast.FunctionDef) -> bool:
    conditional = "skipif" in marks(function.decorator_list) | module_marks(tree)
    return conditional or bool({arg.arg for arg in function.args.args} & OPTIONAL)


def functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_sentences_are_numbered_without_a_gap() -> None:
    """A new sentence stands where it belongs and takes the next number: what others cite stays."""
    assert set(sentences()) == {f"P{number}" for number in range(1, len(sentences()) + 1)}


def test_every_sentence_has_a_test_and_every_entry_a_sentence() -> None:
    assert set(TESTS) == set(sentences())
    assert not [number for number, tests in TESTS.items() if not tests]


@pytest.mark.parametrize("number", TESTS)
def test_the_tests_of_a_sentence_exist_and_are_run(number: str) -> None:
    always = False
    for test in TESTS[number]:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"{number}: there is no file {path}"
        tree = module(path)
        assert name.startswith("test_") and name in functions(tree), f"{number}: {path} has no test {name}"
        assert not (why := never_runs(tree, functions(tree)[name])), f"{number}: {test} {why}"
        always = always or not may_be_skipped(tree, functions(tree)[name])
    assert always, f"{number}: each of its tests may be skipped on some machine"


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.skip\ndef test_it(): ...",
        "@pytest.mark.xfail(reason='later')\ndef test_it(): ...",
        "def test_it():\n    pytest.skip('later')",
        "pytestmark = [pytest.mark.skip]\ndef test_it(): ...",
        "pytest.skip('none', allow_module_level=True)\ndef test_it(): ...",
    ],
)
def test_a_test_that_never_runs_is_noticed(text: str) -> None:
    tree = ast.parse(text)
    assert never_runs(tree, functions(tree)["test_it"])


def test_a_test_with_a_condition_may_be_skipped_but_counts() -> None:
    tree = ast.parse("@pytest.mark.skipif(NO_GPU, reason='none')\ndef test_it():\n    if X:\n        pytest.skip('no')")
    assert not never_runs(tree, functions(tree)["test_it"])
    assert may_be_skipped(tree, functions(tree)["test_it"])
