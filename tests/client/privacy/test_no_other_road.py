"""P21: "an algorithm never touches a patient. It asks." There is no other road to the data.

Three proofs: what an algorithm's modules can import and call, which types its parameters can hand out, and what the
hospital's object shows at run time. Which packages hold images at all is an import contract (pyproject.toml). That an
algorithm's own loss keeps nothing of what it is shown, and that nothing is opened meanwhile, is in
`test_post_processing.py`.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.client.privacy.generated import MODELS, cohort, examples_of, objective
from tests.imports import calls, closure, foreign, modules, tree
from tests.questions import answer_size, ask
from torch import Tensor

from wardround import questions
from wardround.algorithms import ALGORITHMS
from wardround.meta.local import differentiable_slope
from wardround.questions import Cohort, FewShotLoss, Shots
from wardround.task import Task
from wardround.vector import Layout

# --- what can be imported and called

TRUSTED_WITH_NOTHING = tuple(
    sorted(name for name in modules() if name.startswith(("wardround.meta", "wardround.algorithms")))
)
MODEL_FILES = tuple(sorted(name for name in modules() if name.startswith("wardround.models")))
LIBRARY = (
    *TRUSTED_WITH_NOTHING,
    *MODEL_FILES,
    *(name for name in modules() if name.startswith(("wardround.questions", "wardround.labels"))),
)

_READS = """
open read read_bytes read_text fromfile memmap genfromtxt load load_file safe_open loads files iterdir glob
rglob listdir scandir walk connect urlopen dcmread
"""
READS = frozenset(_READS.split())
"""Names by which Python, numpy, torch, safetensors, sqlite3, HTTP clients and pydicom read anything from anywhere."""

# The rooms that open files, for everybody: an agreement's, before there is a round, and public weights. An encoder as
# ONNX is looked at in a process of its own when an agreement is loaded, because it comes from outside.
FILES = {"wardround.files", "wardround.given", "wardround.onnx_files"}


@pytest.mark.parametrize("module", LIBRARY)
def test_no_algorithm_and_no_model_reaches_the_hospital_s_program(module: str) -> None:
    """Directly or through any module of ours."""
    reached = {each.split(".")[0] for each in closure(module)}
    assert reached == {"wardround"}
    outside = set().union(*(foreign(each) for each in closure(module) - FILES))
    assert not outside & {"pydicom", "sqlite3", "socket", "httpx", "urllib", "subprocess", "ctypes", "pickle", "os"}


PLAIN_LIBRARIES = {"__future__", "collections", "dataclasses", "itertools", "math", "pydantic", "torch", "typing"}


@pytest.mark.parametrize("module", [*TRUSTED_WITH_NOTHING, "wardround.questions"])
def test_an_algorithm_s_file_computes_and_does_nothing_else(module: str) -> None:
    """No files, no reflection, no private attributes, no state that outlives a call."""
    assert foreign(module) <= PLAIN_LIBRARIES
    forbidden = {"getattr", "setattr", "vars", "globals", "locals", "eval", "exec", "open", "dir", "__import__", "id"}
    assert forbidden <= set(dir(builtins)), "names that Python has"
    assert not {name for _, name in calls(module)} & (forbidden | READS)
    for node in ast.walk(tree(module)):
        assert not isinstance(node, ast.Nonlocal | ast.Global)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"{module} looks behind {node.attr}"


# --- what can come out, by type

PLAIN = {bool, int, float, str, bytes, type(None), Tensor, torch.Size}


# Names that a module imports for its annotations alone, because torch is slow to import.
NAMES = {
    "Tensor": Tensor, "np": np, "npt": npt, "Labels": Any, "Task": Task, "Shots": Shots, "Layout": Layout, "Any": Any,
    "Cohort": Cohort, "FewShotLoss": FewShotLoss,
}  # fmt: skip


def hints_of(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner, localns=NAMES)


def parts(hint: object) -> Iterator[type]:
    """The classes that an annotation names."""
    arguments = typing.get_args(hint)
    if isinstance(hint, type) and not arguments:
        yield hint
    for argument in arguments:
        yield from parts(argument)


def handed_out(owner: type) -> Iterator[object]:
    """Annotations of all that an object of a class shows: fields, properties, and what its methods return."""
    if hasattr(owner, "model_fields") or dataclasses.is_dataclass(owner):
        yield from hints_of(owner).values()
    for name, member in inspect.getmembers_static(owner):
        if name.startswith("_") and name != "__call__":
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and function.__module__.startswith("wardround"):
            yield hints_of(function).get("return", object)


def reachable(*start: object) -> set[type]:
    """Every class of which an object can be had from these, and from what can be had from them."""
    seen: set[type] = set()
    todo = [each for hint in start for each in parts(hint)]
    while todo:
        if (owner := todo.pop()) not in seen:
            seen.add(owner)
            if owner not in PLAIN:
                todo += [each for hint in handed_out(owner) for each in parts(hint)]
    return seen


def parameters_of(function: object) -> dict[str, object]:
    hints = hints_of(function)
    return {name: hint for name, hint in hints.items() if name != "return"}


ASKED = {name for name in vars(Cohort) if not name.startswith("_")}


def test_only_noised_answers_can_come_out_of_what_an_algorithm_is_given() -> None:
    """From theta, the cohort and the loss, by any chain of attributes and calls: noised tensors. Its settings are
    numbers and words.
    """
    given = {"theta": Tensor, "cohort": Cohort, "loss": FewShotLoss}
    found = reachable(*given.values())
    assert found - PLAIN == {Cohort, FewShotLoss}
    for algorithm in (ALGORITHMS[name] for name in ALGORITHMS.built_in):
        assert parameters_of(algorithm.inner) == given
        assert all(isinstance(value, int | float | str) for value in dict(algorithm()).values())  # type: ignore[call-arg]
    assert {hints_of(getattr(Cohort, name))["return"] for name in ASKED} == {Tensor}


def test_the_walk_would_find_a_way_to_the_examples() -> None:
    """It finds what a hospital's own object holds."""
    from wardround_client.cohort.examples import Examples
    from wardround_client.hospital import Hospital

    assert Examples in reachable(Hospital)


