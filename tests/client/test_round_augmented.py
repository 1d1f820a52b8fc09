"""A hospital's rounds with augmentation: the same questions, the same price, other gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.rounds import read, request

from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.round import answer


def augmented(hospital: Hospital, federation_toml: Path, model: str) -> Agreement:
    text = federation_toml.read_text().replace("image_size_px = 32\n", 'image_size_px = 32\naugment = ["shift"]\n')
    federation_toml.write_text(text.replace("[model]\n", f"[model]\n{model}\n"))
    return hospital.approvals.approve(federation_toml)


@pytest.mark.parametrize("model", ['family = "encoder-head"', 'family = "conv4"\nwidth = 8'])
def test_a_whole_run_is_answered(hospital: Hospital, federation_toml: Path, model: str) -> None:
    agreement = augmented(hospital, federation_toml, model)
    for plan in agreement.schedule.rounds:
        reply = read(agreement, answer(hospital, request(agreement, plan.number)), plan.number)
        assert reply.header.refusal is None
        assert np.isfinite(reply.answer).all()


def test_variants_cost_no_privacy(hospital: Hospital, federation_toml: Path) -> None:
    plain = hospital.approvals.approve(federation_toml)
    varied = augmented(hospital, federation_toml, "")
    assert varied.calibration == plain.calibration
    assert varied.federation.digest != plain.federation.digest, "another agreement, to be approved"


def test_an_image_and_its_variants_are_encoded_alike(hospital: Hospital, federation_toml: Path) -> None:
    agreed = [hospital.approvals.approve(federation_toml), augmented(hospital, federation_toml, "")]
    plain, varied = (hospital.examples(each) for each in agreed)
    assert torch.equal(plain.z, varied.z)
    assert varied.augmented is not None
    assert varied.augmented.shape == (len(plain.z), 4, *plain.z.shape[1:])
    near = (varied.augmented - varied.z.unsqueeze(1)).norm(dim=2)
    apart = (varied.z - varied.z.roll(1, 0)).norm(dim=1).mean()
    assert (near > 0).all() and near.mean() < apart, "an image moved by two pixels is that image still"
