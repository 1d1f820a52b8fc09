"""A coordinator that asks for what it must not have. Each attack is refused by name, costs nothing and ends nothing.

P39: "A request outside it gets a structured refusal (which rule, asked, allowed), costs nothing, and the daemon
stays alive."
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.hostile.attack import FEDERATION, Victim, only_a_refusal, with_header
from tests.rounds import read, request
from torch import nn

import wardround.bundle
import wardround_client.consent.agreement as agreement_module
from wardround.cli import run
from wardround.config import Federation, load_federation
from wardround.errors import ConfigError, PolicyRefusal
from wardround.models import Model, build_model
from wardround.schedule import QUESTIONS
from wardround.wire import peek_reply
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer
from wardround_client.service.daemon import coordinator_of
from wardround_server.network import tls

IMAGES = """
name = "greedy"
[task]
label_column = "finding"
classes = ["normal", "nodule"]
image_size_px = 32
[model]
family = "conv4"
width = 1024
"""


def approve(victim: Victim, tmp_path: Path, text: str) -> None:
    """What the hospital's own hand would do with a file that an attacker sent by mail."""
    file = tmp_path / "greedy.toml"
    file.write_text(text)
    victim.hospital.approvals.approve(file)


def limited(victim: Victim, **policy: object) -> Victim:
    """The same hospital after its privacy officer narrowed the policy."""
    hospital = victim.hospital
    config = hospital.config.model_copy(
        update={"policy": type(hospital.config.policy).model_validate(hospital.config.policy.model_dump() | policy)}
    )
    return Victim(Hospital(hospital.home, config, hospital.ledger), victim.agreement)


# What a hospital would never approve: the policy refuses, though a person said yes.

GREEDY: dict[str, tuple[str, str]] = {
    "lower noise": ("policy.least_noise_multiplier", "[privacy]\nepsilon = 1e4\n"),
    "an epsilon of a thousand million": ("policy.least_noise_multiplier", "[privacy]\nepsilon = 1e9\n"),
    "a larger clip norm": ("policy.greatest_clip_norm", "[privacy]\nclip_norm = 11.0\n"),
    "more steps": ("policy.greatest_local_steps", "[algorithm]\nlocal_steps = 101\n"),
    "more images a patient": ("policy.greatest_images_per_patient", "[privacy]\nimages_per_patient = 17\n"),
}


@pytest.mark.parametrize("attack", GREEDY)
def test_an_agreement_past_the_policy_is_refused_by_name(victim: Victim, tmp_path: Path, attack: str) -> None:
    rule, section = GREEDY[attack]
    before = victim.state()
    with pytest.raises(PolicyRefusal) as refusal:
        approve(victim, tmp_path, FEDERATION + section)
    assert refusal.value.rule == rule
    assert refusal.value.asked
    assert refusal.value.allowed
    assert victim.state() == before
    assert len(victim.hospital.approvals.digests()) == 1
    victim.still_answers()


NARROWED: dict[str, tuple[str, dict[str, object]]] = {
    "lower noise": ("policy.least_noise_multiplier", {"least_noise_multiplier": 50.0}),
    "a larger clip norm": ("policy.greatest_clip_norm", {"greatest_clip_norm": 0.5}),
    "a smaller cohort": ("policy.least_patients", {"least_patients": 41}),
    "a sampling rate": ("policy.greatest_sampling_rate", {"greatest_sampling_rate": 0.5}),
    "more rounds": ("policy.greatest_rounds", {"greatest_rounds": 4}),
    "another family": ("policy.families", {"families": ["conv4"]}),
    "more parameters": ("policy.greatest_parameters", {"greatest_parameters": 5}),
    "other labels": ("policy.labels", {"labels": ["no"]}),
    "metrics": ("policy.questions", {"questions": ["statistics", "gradient"]}),
    "class means": ("policy.questions", {"questions": ["class_means", "gradient", "episode_gradient", "confusion"]}),
}


@pytest.mark.parametrize("attack", NARROWED)
def test_a_round_of_an_approval_that_the_policy_no_longer_permits_is_refused(victim: Victim, attack: str) -> None:
    rule, policy = NARROWED[attack]
    narrow = limited(victim, **policy)
    before = victim.state()
    refusal = only_a_refusal(answer(narrow.hospital, request(victim.agreement, 0)), narrow.hospital)
    assert (refusal.error, refusal.rule) == ("PolicyRefusal", rule)
    assert refusal.asked
    assert refusal.allowed
    assert victim.state() == before


