"""What a hospital remembers of a run: its own replies, in its ledger, whatever dies in between; and old approvals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.rounds import read, request
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Federation, Privacy
from wardround.errors import ConfigError
from wardround.questions import Loss
from wardround.toml import loads
from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import _sent, answer

SCAFFOLD = '\n[algorithm]\nname = "scaffold"\nlocal_steps = 2\n'
MR_MTL = '\n[algorithm]\nname = "mr-mtl"\nlocal_steps = 2\nlocal_learning_rate = 0.5\npull = 0.4\n'
# Approved under version 0.1 with settings that FedAvg has not: the digest is that of the code at commit 7eae488.
OLD = """
name = "spring"
[task]
label_column = "finding"
classes = ["normal", "nodule"]
[algorithm]
name = "fedavg"
proximal = 3
regularization = 0.25
local_batches = 4
[outer]
beta1 = 0.5
tau = 1
"""
OLD_DIGEST = "0aa495ea7235806aa5f52819bbdc06cda9bea4e0df31f70f071ffc042666acbc"


def on_disk(hospital: Hospital) -> Hospital:
    return Hospital(hospital.home, hospital.config, Ledger(hospital.home / "ledger.sqlite"))


def sent(hospital: Hospital, agreement: Agreement, number: int, run: str = "spring") -> Tensor:
    found = _sent(hospital, run, agreement, agreement.schedule[number])
    assert found is not None
    return found


def test_a_control_variate_is_the_sum_of_what_was_sent_also_after_the_daemon_died(
    hospital: Hospital, federation_toml: Path
) -> None:
    federation_toml.write_text(federation_toml.read_text() + SCAFFOLD)
    before = on_disk(hospital)
    agreement = before.approvals.approve(federation_toml)
    total = torch.zeros(agreement.model.layout.size)
    for number in (0, 1, 2):
        assert torch.equal(sent(before, agreement, number), total) if number else True
        reply = read(agreement, answer(before, request(agreement, number)), number)
        assert reply.header.refusal is None
        if agreement.schedule[number].trains:
            total = total + torch.from_numpy(reply.answer)
    before.ledger.close()

    again = on_disk(hospital)
    assert total.norm() > 0
    assert torch.equal(sent(again, agreement, 3), total)
    assert torch.equal(sent(again, agreement, 1), torch.zeros_like(total)), "a retry of round 1 is what round 1 was"
    assert torch.equal(sent(again, agreement, 3, run="autumn"), torch.zeros_like(total))
    reply = read(agreement, answer(again, request(agreement, 3)), 3)
    c = agreement.model.layout.size // 2
    assert reply.answer[c:].any()
    again.ledger.close()


def test_a_simulation_of_many_rounds_remembers_with_the_few_replies_that_its_ledger_keeps(
    hospital: Hospital, federation_toml: Path
) -> None:
    text = federation_toml.read_text()
    assert "rounds = 3" in text
    federation_toml.write_text(text.replace("rounds = 3", "rounds = 8") + SCAFFOLD)
    agreement = hospital.approvals.approve(federation_toml)
    assert hospital.ledger.in_memory
    total = torch.zeros(agreement.model.layout.size)
    for number in range(9):
        if number in (4, 5):  # was not there
            continue
        reply = read(agreement, answer(hospital, request(agreement, number)), number)
        assert reply.header.refusal is None
        if agreement.schedule[number].trains:
            kept = hospital.sent[agreement.federation.digest, "spring"]
            assert torch.equal(kept[1], total), (number, kept[0])
            total = total + torch.from_numpy(reply.answer.copy())


class Noting(PrivateCohort):
    """A hospital's own, which notes where it was asked and what it answered."""

    asked: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        answer = super().gradient(loss, theta)
        self.asked.append((theta.clone(), answer.clone()))
        return answer


def test_a_model_of_one_s_own_is_what_the_ledger_s_replies_add_up_to(hospital: Hospital, federation_toml: Path) -> None:
    """MR-MTL: w_h <- w_h - eta (g(w_h) + lambda (w_h - w)), with w what the coordinator sent, across a restart."""
    federation_toml.write_text(federation_toml.read_text() + MR_MTL)
    here = on_disk(hospital)
    agreement = here.approvals.approve(federation_toml)
    start = agreement.model.initial()

    def opened(
        examples: Examples, *, privacy: Privacy, declared_patients: int, reserved: Sequence[Answers]
    ) -> PrivateCohort:
        return Noting(examples, privacy=privacy, declared_patients=declared_patients, reserved=reserved)

    own, eta, pull = start, 0.5, 0.4
    for number in range(len(agreement.schedule)):
        Noting.asked.clear()
        mean = start + 0.01 * number
        reply = read(agreement, answer(here, request(agreement, number, theta=mean.numpy()), opened), number)
        assert reply.header.refusal is None
        if not agreement.schedule[number].trains:
            continue
        assert len(Noting.asked) == 4, "two about nobody, before the wall, and two about the patients"
        for at, g in Noting.asked[2:]:
            torch.testing.assert_close(at, own)
            own = own - eta * (g + pull * (own - mean))
        here.ledger.close()
        here = on_disk(hospital)
        if number + 1 < len(agreement.schedule) and agreement.schedule[number + 1].trains:
            torch.testing.assert_close(start + sent(here, agreement, number + 1), own)
    assert (own - start).norm() > 0
    here.ledger.close()


def test_an_approval_of_version_0_1_is_still_one(hospital: Hospital) -> None:
    folder = hospital.home / "approved" / OLD_DIGEST
    folder.mkdir(parents=True)
    (folder / "federation.toml").write_text(OLD)
    record = {"digest": OLD_DIGEST, "coordinator": hospital.config.coordinator.identity, "runs": 1}
    (folder / "approval.json").write_text(json.dumps(record))

    agreement = hospital.approvals.agreement(OLD_DIGEST)
    assert agreement.federation.digest == OLD_DIGEST
    assert dict(agreement.federation.algorithm)["local_steps"] == 1
    with pytest.raises(
        ConfigError, match=r"line 10: algorithm.local_batches: fedavg has no such setting; it has tasks, local_"
    ):
        loads(OLD, Federation)
