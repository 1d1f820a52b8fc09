"""No setting that decides what a hospital computes is without a bound, and none can be added without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.client.agreements import (
    CELLS,
    IMAGES,
    INPUTS,
    NOT_COMPUTED_HERE,
    SURVIVAL,
    TABLE,
    VOLUME,
    able,
    agreed,
    settings_of,
    with_setting,
)

from wardround.accountant import calibrate
from wardround.config import Federation
from wardround.errors import ConfigError, PolicyRefusal
from wardround.models import build_model
from wardround.schedule import Schedule
from wardround_client.config import HospitalConfig, Policy
from wardround_client.consent.policy import check, check_sizes

DECLARED = 200
EPISODES = {"algorithm": {"name": "maml"}}


def hospital(**policy: Any) -> HospitalConfig:
    return HospitalConfig.model_validate(
        {"hospital": {"name": "north", "declared_patients": DECLARED}, "policy": policy}
    )


def judge(config: HospitalConfig, federation: Federation) -> None:
    schedule = Schedule.of(federation)
    calibration = calibrate(schedule, federation.privacy, declared_patients=DECLARED, delta=config.delta)
    check(config, federation, schedule, calibration, federation.algorithm.extended(build_model(federation)))


Case = tuple[str, dict[str, Any], dict[str, dict[str, Any]], Any]
# setting -> (rule that bounds it, an agreement, what it asks besides, the limit that it just passes).
BOUNDED: dict[str, list[Case]] = {
    "task.label_column": [("labels", TABLE, {}, ["no"])],
    "task.classes": [
        ("labels", TABLE, {}, ["no"]),
        ("greatest_classes", TABLE, {"task": {"classes": ["a", "b", "c"]}}, 2),
    ],
    "task.values": [("labels", TABLE, {"task": {"values": {"-1": "yes"}}}, ["no", "yes"])],
    "task.event_column": [("labels", SURVIVAL, {}, ["1 year"])],
    "task.ends": [("greatest_classes", SURVIVAL, {}, 1)],
    "task.labels": [("algorithms", TABLE, {"task": {"labels": "several"}}, ["maml"])],
    "task.kind": [("families", TABLE, {}, ["conv4"])],
    "task.depth": [("greatest_depth", VOLUME, {}, 7)],
    "task.inputs": [
        ("greatest_inputs", INPUTS, {}, 1),
        ("greatest_image_size_px", INPUTS, {}, 39),
        ("greatest_features", {**INPUTS, "model": {"features": 2}}, {}, 2),
        ("greatest_magnitude", INPUTS, {}, 99999),
    ],
    "task.cell_px": [("greatest_cells", CELLS, {}, 63)],
    "task.cells_per_image": [("greatest_cells_per_image", CELLS, {}, 8)],
    "task.image_size_px": [("greatest_image_size_px", IMAGES, {}, 31)],
    "task.channels": [("families", IMAGES, {}, ["mlp"])],
    "task.features": [("greatest_features", {**TABLE, "model": {"family": "mlp", "features": 2}}, {}, 1)],
    "task.may_miss": [
        ("greatest_features", {**TABLE, "model": {"family": "mlp", "features": 2}}, {"task": {"may_miss": ["age"]}}, 2)
    ],
    "task.ranks": [("families", TABLE, {"task": {"ranks": True, "centre": [], "spread": []}}, ["projection"])],
    "task.centre": [("greatest_magnitude", TABLE, {"task": {"centre": [0.0, -1e5]}}, 99999)],
    "task.spread": [
        ("greatest_magnitude", TABLE, {"task": {"spread": [1.0, 1e5]}}, 99999),
        ("greatest_magnitude", TABLE, {"task": {"spread": [1.0, 1e-5]}}, 99999),
    ],
    "task.augment": [("greatest_variants", IMAGES, {"task": {"augment": ["shift"]}}, 4)],
    "model.family": [("families", IMAGES, {}, ["conv4", "mlp"])],
    "model.encoder_sha256": [("greatest_encoder_bytes", IMAGES, {}, None)],  # tested by itself
    "model.features": [("greatest_features", IMAGES, {}, 3)],
    "model.embedding": [("greatest_embedding", IMAGES, {}, 1)],
    "model.width": [
        ("greatest_width", TABLE, {}, 2),
        ("greatest_parameters", TABLE, {}, 16),
        ("greatest_answer_bytes", TABLE, {}, 67),
    ],
    "algorithm.name": [("algorithms", IMAGES, {"algorithm": {"name": "svm"}}, ["ridge"])],
    "algorithm.tasks": [("questions", IMAGES, EPISODES, ["statistics", "gradient"])],
    "algorithm.table": [("algorithms", IMAGES, {"algorithm": {"name": "meta-weight"}}, ["ridge"])],
    "algorithm.local_steps": [
        ("greatest_local_steps", IMAGES, {"algorithm": {"name": "maml", "local_steps": 5}}, 4),
        ("greatest_gradients_per_round", IMAGES, {"algorithm": {"local_steps": 5}}, 4),
    ],
    "algorithm.local_learning_rate": [
        ("greatest_local_learning_rate", IMAGES, {}, 0.99),
        ("least_local_learning_rate", IMAGES, {}, 1.01),
    ],
    "algorithm.local_batches": [("greatest_local_batches", IMAGES, {"algorithm": {"local_batches": 3}}, 2)],
    "algorithm.proximal": [("greatest_proximal", IMAGES, {"algorithm": {"name": "fedprox"}}, 0.09)],
    "algorithm.pull": [("greatest_proximal", IMAGES, {"algorithm": {"name": "mr-mtl"}}, 0.09)],
    "algorithm.regularization": [
        ("greatest_regularization", IMAGES, {"algorithm": {"name": "ridge"}}, 0.99),
        ("least_regularization", IMAGES, {"algorithm": {"name": "svm"}}, 1.01),
    ],
    "privacy.epsilon": [("greatest_epsilon", IMAGES, {}, 7.99), ("least_noise_multiplier", IMAGES, {}, 100.0)],
    "privacy.clip_norm": [("greatest_clip_norm", IMAGES, {}, 0.99), ("least_clip_norm", IMAGES, {}, 1.01)],
    "privacy.patients_per_step": [("greatest_sampling_rate", IMAGES, {"privacy": {"patients_per_step": 20}}, 0.09)],
    "privacy.images_per_patient": [("greatest_images_per_patient", IMAGES, {"privacy": {"images_per_patient": 3}}, 2)],
    "privacy.patients_per_episode": [
        ("greatest_patients_per_episode", IMAGES, {}, 19),
        ("greatest_episodes", IMAGES, {}, 9),
    ],
    "algorithm.stand_ins": [
        ("greatest_patients_per_episode", IMAGES, {"algorithm": {"name": "ridge", "stand_ins": 50}}, 49),
    ],
    "privacy.support_share": [
        ("greatest_support_share", IMAGES, {}, 0.49),
        ("least_support_share", IMAGES, {}, 0.51),
    ],
    "privacy.statistics_share": [
        ("least_noise_multiplier", IMAGES, {"privacy": {"statistics_share": 0.9, "evaluation_share": 0.01}}, 3.0)
    ],
    "privacy.evaluation_share": [
        ("least_noise_multiplier", IMAGES, {"privacy": {"evaluation_share": 0.8}, "rounds": {"evaluate_every": 5}}, 3.0)
    ],
    "rounds.questions": [("questions", IMAGES, {}, None)],  # tested with a question of another package, in tests/extend
    "rounds.rounds": [("greatest_rounds", IMAGES, {}, 20)],
    "rounds.evaluate_every": [
        ("questions", IMAGES, {"rounds": {"evaluate_every": 5}}, ["statistics", "gradient"]),
        ("greatest_rounds", IMAGES, {"rounds": {"evaluate_every": 5}}, 24),
    ],
}
CASES = [
    pytest.param(*case, id=f"{setting}-{case[0]}")
    for setting, cases in BOUNDED.items()
    for case in cases
    if case[3] is not None
]


def test_every_setting_has_a_bound_or_a_reason_why_it_needs_none() -> None:
    known = BOUNDED.keys() | NOT_COMPUTED_HERE.keys()
    assert sorted(set(settings_of()) - known) == [], "bound it in the policy, or say why it decides nothing here"
    assert BOUNDED.keys() & NOT_COMPUTED_HERE.keys() == set()
    assert [setting for setting, cases in BOUNDED.items() if not cases] == []


def test_every_rule_of_the_policy_bounds_something() -> None:
    used = {case[0] for cases in BOUNDED.values() for case in cases}
    assert set(Policy.model_fields) - used == {"least_patients", "reply_grid_s"}


@pytest.mark.parametrize(("rule", "base", "asked", "limit"), CASES)
def test_each_bound_refuses_by_its_name(
    rule: str, base: dict[str, Any], asked: dict[str, dict[str, Any]], limit: Any
) -> None:
    federation = agreed(base, **asked)
    judge(hospital(), federation)
    with pytest.raises(PolicyRefusal) as refusal:
        judge(hospital(**{rule: limit}), federation)
    assert refusal.value.rule == f"policy.{rule}"
    assert refusal.value.asked
    assert refusal.value.allowed


def test_an_encoder_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    federation = agreed(IMAGES, model={"encoder": "e.safetensors", "encoder_sha256": "0" * 64})
    (tmp_path / "e.safetensors").write_bytes(bytes(101))
    check_sizes(hospital(greatest_encoder_bytes=101), federation, tmp_path)
    with pytest.raises(PolicyRefusal) as refusal:
        check_sizes(hospital(greatest_encoder_bytes=100), federation, tmp_path)
    assert (refusal.value.rule, refusal.value.asked) == ("policy.greatest_encoder_bytes", "101")


# A number that is out of all reason is refused whatever it belongs to. Generated: a new setting is among them.
REASONABLE = {
    ("algorithm.proximal", "small"): "no pull at all is FedAvg",
    ("algorithm.pull", "small"): "no pull at all is learning alone",
    ("privacy.epsilon", "small"): "only more noise",
    ("privacy.statistics_share", "small"): "only more noise",
    ("privacy.evaluation_share", "small"): "only more noise",
    ("privacy.patients_per_step", "large"): "at most everybody, which greatest_sampling_rate bounds",
    ("rounds.evaluate_every", "large"): "never",
}


def value_of(federation: Federation, setting: str) -> object:
    found: Any = federation
    for name in setting.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("setting", [each for each in settings_of() if each not in NOT_COMPUTED_HERE])
@given(data=st.data())
def test_a_number_beyond_reason_never_passes(setting: str, data: st.DataObject) -> None:
    base = able(IMAGES, setting)
    usual = value_of(Federation.model_validate(base), setting)
    if isinstance(usual, bool) or not isinstance(usual, int | float):
        return
    size = data.draw(st.sampled_from(["large", "small"] if isinstance(usual, float) else ["large"]))
    if (setting, size) in REASONABLE:
        return
    exponent = data.draw(st.integers(7, 9))
    value: float = 10**exponent if isinstance(usual, int) else 10.0 ** (exponent if size == "large" else -exponent)
    with pytest.raises((ValidationError, ConfigError, PolicyRefusal)):
        federation = Federation.model_validate(with_setting(base, setting, value))
        check_sizes(hospital(), federation)
        judge(hospital(), federation)