def test_steps_within_the_algorithm_count_for_every_training_question(victim: Victim, tmp_path: Path) -> None:
    """Fomaml asks once more than it steps, and episodes count as gradients do."""
    with pytest.raises(PolicyRefusal, match="greatest_gradients_per_round") as refusal:
        approve(victim, tmp_path, FEDERATION + '[algorithm]\nname = "fomaml"\nlocal_steps = 100\n')
    assert refusal.value.asked == "101"


def test_every_question_can_be_forbidden(victim: Victim) -> None:
    assert set(victim.hospital.config.policy.questions) == set(QUESTIONS.built_in)
    assert {"episode_gradient", "class_means"} <= set(QUESTIONS.built_in)
    narrow = limited(victim, questions=[question for question in QUESTIONS.built_in if question != "gradient"])
    with pytest.raises(PolicyRefusal) as refusal:
        narrow.hospital.approvals.agreement(victim.agreement.federation.digest)
    assert (refusal.value.rule, refusal.value.asked) == ("policy.questions", "gradient")


@pytest.mark.parametrize(
    "section",
    [
        "[privacy]\nseed = 1\n",
        "[algorithm]\nseed = 1\n",
        "seed = 1\n",
        '[privacy]\nnoise_generator = "numpy"\n',
        "[privacy]\nnoise_multiplier = 0.0\n",
    ],
)
def test_a_seed_in_an_agreement_is_refused(victim: Victim, tmp_path: Path, section: str) -> None:
    """P50: "a seed is refused whenever privacy is on"."""
    text = section + FEDERATION if not section.startswith("[") else FEDERATION + section
    with pytest.raises(ConfigError, match=r"seed|noise"):
        approve(victim, tmp_path, text)
    victim.still_answers()


@pytest.mark.parametrize("family", ["batchnorm", "resnet18", "../../model.py"])
def test_an_unknown_model_is_refused(victim: Victim, tmp_path: Path, family: str) -> None:
    with pytest.raises(ConfigError, match="family"):
        approve(victim, tmp_path, FEDERATION.replace('"logistic"', f'"{family}"'))


