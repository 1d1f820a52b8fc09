"""Behind the reservation nothing raises, refuses, stalls or repeats (specification, "The wall").

Faults are not hand-picked: every function of ours that runs between the reservation and the reply is found by watching
an honest round, and then made to raise, one at a time, at its first and at its last call.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from tests.hostile.attack import Victim
from tests.hostile.conftest import make_home
from tests.rounds import TWO_COLUMNS, read, request

from wardround.config import Federation
from wardround.toml import loads
from wardround.wire import RoundReply, Vector, peek_reply
from wardround_client.cohort.examples import Examples, NamedExamples
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import answer

MLP = TWO_COLUMNS.replace('family = "logistic"', 'family = "mlp"\nwidth = 3')
CONV4 = """
[task]
label_column = "y"
classes = ["no", "yes"]
image_size_px = 8
[model]
family = "conv4"
width = 2
"""
AGREEMENTS = {
    "elementary": ("fedavg", TWO_COLUMNS),
    "with sums": ("discriminant", TWO_COLUMNS),
    "weighed": ("meta-weight", TWO_COLUMNS),
    "deep": ("reptile", CONV4),
    "episodes": ("maml", MLP),
    "prototypes": ("prototypical", MLP),
    "solved": ("ridge", MLP),
}
CASES: list[tuple[str, str]] = [
    ("elementary", "statistics"),
    ("elementary", "gradient"),
    ("elementary", "confusion"),
    ("with sums", "gradient"),
    ("weighed", "gradient"),
    ("deep", "gradient"),
    ("deep", "confusion"),
    ("episodes", "episode_gradient"),
    ("prototypes", "class_means"),
    ("prototypes", "confusion"),
    ("solved", "episode_gradient"),
]
ERRORS = (ValueError, MemoryError, RuntimeError, KeyError, RecursionError, FloatingPointError, AssertionError)
# What stores a finished reply: it may fail for the disk, which is nobody's, and then the same reply is stored later.
STORING = ("privacy/ledger.py", "privacy/chain.py", "clock.py")


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Victim]:
    found = {}
    for name, (algorithm, rest) in AGREEMENTS.items():
        text = f'name = "hearts"{rest}[algorithm]\nname = "{algorithm}"\n[rounds]\nrounds = 1\nevaluate_every = 1\n'
        if rest is CONV4:
            found[name] = with_images(tmp_path_factory.mktemp("conv4"), text)
        else:
            home = make_home(tmp_path_factory.mktemp("wall") / "home", 24, federation=text)
            found[name] = Victim.of(home)
    return found


def with_images(folder: Path, text: str) -> Victim:
    """A hospital whose examples are in memory: 12 patients, one image each."""
    hospital = Hospital.create(
        folder / "home", '[hospital]\nname = "st-anna"\ndeclared_patients = 40\n', ledger=Ledger(None)
    )
    agreement = Agreement.of(loads(text, Federation), hospital.config, folder)
    (folder / "federation.toml").write_text(text)
    hospital.approvals.approve(folder / "federation.toml")
    z = torch.rand(12, 1, 8, 8)
    examples = Examples(z, torch.arange(12) % 2, torch.arange(12), agreement.model.summary(z), 2)
    hospital.patients._examples[agreement.federation.digest] = NamedExamples(
        examples, tuple(bytes([n]) for n in range(12))
    )
    return Victim(hospital, agreement)


def fresh(victim: Victim) -> None:
    """A new ledger, and nothing left of earlier rounds."""
    victim.hospital.ledger = Ledger(None)
    victim.hospital.unreleased = {}


def number_of(victim: Victim, question: str) -> int:
    return next(plan.number for plan in victim.agreement.schedule.rounds if plan.question == question)


class Watch:
    """Counts the calls of our functions behind the reservation; raises at one of them, if it is told which."""

    def __init__(self, target: CodeType | None = None, nth: int = 0, error: type[Exception] = ValueError) -> None:
        self.calls: Counter[CodeType] = Counter()
        self._target, self._nth, self._error, self._behind = target, nth, error, False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "return" and code is Ledger.reserve.__code__:
            self._behind = True
        elif event == "return" and code is answer.__code__:
            self._behind = False
        elif event == "call" and self._behind and "wardround" in code.co_filename and "/tests/" not in code.co_filename:
            self.calls[code] += 1
            if code is self._target and self.calls[code] == self._nth:
                raise self._error("SECRET patient 4711")

    @contextmanager
    def on(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def watched(victim: Victim, blob: bytes, watch: Watch) -> bytes:
    with watch.on():
        return answer(victim.hospital, blob)


@pytest.mark.parametrize(("name", "question"), CASES)
def test_whatever_function_raises_a_round_ends_in_one_reply(
    victims: dict[str, Victim], name: str, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = victims[name]
    number = number_of(victim, question)
    blob = request(victim.agreement, number)
    fresh(victim)
    honest = Watch()
    assert peek_reply(watched(victim, blob, honest)).refusal is None
    assert len(honest.calls) > 10, "the walk saw the functions"
    looked_at = 0
    init = PrivateCohort.__init__

    def counting(self: PrivateCohort, examples: Examples, **named: Any) -> None:
        nonlocal looked_at
        looked_at += examples.patients > 0
        init(self, examples, **named)

    monkeypatch.setattr(PrivateCohort, "__init__", counting)
    for place, (code, calls) in enumerate(sorted(honest.calls.items(), key=lambda item: str(item[0]))):
        for nth in (1 if place % 2 else calls,):  # the first call of one function, the last of the next
            fresh(victim)
            looked_at = 0
            reply = watched(victim, blob, Watch(code, nth, ERRORS[(place + nth) % len(ERRORS)]))
            refusal = peek_reply(reply).refusal
            if refusal is not None:
                assert code.co_filename.endswith(STORING), (code, refusal)
                assert "4711" not in str(refusal)
                reply = answer(victim.hospital, blob)
            read(victim.agreement, reply, number)
            assert answer(victim.hospital, blob) == reply
            kinds = [entry.kind for entry in victim.hospital.ledger.entries()]
            assert kinds == ["reserved", "released"], (code, kinds)
            assert victim.hospital.ledger.verify() is None
            assert looked_at <= 1, code


def answered(victim: Victim, blob: bytes, number: int, run: str = "spring") -> Vector:
    return read(victim.agreement, answer(victim.hospital, blob), number, run=run).answer


LOUD = (
    TWO_COLUMNS.replace('"a", "b"', '"a", "b"') + "[privacy]\nepsilon = 300.0\nclip_norm = 5.0\n[rounds]\nrounds = 1\n"
)


@pytest.fixture
def loud(tmp_path: Path) -> Victim:
    """A hospital whose answers are hardly noise: 40 patients who all pull one way, at an absurd epsilon."""
    home = make_home(tmp_path / "home", 40, ill=1.0, federation=f'name = "loud"{LOUD}', policy=ABSURD)
    return Victim.of(home)


ABSURD = "[budget]\nepsilon = 1000.0\n[policy]\nleast_noise_multiplier = 0.001\ngreatest_epsilon = 1000.0\n"


def signal(found: Vector) -> float:
    """Of the bias: everybody is ill, so an answer about them moves it by several times the noise."""
    return float(found[-1] - found[-2])


class Killed(BaseException):
    """As kill -9 would."""


@pytest.mark.parametrize("where", ["_clipped_gradients", "gradient"])
def test_a_round_whose_process_died_is_answered_with_noise_alone(
    loud: Victim, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = request(loud.agreement, 1)
    assert signal(answered(loud, request(loud.agreement, 1, run="before"), 1, "before")) > 0.5, (
        "else nothing would be seen"
    )
    method = getattr(PrivateCohort, where)

    def dies(self: PrivateCohort, *args: Any) -> Any:
        if self._examples.patients:
            raise Killed
        return method(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PrivateCohort, where, dies)
        with pytest.raises(Killed):
            answer(loud.hospital, blob)
    reborn = Victim(Hospital(loud.hospital.home, loud.hospital.config, loud.hospital.ledger), loud.agreement)
    found = [answered(reborn, blob, 1) for _ in range(5)]
    assert abs(signal(found[0])) < 0.4, "the second computation's answer, not noise alone"
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_full_disk_keeps_the_one_reply_until_there_is_room(loud: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    from wardround.errors import StorageError

    blob, seen = request(loud.agreement, 1), []
    release = Ledger.release

    def full(self: Ledger, reservation: Any, reply: bytes, **named: Any) -> bytes:
        seen.append(reply)
        if len(seen) < 4:
            raise StorageError("no space left")
        return release(self, reservation, reply, **named)

    monkeypatch.setattr(Ledger, "release", full)
    refusals = [peek_reply(answer(loud.hospital, blob)).refusal for _ in range(3)]
    assert [refusal and refusal.error for refusal in refusals] == ["StorageError"] * 3
    assert signal(answered(loud, blob, 1)) > 0.5
    assert len(set(seen)) == 1


@pytest.mark.parametrize("number", [np.finfo(np.float32).max, np.inf, -np.inf, np.nan])
def test_what_post_processing_makes_infinite_is_a_public_number(
    loud: Victim, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wardround.algorithms.reptile import Reptile

    def blown_up(self: Reptile, theta: torch.Tensor, cohort: Any, loss: Any) -> torch.Tensor:
        found: torch.Tensor = cohort.gradient(loss, theta) * 0 + number
        return found

    monkeypatch.setattr(Reptile, "inner", blown_up)
    found = answered(loud, request(loud.agreement, 1), 1)
    assert np.isfinite(found).all() and np.isfinite(float(np.linalg.norm(found.astype(np.float64))))
    (released,) = [entry for entry in loud.hospital.ledger.entries() if entry.kind == "released"]
    assert np.isfinite(released.body["norm"])


def test_what_cannot_be_computed_about_nobody_is_refused_before_it_costs_anything(
    loud: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wardround.algorithms.reptile import Reptile

    def raising(*_: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Reptile, "inner", raising)
    refusal = peek_reply(answer(loud.hospital, request(loud.agreement, 1))).refusal
    assert refusal is not None and loud.hospital.ledger.entries() == []


def test_noise_alone_looks_like_an_answer(loud: Victim) -> None:
    one = RoundReply.unpack(answer(loud.hospital, request(loud.agreement, 1)), run="spring", round=1, size=6)
    assert one.header.epsilon > 0 and one.answer.shape == (6,)


def test_a_machine_that_computes_other_bits_the_second_time_is_refused(
    victims: dict[str, Victim], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wardround_client.privacy import per_patient

    victim, plain, calls = victims["deep"], per_patient.plain_gradient, Counter[str]()

    def wavering(*args: Any) -> torch.Tensor:
        calls["so far"] += 1
        return plain(*args).roll(calls["so far"] % 3)

    fresh(victim)
    victim.hospital.rehearsed = set()
    monkeypatch.setattr(per_patient, "plain_gradient", wavering)
    blob = request(victim.agreement, number_of(victim, "gradient"))
    refusal = peek_reply(answer(victim.hospital, blob)).refusal
    assert refusal is not None and refusal.error == "PolicyRefusal"
    assert victim.hospital.ledger.entries() == []
    monkeypatch.undo()
    assert peek_reply(answer(victim.hospital, blob)).refusal is None