PUBLIC = {"wardround.models.base", "wardround.vector", "wardround.labels", "wardround.questions"}


def test_the_loss_that_an_algorithm_is_given_is_made_of_public_numbers() -> None:
    """At run time it is an Objective: a model, the public scaling, a prior made of a noised answer; and a label kind,
    which holds nothing, and makes shots of shots.
    """
    found = {each.__module__ for each in reachable(*hints_of(type(objective("mlp"))).values()) - PLAIN}
    assert {name for name in found if name.startswith("wardround")} <= PUBLIC


def test_what_sees_images_is_named() -> None:
    """The functions that an algorithm may pass in, and what they see of images. A new one has to be looked at."""
    passed_in = {
        hint
        for name in ASKED
        for hint in parameters_of(getattr(Cohort, name)).values()
        if hint is not Tensor and hint is not Cohort
    }
    functions = {questions.Loss, questions.EpisodeGradient, questions.OfImages}
    assert passed_in == functions | {Sequence[questions.Summand]}
    for seen in functions:
        assert set(parameters_of(seen.__call__).values()) <= {Tensor, Shots}
        assert hints_of(seen.__call__)["return"] is Tensor


# --- what the object shows at run time


def test_the_private_cohort_shows_the_questions_and_nothing_else() -> None:
    """A new public attribute fails here, and so does a question that nobody priced."""
    asked = cohort(examples_of([1, 2]))
    assert {name for name in dir(asked) if not name.startswith("_")} == ASKED


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_brings_nothing_along(model: str) -> None:
    """No autograd graph that leads back to images, and no more memory than the noised numbers themselves."""
    asked, loss, network = cohort(examples_of([2] * 8, model=model)), objective(model), MODELS[model]
    theta = network.initial().requires_grad_()
    answers = {
        "gradient": asked.gradient(loss, theta),
        "episode_gradient": asked.episode_gradient(
            lambda at, support, query: differentiable_slope(at, query, loss), theta
        ),
        **{name: ask(name, asked, loss, theta) for name in ("statistics", "class_means", "confusion")},
    }
    for question, tensor in answers.items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert tensor.numel() == answer_size(question, network)
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
