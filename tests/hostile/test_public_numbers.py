"""Where numbers come from, read in the code: rates, denominators and delta know of declared patients only.

privacy.md: "nothing computed from the true count enters q, the denominator, or delta".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import wardround_client
from wardround_client import config
from wardround_client.privacy import accountant, cohort, mechanism

PACKAGE = Path(str(wardround_client.__file__)).parent
PRIVATE = ("patients", "sampled", "images_of", "left_out")


def parsed(module: object) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            yield node


def sources() -> dict[str, ast.Module]:
    """Of the hospital's program, but for the audit, which plants patients of its own and sends nothing."""
    files = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    return {name: ast.parse(file.read_text()) for name, file in files.items() if not name.startswith("privacy/audit")}


def test_every_calibration_and_every_cohort_gets_declared_patients_and_nothing_else() -> None:
    found = []
    for name, tree in sources().items():
        for function in ("calibrate", "open_cohort"):
            for call in calls(tree, function):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                found.append(name)
                assert given["declared_patients"].endswith("hospital.declared_patients"), (name, given)
    assert {"agreement.py", "round.py"} <= set(found)


def test_delta_is_computed_from_declared_patients() -> None:
    (delta,) = [node for node in ast.walk(parsed(config)) if isinstance(node, ast.FunctionDef) and node.name == "delta"]
    names = {ast.unparse(node) for node in ast.walk(delta) if isinstance(node, ast.Attribute)}
    assert names == {"self.budget", "self.budget.delta", "self.hospital", "self.hospital.declared_patients"}


def denominators(tree: ast.AST) -> Iterator[ast.expr]:
    """What is divided by, and what multiplies as a rate: / and //, div and div_, rsub of mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv):
            yield node.right
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("div", "div_", "true_divide"):
            yield from node.args


@pytest.mark.parametrize("module", [cohort, accountant], ids=lambda module: module.__name__)
def test_no_denominator_is_counted_from_the_cohort(module: object) -> None:
    found = [ast.unparse(each) for each in denominators(parsed(module))]
    assert found
    for each in found:
        assert not any(f".{word}" in each or each == word for word in PRIVATE), each
        assert "len(" not in each, each
        assert "shape[0]" not in each, each


def test_the_released_answer_of_a_gradient_is_divided_by_a_public_number() -> None:
    found = {ast.unparse(each) for each in denominators(parsed(cohort))}
    assert "rate * self._declared" in found


def test_the_accountant_and_the_noise_know_no_cohort() -> None:
    for module in (accountant, mechanism):
        imported = {
            alias
            for node in ast.walk(parsed(module))
            if isinstance(node, ast.ImportFrom)
            for alias in [node.module or ""]
        }
        assert not [name for name in imported if "examples" in name or name.endswith("cohort")], imported


def test_no_mean_over_patients_is_taken_before_the_noise() -> None:
    """A mean over a patient's own images is fine; one over patients would divide by their true number."""
    for call in calls(parsed(cohort), "mean"):
        raise AssertionError(ast.unparse(call))


def test_the_true_number_of_patients_is_read_where_sampling_and_shapes_need_it_and_nowhere_else() -> None:
    readers = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "patients" and "examples" in ast.unparse(node.value)
    }
    assert "privacy/cohort.py" in readers
    at_home = {"personalise.py"}  # adapts and evaluates for the hospital itself; nothing of it is sent
    assert {name for name in readers if not name.startswith("commands/")} - at_home == {"privacy/cohort.py"}
