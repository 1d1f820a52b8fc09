"""A federation of several findings a patient, from a labels CSV to a model that tells each finding from its absence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.intake import ingest_table
from tests.tables import Called

from wardround.labels.several import kind as findings
from wardround.wire import RoundReply
from wardround_client.hospital import Hospital
from wardround_client.round import _own_prior
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.rounds import run
from wardround_simulation.evaluate import measured

FINDINGS = ("nodule", "effusion", "mass")
THRESHOLDS = (0.0, 0.8, 1.3)  # of standard normal numbers: half, a fifth and a tenth of the patients
PATIENTS = 200
FEDERATION = """
name = "findings"
[task]
label_column = "seen"
classes = ["nodule", "effusion", "mass"]
labels = "several"
kind = "table"
features = ["a", "b", "c"]
[model]
family = "logistic"
[algorithm]
name = "{algorithm}"
[outer]
learning_rate = 2.0
[privacy]
epsilon = 60.0
patients_per_episode = 10
[rounds]
rounds = 15
"""


def hospital(folder: Path, algorithm: str, seed: int) -> Hospital:
    """Finding k is there where the k-th number is above its threshold; a patient may have all, or none."""
    made = Hospital.create(folder, f'[hospital]\nname = "h{seed}"\ndeclared_patients = {PATIENTS}\n'
                           "[budget]\nepsilon = 100.0\nepsilon_per_round = 100.0\n")  # fmt: skip
    dice = random.Random(seed)
    lines = ["a,b,c,seen"]
    for _ in range(PATIENTS):
        x = [dice.gauss(0, 1) for _ in FINDINGS]
        seen = [name for name, value, least in zip(FINDINGS, x, THRESHOLDS, strict=True) if value > least]
        lines.append(",".join([*(f"{value:.3f}" for value in x), ";".join(seen) or "normal"]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    ingest_table(
        folder / "table.csv", folder / "cohort", key=made.patients.key, features=("a", "b", "c"), labels=("seen",),
    )  # fmt: skip
    (folder / "federation.toml").write_text(FEDERATION.format(algorithm=algorithm))
    made.approvals.approve(folder / "federation.toml")
    return made


@pytest.mark.parametrize(("algorithm", "least"), [("reptile", 0.85), ("maml", 0.7)])
def test_a_federation_learns_every_finding(tmp_path: Path, algorithm: str, least: float) -> None:
    """`least` of balanced accuracy, where a guess has 0.5; the noise of an episode's gradient is the larger."""
    hospitals = [hospital(tmp_path / str(seed), algorithm, seed) for seed in range(3)]
    *members, stranger = hospitals
    agreement = stranger.approvals.preview(stranger.home / "federation.toml")
    checkpointer = Checkpointer(tmp_path / "spring")
    events = list(run(agreement.federation, agreement.model, Called(members), checkpointer, run_name="spring"))
    assert not any(isinstance(event, RoundEnded) and event.rejected for event in events)
    state = checkpointer.load(run="spring", federation=agreement.federation.digest)
    assert state is not None
    assert state.shift.abs().max() < 0.2, "patients with several findings are counted once"
    assert (measured(stranger, agreement, state) or 0.0) > least

    for member in members:
        stored = member.ledger.reply_of("spring", 0)
        assert stored is not None
        released = RoundReply.unpack(stored, run="spring", round=0, size=3 + 2 * 3).answer.copy()
        counts = torch.from_numpy(released[:3])
        torch.testing.assert_close(counts / PATIENTS, torch.tensor([0.5, 0.21, 0.1]), atol=0.1, rtol=0)
        prior = _own_prior(member, "spring", agreement)
        assert prior is not None
        assert torch.equal(prior, findings.prior(counts, PATIENTS))
