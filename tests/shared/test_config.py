from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model
from tests.chosen import outer

from wardround.config import Federation, ModelChoice, Outer, Privacy, Rounds
from wardround.optimizers.sgd import Sgd
from wardround.rules.mean import Mean
from wardround.task import Task

IMAGES = Task(label_column="finding", classes=("none", "nodule"))
TABLE = Task(label_column="finding", classes=("none", "nodule"), kind="table", features=("age", "bmi"))

federations = st.builds(
    Federation,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"),
    task=st.just(IMAGES),
    privacy=st.builds(Privacy, epsilon=st.floats(0.01, 100), clip_norm=st.floats(0.01, 10)),
    rounds=st.builds(Rounds, rounds=st.integers(1, 1000), quorum=st.integers(1, 50)),
    outer=st.builds(outer, optimizer=st.sampled_from(["sgd", "adam", "yogi"])),
)


@given(federations)
def test_the_canonical_text_is_the_agreement(federation: Federation) -> None:
    again = Federation.from_canonical(federation.canonical())
    assert again == federation
    assert again.digest == federation.digest


@given(federations, federations)
def test_one_agreement_one_digest(one: Federation, other: Federation) -> None:
    assert (one == other) == (one.digest == other.digest)


def test_written_defaults_and_left_out_ones_are_the_same_agreement() -> None:
    assert Federation(name="a", task=IMAGES).digest == Federation(name="a", task=IMAGES, privacy=Privacy()).digest


def test_input_shapes() -> None:
    assert IMAGES.input_shape == (1, 64, 64)
    assert TABLE.input_shape == (2,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Task(label_column="x", classes=("a", "a")), "twice"),
        (lambda: Task(label_column="x", classes=("a", "b"), features=("age",)), "features"),
        (lambda: Task(label_column="x", classes=("a", "b"), kind="table"), "features"),
        (lambda: Task(label_column="x", classes=("a",)), "at least 2"),
        (lambda: ModelChoice(encoder="own.safetensors"), "encoder_sha256"),
        (lambda: Federation(name="a", task=TABLE), "does not fit"),
        (lambda: Federation(name="../a", task=IMAGES), "pattern"),
        (lambda: Privacy(epsilon=float("nan")), "less than or equal"),
        (lambda: Task(label_column="x", classes=("\u212b", "\u00c5")), "look the same"),
        (lambda: Task(label_column="x", classes=("a", "a\ufe0f")), "invisible"),
        (lambda: Task(label_column="x", classes=("a", " a")), "single blanks"),
    ],
)
def test_contradictions_are_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValidationError, match=said):
        make()


def test_an_agreement_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        IMAGES.label_column = "other"


@pytest.mark.parametrize("name", ["momentum", "learning_rate", "weighting", "rule"])
def test_a_rule_and_an_optimizer_with_settings_of_one_name_do_not_go_together(name: str) -> None:
    """One of two values would not be in the digest."""
    taken = create_model("Taken", __base__=Mean, **{name: (float, 0.5)})  # type: ignore[call-overload]
    with pytest.raises(ValidationError, match="settings of the same name"):
        Outer(rule=taken(), optimizer=Sgd())
