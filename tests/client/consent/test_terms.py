"""The approve screen says every setting that decides what is computed here: whichever is changed, a line changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from tests.client.agreements import (
    BLOOD,
    CELLS,
    IMAGES,
    INPUTS,
    NOT_COMPUTED_HERE,
    SURVIVAL,
    TABLE,
    VOLUME,
    able,
    settings_of,
    with_setting,
)

from wardround.accountant import calibrate
from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.errors import WardroundError
from wardround.schedule import Schedule
from wardround_client.consent.agreement import Agreement
from wardround_client.consent.terms import computed
from wardround_client.hospital import Hospital
from wardround_client.office.terms import terms_of
from wardround_client.privacy.ledger import Ledger

HOSPITAL = '[hospital]\nname = "north"\ndeclared_patients = 200\n'
BASES = [
    IMAGES,
    TABLE,
    {**TABLE, "rounds": {"rounds": 20, "evaluate_every": 5}},
    {**IMAGES, "model": {"family": "conv4", "width": 2}},
    {**IMAGES, "algorithm": {"name": "fedprox"}},
    {**IMAGES, "algorithm": {"name": "ridge"}},
    {**IMAGES, "algorithm": {"name": "reptile", "tasks": "episodes"}},
    VOLUME,
    CELLS,
    INPUTS,
    SURVIVAL,
    {**TABLE, "task": {**TABLE["task"], "centre": [], "spread": []}},
]
# Changes of what has no number and no short list of values.
OTHERS: dict[str, list[object]] = {
    "task.labels": ["several"],
    "task.values": [{"-1": "yes"}, {"perhaps": ""}],
    "task.label_column": ["other"],
    "task.event_column": ["other"],
    "task.ends": [[365.0, 731.0]],
    "task.classes": [["yes", "no"], ["no", "yes", "perhaps"]],
    "task.features": [["pressure", "age"]],
    "task.may_miss": [["age"], ["*"]],
    "task.ranks": [True],
    "task.centre": [[55.0, 121.0]],
    "task.spread": [[15.0, 21.0]],
    "task.augment": [["shift"], ["flip-vertical"]],
    "task.depth": [9],
    "task.inputs": [[{"name": "front", "image_size_px": 41}, BLOOD]],
}
# Where the digests that stand on the screen change as well, a reader learns nothing of it.
DIGESTS = {"digest", "bundle_sha256", "frozen_part_sha256", "changed"}

Shown = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The lines for an agreement, without digests; None for one that is not possible."""
    hospital = Hospital.create(tmp_path_factory.mktemp("north") / "home", HOSPITAL, ledger=Ledger(None))

    known: dict[str, dict[str, Any] | None] = {}

    def lines(agreement: dict[str, Any]) -> dict[str, Any] | None:
        key = json.dumps(agreement)
        if key not in known:
            known[key] = new_lines(agreement)
        return known[key]

    def new_lines(agreement: dict[str, Any]) -> dict[str, Any] | None:
        try:
            federation = Federation.model_validate(agreement)
            terms = terms_of(hospital, Agreement.of(federation, hospital.config, Path()))
        except (ValidationError, WardroundError):
            return None
        return {name: line for name, line in terms.items() if name not in DIGESTS}

    yield lines


def other_values(setting: str, agreement: Federation) -> list[object]:
    """Other values that the setting might have, found from its type."""
    if setting in OTHERS:
        return OTHERS[setting]
    section: BaseModel = agreement
    *sections, name = setting.split(".")
    for each in sections:
        section = getattr(section, each)
    usual, model = getattr(section, name), type(section)
    if setting == "algorithm.name":
        return [each for each in ALGORITHMS.built_in if each != usual]
    kind = model.model_fields[name].annotation
    choices = [each for one in (kind, *get_args(kind)) if get_origin(one) is Literal for each in get_args(one)]
    if choices:
        return [each for each in choices if each != usual]
    if isinstance(usual, int):
        return [usual + 1, usual + 10, usual - 1]
    assert isinstance(usual, float), f"{setting}: say in OTHERS how it changes"
    return [usual * 0.9]


@pytest.mark.parametrize(
    "setting",
    [each for each in settings_of() if each not in {*NOT_COMPUTED_HERE, "model.encoder_sha256", "rounds.questions"}],
)
def test_a_setting_that_changes_changes_what_is_shown(setting: str, shown: Shown) -> None:
    possible = 0
    for base in BASES:
        base = able(base, setting)
        before = shown(base)
        assert before is not None
        for value in other_values(setting, Federation.model_validate(base)):
            after = shown(with_setting(base, setting, value))
            possible += after is not None
            if after not in (None, before):
                return
    assert not possible, f"{setting} can change and the screen does not"
    assert setting == "task.kind", "it changes with model.family alone: say in OTHERS how this one does"


def test_an_encoder_of_one_s_own_is_shown_by_name_and_hash() -> None:
    own = with_setting(IMAGES, "model.encoder", "ours.safetensors")
    for sha256 in ("1" * 64, "2" * 64):
        federation = Federation.model_validate(with_setting(own, "model.encoder_sha256", sha256))
        schedule = Schedule.of(federation)
        calibration = calibrate(schedule, federation.privacy, declared_patients=200, delta=1e-4)
        said = computed(federation, schedule, calibration, 200)["network"]
        assert "ours.safetensors" in said
        assert sha256[:16] in said


def test_the_lines_are_words_a_person_reads(shown: Shown) -> None:
    lines = shown({**IMAGES, "algorithm": {"name": "ridge"}})
    assert lines is not None
    assert lines["input"] == "grey images of 32 x 32 px"
    assert lines["network"] == "built-in encoder, 4 features, an embedding of 2"
    assert (
        lines["task_of_learning"]
        == "an episode of its patients, 1 answer a round: local learning rate 1, regularization 1"
    )
    assert lines["patients_of_an_answer"] == "everybody, at most 1 image of each"
    assert lines["episodes"] == "10 of about 20 patients, a share of 0.5 to learn from; at most 35 on either side"
    assert all("\n" not in str(line) for line in lines.values())
