"""Where numbers come from, read in the code: rates, denominators and delta know of declared patients only.

privacy.md: "nothing computed from the true count enters q, the denominator, or delta".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from tests.imports import closure, modules, tree

ACCOUNTANT = "wardround.accountant"
COHORT, MECHANISM = (f"wardround_client.privacy.{name}" for name in ("private_cohort", "mechanism"))
PRIVATE = ("patients", "sampled", "images_of", "left_out")


def calls(syntax: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(syntax):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            yield node


def sources() -> dict[str, ast.Module]:
    """Of the hospital's program, but for the audit, which plants patients of its own and sends nothing."""
    return {
        name: tree(name)
        for name in modules()
        if name.split(".")[0] == "wardround_client" and not name.startswith("wardround_client.audit")
    }


def test_every_calibration_and_every_cohort_gets_declared_patients_and_nothing_else() -> None:
    found = []
    for name, syntax in sources().items():
        for function in ("calibrate", "open_cohort"):
            for call in calls(syntax, function):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                found.append(name)
                assert given["declared_patients"].endswith("hospital.declared_patients"), (name, given)
    assert {"wardround_client.consent.agreement", "wardround_client.round"} <= set(found)


def test_delta_is_computed_from_declared_patients() -> None:
    functions = [node for node in ast.walk(tree("wardround_client.config")) if isinstance(node, ast.FunctionDef)]
    (delta,) = [function for function in functions if function.name == "delta"]
    names = {ast.unparse(node) for node in ast.walk(delta) if isinstance(node, ast.Attribute)}
    assert names == {"self.budget", "self.budget.delta", "self.hospital", "self.hospital.declared_patients"}


def denominators(syntax: ast.AST) -> Iterator[ast.expr]:
    """What is divided by, and what multiplies as a rate: / and //, div and div_, rsub of mean."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv):
            yield node.right
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("div", "div_", "true_divide"):
            yield from node.args


@pytest.mark.parametrize("module", [COHORT, ACCOUNTANT])
def test_no_denominator_is_counted_from_the_cohort(module: str) -> None:
    found = [ast.unparse(each) for each in denominators(tree(module))]
    assert found
    for each in found:
        assert not any(f".{word}" in each or each == word for word in PRIVATE), each
        assert "len(" not in each, each
        assert "shape[0]" not in each, each


def test_the_released_answer_of_a_gradient_is_divided_by_a_public_number() -> None:
    found = {ast.unparse(each) for each in denominators(tree(COHORT))}
    assert "rate * self._declared" in found


def test_the_accountant_and_the_noise_know_no_cohort() -> None:
    for module in (ACCOUNTANT, MECHANISM):
        assert not [name for name in closure(module) if "examples" in name or name.endswith("cohort")]


def test_no_mean_over_patients_is_taken_before_the_noise() -> None:
    """A mean over a patient's own images is fine; one over patients would divide by their true number."""
    for call in calls(tree(COHORT), "mean"):
        raise AssertionError(ast.unparse(call))


def test_the_true_number_of_patients_is_read_where_sampling_and_shapes_need_it_and_nowhere_else() -> None:
    readers = {
        name
        for name, syntax in sources().items()
        for node in ast.walk(syntax)
        if isinstance(node, ast.Attribute) and node.attr == "patients" and "examples" in ast.unparse(node.value)
    }
    assert COHORT in readers
    # They adapt and evaluate for the hospital itself; nothing of it is sent.
    at_home = {"wardround_client.personal.learner", "wardround_client.personal.labelled"}
    assert {name for name in readers if not name.startswith("wardround_client.commands.")} - at_home == {COHORT}
