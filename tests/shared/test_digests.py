"""The digest under which hospitals approved an agreement: it is the same in every version, and of one meaning only."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from wardround.algorithms.fedavg import FedAvg
from wardround.algorithms.scaffold import Scaffold
from wardround.canonical import _ALGORITHM_1, _OUTER_1
from wardround.config import AS_APPROVED, Federation
from wardround.settings import Later

TASK = {"label_column": "finding", "classes": ["normal", "nodule"]}
TABLE = {
    "kind": "table", "label_column": "ill", "classes": ["no", "yes"],
    "features": ["age"], "centre": [55.0], "spread": [15.0],
}  # fmt: skip
EMBEDDED = {"model": {"embedding": 8, "features": 16}}
IDLE = {
    "algorithm": {"name": "fedavg", "proximal": 3, "regularization": 0.25, "local_batches": "4", "adapt_prior": 2.0},
    "outer": {"optimizer": "sgd", "beta1": 0.5, "tau": 1},
}
# What the code at commit 7eae488 (version 0.1) says: SHA-256 over every value of every setting.
OF_0_1: list[tuple[dict[str, Any], str]] = [
    ({**EMBEDDED, "algorithm": {"name": "fedavg"}}, "254741d0cc83ff5fc60a610e19e70cf7d3151b43fd2a46e46b7bb466ac2ebab9"),
    (
        {**EMBEDDED, "algorithm": {"name": "fedprox"}},
        "d598be8b876f6d9ed8eb7e3302d5fec03540553b8f2f840a381e050b41e43fa8",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "per-fedavg"}},
        "c7347a96e90e43d746eb6ebd572d6be21d60a74c1ebd57f6bda3436c388e4d37",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "discriminant"}},
        "a921a3a9d3ca4e2d9215550729f795d7976404f25aec71118260465ea177db2f",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "reptile"}},
        "c211ffc7b764a17f8bf9215f3deb783e949b25108ba4baed025c0daab6f00396",
    ),
    ({**EMBEDDED, "algorithm": {"name": "fomaml"}}, "dd6b535866bbcb416879568de213e1127eae2c5171ab040abfa693e88898c698"),
    (
        {**EMBEDDED, "algorithm": {"name": "meta-sgd"}},
        "87f31b86ca5cef5cf18f9a6289f6b467bec2f1b0873104758f02e664ed04629f",
    ),
    ({**EMBEDDED, "algorithm": {"name": "maml"}}, "cc39c0372be68ca30519ef6023e4720e1048f56585140c001bbbf1983d27dc0a"),
    ({**EMBEDDED, "algorithm": {"name": "anil"}}, "44dd63ebaaa285e1b989d41629a98042ca261445146e2f8aa12f174e4eae41e8"),
    (
        {**EMBEDDED, "algorithm": {"name": "learned-optimizer"}},
        "59b5b2e2873b2adaaaa9cffdc76828fc433be4141feb2a2f4173061ac2078f53",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "prototypical"}},
        "e39cdb1099488ea8077a31c1ad3c5f371191e62d59645bef1455eb7e68549b72",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "matching"}},
        "d86233c3a8f30f14543dd4a8d6093579edb2579143a7709ff92adefb10bd1d20",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "relation"}},
        "580cd560a93df9a1ce8813273a931b95a2f405cdd77001d426b0c1b5c76a794b",
    ),
    (
        {**EMBEDDED, "algorithm": {"name": "siamese"}},
        "193633ec22d7d4183e48cedf3c681e12230df151f26dd67aaaa8068ba409bd4a",
    ),
    ({**EMBEDDED, "algorithm": {"name": "ridge"}}, "7c3afd29247191c027c3f44e2c1ba663e66208f0eb0f5b0feb96e04f847917cd"),
    ({**EMBEDDED, "algorithm": {"name": "svm"}}, "47d4387342f53ff5d64263bbf7a757fc0fc592d6cb4e6358620b94abda5b793c"),
    ({}, "1f6ab544760ae50b69ae453616232236a574a8196ea24cbf619dd06e331454ed"),
    (IDLE, "0aa495ea7235806aa5f52819bbdc06cda9bea4e0df31f70f071ffc042666acbc"),
    (
        {"outer": {"rule": "mean", "optimizer": "adam", "learning_rate": 0.03, "liars": 0.1, "momentum": 0.5}},
        "803fdc1a64a4d44f8fe2da2847661938dd93808d94fcb48f2db5e6b4a596c5a1",
    ),
    (
        {
            "algorithm": {"name": "fomaml", "tasks": "episodes", "local_steps": 3},
            "outer": {"rule": "trimmed-mean", "optimizer": "yogi", "tau": 0.01, "liars": 0.4, "weighting": "uniform"},
        },
        "0c2c89e9bacc41d558caf9c92bd6e89436bb4516d8cf22172960c7a002bad0ee",
    ),
    (
        {
            "task": TABLE,
            "model": {"family": "logistic"},
            "algorithm": {"name": "fedprox", "proximal": 0.02, "local_steps": 2, "local_learning_rate": 5},
            "rounds": {"rounds": 7, "evaluate_every": 3},
            "privacy": {"epsilon": 1},
        },
        "bb62f9d2fe7957700085f97716bf935b8a238518bd1c18e55fd6540b465a56db",
    ),
]
# What this code says of agreements that 0.1 could not make.
SINCE: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": {"name": "scaffold"}}, "62a2a6494816513932c97fada19a505913457bdb888140a016660535635154af"),
    (
        {"algorithm": {"name": "scaffold", "local_steps": 5}, "outer": {"rule": "mean"}},
        "f83cffb10a6c5097f7e6db506edce5afdbcab0de7bbff935c25a2498eac5a3de",
    ),
]


def agreed(tables: dict[str, Any], *, approved: bool = False) -> Federation:
    values = {"name": "spring", "task": TASK, **tables}
    return Federation.model_validate(values, context=AS_APPROVED if approved else None)


@pytest.mark.parametrize(("tables", "digest"), [*OF_0_1, *SINCE], ids=lambda value: str(value)[:60])
def test_a_digest_is_what_it_was(tables: dict[str, Any], digest: str) -> None:
    federation = agreed(tables, approved=True)
    assert federation.digest == digest
    again = Federation.from_canonical(federation.canonical())
    assert (again, again.digest) == (federation, digest)


def test_settings_that_0_1_took_and_never_used_are_read_where_they_were_approved_and_nowhere_else() -> None:
    assert agreed(IDLE, approved=True).algorithm == FedAvg()
    with pytest.raises(ValidationError, match="fedavg has no such setting; it has tasks, local_steps"):
        agreed(IDLE)


def test_0_1_knew_no_other_setting() -> None:
    with pytest.raises(ValidationError, match="fedavg has no such setting"):
        agreed({"algorithm": {"name": "fedavg", "warmth": 1}}, approved=True)


@given(
    proximal=st.floats(0, 1e6),
    liars=st.floats(0.01, 0.49),
    rule=st.sampled_from(["mean", "median"]),
)
def test_what_an_approval_of_0_1_held_is_in_its_digest(proximal: float, liars: float, rule: str) -> None:
    """As 0.1 made it, computed here a second time: every value, those that mean nothing too."""
    tables = {"algorithm": {"name": "fedavg", "proximal": proximal}, "outer": {"rule": rule, "liars": liars}}
    text = json.loads(agreed(tables, approved=True).canonical())
    assert text["algorithm"] == {**_ALGORITHM_1, "name": "fedavg", "tasks": "auto", "proximal": proximal}
    more = {"rule": rule, "optimizer": "sgd", "learning_rate": 1.0, "weighting": "declared", "liars": liars}
    assert text["outer"] == _OUTER_1 | more


class WithMore(FedAvg):
    """FedAvg in a later version, with a setting that it did not have."""

    warmth: Annotated[float, Field(ge=0, le=1), Later(0.25)] = 0.25


class Unmarked(FedAvg):
    warmth: Annotated[float, Field(ge=0, le=1)] = 0.25


class Changed(WithMore):
    """A version later still: another default."""

    warmth: Annotated[float, Field(ge=0, le=1), Later(0.25)] = 0.5


class ScaffoldWithMore(Scaffold):
    warmth: Annotated[float, Field(ge=0, le=1), Later(0.25)] = 0.25


def test_a_setting_that_is_added_later_voids_nothing() -> None:
    assert agreed({"algorithm": WithMore()}).digest == agreed({"algorithm": FedAvg()}).digest
    assert agreed({"algorithm": ScaffoldWithMore()}).digest == agreed({"algorithm": Scaffold()}).digest
    assert agreed({"algorithm": WithMore(warmth=0.75)}).digest != agreed({"algorithm": FedAvg()}).digest


def test_a_default_that_changes_or_is_not_marked_changes_the_digest() -> None:
    before = agreed({"algorithm": FedAvg()}).digest
    assert agreed({"algorithm": Changed()}).digest != before
    assert agreed({"algorithm": Changed(warmth=0.25)}).digest == before
    assert agreed({"algorithm": Unmarked()}).digest != before


def test_a_name_that_0_1_filled_in_cannot_come_back_with_a_meaning() -> None:
    """FedAvg's text of then holds "proximal": 0.1, which meant nothing: a setting of that name is another text."""

    class Pulled(FedAvg):
        proximal: Annotated[float, Field(ge=0, le=1), Later(0.0)] = 0.0

    texts = {agreed({"algorithm": each}).canonical() for each in (FedAvg(), Pulled(), Pulled(proximal=0.1))}
    assert len(texts) == 3


@pytest.mark.parametrize(
    "change",
    [
        ("{", "["),
        ('"rounds":20', '"rounds": 20'),
        ('"liars":0.25,', ""),
        ('"name":"spring"', '"name":"spring","schema":9'),
    ],
)
def test_a_text_that_is_not_canonical_is_no_agreement(change: tuple[str, str]) -> None:
    text = agreed({}).canonical()
    assert change[0] in text
    with pytest.raises(ValueError):
        Federation.from_canonical(text.replace(*change, 1))