def test_a_model_with_batch_norm_is_refused_at_approval_and_in_a_round(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P42: "BatchNorm buffers"."""

    class Normed:
        def __init__(self, model: Model) -> None:
            self.layout, self.classes, self.scaling_size = model.layout, model.classes, model.scaling_size
            self.network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    monkeypatch.setattr(agreement_module, "build_model", lambda *args: Normed(build_model(*args)))
    with pytest.raises(PolicyRefusal, match="BatchNorm") as refusal:
        approve(victim, tmp_path, FEDERATION.replace('"hearts"', '"other"'))
    assert refusal.value.rule == "policy.model"
    again = Victim(limited(victim).hospital, victim.agreement)  # nothing warm: the approval is read again
    reply = answer(again.hospital, request(victim.agreement, 0))
    assert only_a_refusal(reply, again.hospital).rule == "policy.model"
    assert not victim.hospital.ledger.entries()


def test_a_model_built_to_memorise_is_refused(victim: Victim, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusal) as refusal:
        approve(victim, tmp_path, IMAGES)
    assert refusal.value.rule == "policy.greatest_parameters"
    assert int(refusal.value.asked) > victim.hospital.config.policy.greatest_parameters


# What arrives over the wire under a good approval.

FOREIGN: dict[str, Callable[[str], str]] = {
    "a larger clip norm": lambda text: text + "[privacy]\nclip_norm = 2.0\n",
    "other labels": lambda text: text.replace('"no", "yes"', '"yes", "no"'),
    "another name": lambda text: text.replace('"hearts"', '"hearts2"'),
    "more rounds": lambda text: text.replace("rounds = 3", "rounds = 30", 1),
}


@pytest.mark.parametrize("attack", FOREIGN)
def test_a_round_of_an_agreement_that_was_not_approved_is_refused(victim: Victim, tmp_path: Path, attack: str) -> None:
    file = tmp_path / "foreign.toml"
    file.write_text(FOREIGN[attack](FEDERATION))
    digest = load_federation(file).digest
    assert digest != victim.agreement.federation.digest
    victim.refuses(with_header(request(victim.agreement, 0), federation=digest), "PolicyRefusal", "approved")


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"noise_multiplier": 0.0},
        {"clip_norm": 1e9},
        {"epsilon": 1e9},
        {"question": "gradient"},
        {"question": "patients"},
        {"steps": 1000},
        {"sampling_rate": 1.0},
        {"labels": ["yes"]},
        {"bundle": "print('hello')"},
        {"version": 2},
        {"kind": "reply"},
        {"kind": "command"},
        {"round": -1},
        {"round": "1"},
        {"round": 1.0},
        {"round": None},
        {"round": 10**30},
        {"run": "../../etc/passwd"},
        {"run": "a\nb"},
        {"run": ""},
        {"run": ["spring"]},
        {"federation": "0" * 63},
        {"federation": "../approved"},
    ],
    ids=str,
)
def test_a_header_cannot_bring_a_setting(victim: Victim, fields: dict[str, object]) -> None:
    refusal = victim.refuses(with_header(request(victim.agreement, 1), **fields), "MessageError")
    assert refusal.asked.startswith("not a RequestHeader of wardround")


def test_a_round_that_the_schedule_does_not_have_is_refused(victim: Victim) -> None:
    for number in (len(victim.agreement.schedule), 999_999):
        refusal = victim.refuses(request(victim.agreement, number), "PolicyRefusal", "approved")
        assert refusal.asked == f"round {number}"


def test_a_replayed_round_gets_the_same_bytes_and_costs_nothing(victim: Victim) -> None:
    first = answer(victim.hospital, request(victim.agreement, 1))
    before = victim.state()
    for _ in range(3):
        assert answer(victim.hospital, request(victim.agreement, 1)) == first
    assert victim.state() == before


def test_a_replayed_round_with_another_question_is_refused(victim: Victim) -> None:
    answer(victim.hospital, request(victim.agreement, 1))
    refusal = victim.refuses(request(victim.agreement, 1, theta=1e-6), "Replay")
    assert (refusal.asked, refusal.allowed) == ("", "")


def test_an_old_round_is_refused(victim: Victim) -> None:
    for number in (0, 2):
        answer(victim.hospital, request(victim.agreement, number))
    victim.refuses(request(victim.agreement, 1), "Replay")


def test_another_federation_under_the_same_run_name_is_refused(victim: Victim, tmp_path: Path) -> None:
    answer(victim.hospital, request(victim.agreement, 0))
    file = tmp_path / "second.toml"
    file.write_text(FEDERATION.replace('"hearts"', '"second"'))
    second = victim.hospital.approvals.approve(file)
    victim.refuses(request(second, 1), "Replay")


def test_new_run_names_of_an_approved_federation_are_bounded_by_the_total_budget(victim: Victim) -> None:
    """P36: "The budget belongs to the cohort, not to a run"."""
    hospital, outcomes = victim.hospital, []
    for number in range(12):
        for plan in victim.agreement.schedule.rounds:
            header = peek_reply(answer(hospital, request(victim.agreement, plan.number, run=f"run-{number}")))
            outcomes.append(header.refusal.error if header.refusal else "")
    assert outcomes[0] == ""
    assert outcomes[-1] == "BudgetExceeded"
    assert set(outcomes) == {"", "BudgetExceeded"}
    assert hospital.ledger.spent(hospital.config.delta) <= hospital.config.budget.epsilon
    spent = hospital.ledger.spent(hospital.config.delta)
    answer(hospital, request(victim.agreement, 1, run="one-more"))
    assert hospital.ledger.spent(hospital.config.delta) == spent


@pytest.mark.parametrize("theta", [float("nan"), float("inf"), float("-inf")])
def test_a_theta_that_is_not_finite_is_refused(victim: Victim, theta: float) -> None:
    refusal = victim.refuses(request(victim.agreement, 1, theta=theta), "MessageError")
    assert refusal.asked == "theta holds NaN or infinity"


@pytest.mark.parametrize("theta", [1e30, -1e30, 1.1e6, -1.1e6, 3.4e38])
def test_a_theta_of_absurd_magnitude_is_refused_by_name(victim: Victim, theta: float) -> None:
    refusal = victim.refuses(request(victim.agreement, 1, theta=theta), "PolicyRefusal", "policy.greatest_magnitude")
    assert refusal.asked == f"theta of magnitude {abs(float(np.float32(theta))):.4g}"
    assert refusal.allowed == "at most 1e+06"


@pytest.mark.parametrize(("scale", "asked"), [(1e30, "scale of"), (1e-30, "1 / scale of"), (1e-45, "1 / scale of")])
def test_a_scale_that_blows_features_up_is_refused_by_name(victim: Victim, scale: float, asked: str) -> None:
    refusal = victim.refuses(request(victim.agreement, 1, scale=scale), "PolicyRefusal", "policy.greatest_magnitude")
    assert refusal.asked.startswith(asked)


def test_one_absurd_number_among_many_is_enough(victim: Victim) -> None:
    shift = np.zeros(victim.agreement.model.scaling_size, np.float32)
    shift[-1] = -1e7
    blob = request(victim.agreement, 1, shift=shift)
    assert victim.refuses(blob, "PolicyRefusal", "policy.greatest_magnitude").asked == "shift of magnitude 1e+07"


@pytest.mark.parametrize("theta", [0.0, 100.0, 9.9e5, -9.9e5])
def test_what_is_just_within_the_magnitude_is_answered_with_finite_numbers(victim: Victim, theta: float) -> None:
    for plan in victim.agreement.schedule.rounds:
        reply = answer(victim.hospital, request(victim.agreement, plan.number, theta=theta))
        unpacked = read(victim.agreement, reply, plan.number)
        assert unpacked.header.refusal is None
        assert np.isfinite(unpacked.answer).all()


def test_a_scale_of_nothing_is_refused(victim: Victim) -> None:
    for scale in (0.0, -1.0):
        refusal = victim.refuses(request(victim.agreement, 1, scale=scale), "MessageError")
        assert refusal.asked == "scale is not positive everywhere"


def test_the_ledger_names_the_coordinator_that_was_joined(victim: Victim, tmp_path: Path) -> None:
    """P45: "approved coordinator identity". The address, and the hash of the only CA that is believed."""

    files = tls.create(tmp_path / "tls", ["127.0.0.1"])
    home = victim.hospital.home
    assert run(["hospital", "join", str(home), "--address", "fl.example.org:9092", "--ca", str(files.ca)]) == 0
    hospital = Hospital.open(home, ledger=Ledger(None))
    hospital.approvals.approve(hospital.approvals.folder(victim.agreement.federation.digest) / "federation.toml")
    answer(hospital, request(victim.agreement, 0))
    pinned = hospital.config.coordinator.ca_sha256
    (reserved, released) = hospital.ledger.entries()
    for entry in (reserved, released):
        assert entry.body["coordinator"] == f"fl.example.org:9092 (CA {pinned[:16]})"


def test_an_exchanged_ca_file_is_refused_before_anything_connects(victim: Victim, tmp_path: Path) -> None:

    home = victim.hospital.home
    ours, theirs = (tls.create(tmp_path / name, ["127.0.0.1"]).ca for name in ("ours", "theirs"))
    assert run(["hospital", "join", str(home), "--address", "127.0.0.1:1", "--ca", str(ours)]) == 0
    assert coordinator_of(Hospital.open(home, ledger=Ledger(None))).ca_pem == ours.read_bytes()
    (home / "coordinator-ca.pem").write_bytes(theirs.read_bytes())
    with pytest.raises(ConfigError, match="is not the certificate authority that this hospital joined"):
        coordinator_of(Hospital.open(home, ledger=Ledger(None)))


def test_a_changed_approval_is_refused(victim: Victim) -> None:
    digest = victim.agreement.federation.digest
    file = victim.hospital.approvals.folder(digest) / "federation.toml"
    good = file.read_text()
    file.write_text(good.replace("rounds = 3", "rounds = 30", 1))
    reply = answer(victim.hospital, request(victim.agreement, 0))
    assert only_a_refusal(reply, victim.hospital).rule == "approved"
    file.write_text("not TOML at all [")
    assert only_a_refusal(answer(victim.hospital, request(victim.agreement, 0)), victim.hospital).error == "ConfigError"
    file.write_text(good)
    victim.still_answers()


def test_an_approval_pins_bundle_and_federation(victim: Victim) -> None:
    """P44: "approved bundle hashes"."""

    federation: Federation = victim.agreement.federation
    assert victim.hospital.approvals.bundles() == {wardround.bundle.digest(federation)}
    assert victim.agreement.bundle_sha256 == wardround.bundle.digest(federation)
