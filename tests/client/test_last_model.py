"""A hospital keeps the last model that it was asked about, and no round ever fails for it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.rounds import read, request

import wardround_client.last_model
from wardround.release import read as read_release
from wardround_client.hospital import Hospital
from wardround_client.last_model import MODELS, last_seen
from wardround_client.privacy.ledger import LEDGER, Ledger
from wardround_client.round import answer


@pytest.fixture
def deployed(hospital: Hospital) -> Hospital:
    """The hospital with a ledger on the disk, as a daemon has it."""
    return Hospital.open(hospital.home, ledger=Ledger(hospital.home / LEDGER))


def test_the_last_model_that_was_answered_about_is_kept(deployed: Hospital, federation_toml: Path) -> None:
    agreement = deployed.approvals.approve(federation_toml)
    path = last_seen(deployed.home, agreement.federation.digest)
    for number in (0, 1):
        theta = np.full(agreement.model.layout.size, number, np.float32)
        assert read(agreement, answer(deployed, request(agreement, number, theta=theta)), number).header.refusal is None
        kept, _, _ = read_release(path)
        assert (kept.run, kept.round, kept.federation) == ("spring", number, agreement.federation.digest)
        assert torch.equal(kept.theta, torch.from_numpy(theta))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_refused_request_leaves_nothing(deployed: Hospital, federation_toml: Path) -> None:
    agreement = deployed.approvals.approve(federation_toml)
    answer(deployed, request(agreement, 1, theta=1e30))
    assert not (deployed.home / MODELS).exists()


def test_a_disk_that_refuses_costs_no_round(
    deployed: Hospital, federation_toml: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agreement = deployed.approvals.approve(federation_toml)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wardround_client.last_model, "write_atomically", full)
    with caplog.at_level(logging.WARNING):
        reply = read(agreement, answer(deployed, request(agreement, 0)), 0)
    assert reply.header.refusal is None
    assert "will need --model" in caplog.text


def test_a_simulation_writes_no_models(hospital: Hospital, federation_toml: Path) -> None:
    agreement = hospital.approvals.approve(federation_toml)
    assert read(agreement, answer(hospital, request(agreement, 0)), 0).header.refusal is None
    assert not (hospital.home / MODELS).exists()
