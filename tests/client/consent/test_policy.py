"""The hospital's policy: every rule refuses, by name, saying what was asked and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import nn

from wardround.accountant import calibrate
from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.models.tabular import Tabular
from wardround.schedule import Schedule
from wardround_client.config import HospitalConfig
from wardround_client.consent.policy import check

FEATURES = ("age", "pressure", "sugar")


def federation(**sections: Any) -> Federation:
    return Federation.model_validate(
        {
            "name": "heart",
            "task": {"label_column": "ill", "classes": ["no", "yes"], "kind": "table", "features": FEATURES},
            "model": {"family": "logistic"},
            **sections,
        }
    )


def hospital(patients: int = 200, **policy: Any) -> HospitalConfig:
    return HospitalConfig.model_validate(
        {"hospital": {"name": "north", "declared_patients": patients}, "policy": policy}
    )


def judge(config: HospitalConfig, agreement: Federation, model: Any = None) -> None:
    schedule = Schedule.of(agreement)
    calibration = calibrate(
        schedule, agreement.privacy, declared_patients=config.hospital.declared_patients, delta=config.delta
    )
    check(config, agreement, schedule, calibration, model or Tabular.logistic(len(FEATURES), 2))


def test_the_defaults_agree() -> None:
    judge(hospital(), federation())


REFUSED: dict[str, tuple[HospitalConfig, Federation]] = {
    "least_noise_multiplier": (hospital(), federation(privacy={"epsilon": 1e9})),
    "greatest_clip_norm": (hospital(), federation(privacy={"clip_norm": 11.0})),
    "least_patients": (hospital(19), federation()),
    "greatest_gradients_per_round": (
        hospital(greatest_gradients_per_round=4),
        federation(algorithm={"name": "reptile", "local_steps": 5}),
    ),
    "greatest_rounds": (hospital(greatest_rounds=20), federation()),
    "greatest_sampling_rate": (hospital(greatest_sampling_rate=0.5), federation()),
    "greatest_images_per_patient": (hospital(), federation(privacy={"images_per_patient": 17})),
    "families": (hospital(families=["conv4"]), federation()),
    "greatest_parameters": (hospital(greatest_parameters=7), federation()),
    "labels": (hospital(labels=["no"]), federation()),
    "questions": (hospital(questions=["statistics", "gradient"]), federation(rounds={"evaluate_every": 5})),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_each_rule_refuses_by_name(rule: str) -> None:
    config, agreement = REFUSED[rule]
    with pytest.raises(PolicyRefusal) as refusal:
        judge(config, agreement)
    assert refusal.value.rule == f"policy.{rule}"
    assert refusal.value.asked
    assert refusal.value.allowed


@dataclass(frozen=True)
class Wrapped:
    layout: Any
    network: nn.Module
    classes: int = 2
    scaling_size: int = 3


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)]
)
def test_a_layer_that_mixes_patients_is_refused(layer: nn.Module, trainable: bool) -> None:
    model = Wrapped(Tabular.logistic(3, 2).layout, nn.Sequential(nn.Linear(3, 3), layer).requires_grad_(trainable))
    with pytest.raises(PolicyRefusal, match=r"policy\.model"):
        judge(hospital(), federation(), model)
    judge(hospital(), federation(), replace(model, network=nn.GroupNorm(1, 3)))


@dataclass(frozen=True)
class WithEncoder:
    layout: Any
    encoder: nn.Module
    classes: int = 2
    scaling_size: int = 3


def test_a_frozen_encoder_may_hold_batch_norm_in_evaluation_mode_only() -> None:
    model = WithEncoder(Tabular.logistic(3, 2).layout, nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(PolicyRefusal, match="BatchNorm2d"):
        judge(hospital(), federation(), model)
    model.encoder.eval()
    judge(hospital(), federation(), model)
