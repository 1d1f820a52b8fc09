"""The words of an error stay in the hospital: at whatever stage of a round it is raised, whatever it says."""

from __future__ import annotations

import base64
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.hostile.attack import SECRET, Victim, only_a_refusal
from tests.hostile.fleet import offer
from tests.hostile.nodes import besieged
from tests.rounds import request

import wardround_client.flower.fleet
import wardround_client.round as round_module
import wardround_client.service.daemon
from wardround.errors import (
    BudgetExceeded,
    ConfigError,
    DataError,
    MessageError,
    PolicyRefusal,
    Replay,
    StorageError,
    WardroundError,
)
from wardround.models import Objective
from wardround.wire import RoundRequest
from wardround_client.consent.approvals import Approvals
from wardround_client.flower.app import CANNOT_ANSWER
from wardround_client.hospital import Hospital
from wardround_client.privacy import mechanism
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer


def _encodings(text: str) -> Iterator[bytes]:
    raw = text.encode()
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    yield base64.b64encode(raw).rstrip(b"=")[:-1]
    for shift in (1, 2):  # where the secret begins in the middle of a group of three
        yield base64.b64encode(bytes(shift) + raw)[4:-4]


EXCEPTIONS: dict[str, Callable[[], Exception]] = {
    "RuntimeError": lambda: RuntimeError(SECRET),
    "KeyError": lambda: KeyError(SECRET),
    "OSError": lambda: FileNotFoundError(2, "No such file", f"/data/{SECRET}.dcm"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("ascii", SECRET.encode(), 0, 1, SECRET),
    "MemoryError": lambda: MemoryError(SECRET),
    "RecursionError": lambda: RecursionError(SECRET),
    "WardroundError": lambda: WardroundError(SECRET, allowed=SECRET, do=SECRET),
    "ConfigError": lambda: ConfigError(SECRET, allowed=SECRET),
    "DataError": lambda: DataError(SECRET, allowed=SECRET),
    "StorageError": lambda: StorageError(SECRET, allowed=SECRET),
    "BudgetExceeded": lambda: BudgetExceeded(SECRET, allowed=SECRET),
    "Replay": lambda: Replay(SECRET, allowed=SECRET),
    "a class with a telling name": lambda: type(SECRET.replace("-", "_"), (RuntimeError,), {})(SECRET),
}
# Raised where patients are at hand, these two are silent as well.
NAMED: dict[str, Callable[[], Exception]] = {
    "PolicyRefusal": lambda: PolicyRefusal(SECRET, asked=SECRET, allowed=SECRET),
    "MessageError": lambda: MessageError(SECRET, allowed=SECRET),
}
Place = tuple[object, str]
PUBLIC_STAGES: dict[str, Place] = {
    "reading the header": (round_module, "peek_request"),
    "looking the approval up": (Approvals, "agreement"),
    "the plan": (round_module, "_plan"),
    "unpacking": (RoundRequest, "unpack"),
    "the policy": (round_module, "check_request"),
}
PRIVATE_STAGES: dict[str, Place] = {
    "the stored reply": (Ledger, "stored_reply"),
    "the examples": (Hospital, "examples"),
    "the price": (round_module, "rows_for"),
    "the reservation": (Ledger, "reserve"),
    "the prior": (round_module, "_own_prior"),
    "the question": (round_module, "ask"),
    "the loss": (Objective, "gradients"),
    "the noise": (mechanism, "noised"),
    "what was spent": (Ledger, "price_of_run"),
    "the reply's header": (round_module, "_reply_header"),
    "the release": (Ledger, "release"),
}
CASES = [
    *((stage, kind) for stage in PUBLIC_STAGES for kind in EXCEPTIONS),
    *((stage, kind) for stage in PRIVATE_STAGES for kind in {**EXCEPTIONS, **NAMED}),
]


@pytest.mark.parametrize(("stage", "kind"), CASES)
def test_an_exception_at_any_stage_leaves_nothing_of_its_text(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str, kind: str
) -> None:
    """P48: "error texts and tracebacks"."""
    exception, reached = {**EXCEPTIONS, **NAMED}[kind](), list[str]()
    exception.add_note(SECRET)
    exception.__cause__ = ValueError(SECRET)

    def fail(*_: object, **__: object) -> None:
        reached.append(stage)
        raise exception

    owner, name = {**PUBLIC_STAGES, **PRIVATE_STAGES}[stage]
    with monkeypatch.context() as broken, caplog.at_level(logging.CRITICAL):
        broken.setattr(owner, name, fail)
        reply = answer(victim.hospital, request(victim.agreement, 1))
    assert reached
    refusal = only_a_refusal(reply, victim.hospital)
    for encoded in _encodings(SECRET):
        assert encoded not in reply
    allowed = {error.__name__ for error in _subclasses(WardroundError)} | {"InternalError"}
    assert refusal.error in allowed
    assert (refusal.rule, refusal.asked, refusal.allowed) == ("", "", "")
    assert answer(victim.hospital, request(victim.agreement, 1))  # the hospital lives


def _subclasses(root: type[WardroundError]) -> Iterator[type[WardroundError]]:
    yield root
    for sub in root.__subclasses__():
        yield from _subclasses(sub)


def test_a_cohort_that_cannot_be_opened_tells_neither_path_nor_host(victim: Victim) -> None:
    shutil.rmtree(victim.hospital.home / "cohort")
    refusal = only_a_refusal(answer(victim.hospital, request(victim.agreement, 0)), victim.hospital)
    assert refusal.error in ("DataError", "StorageError")
    assert (refusal.asked, refusal.allowed) == ("", "")


def test_an_exception_beyond_the_round_is_a_fixed_text_on_the_wire(
    attacked_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError(SECRET)

    with besieged(attacked_home, tmp_path) as hospital:
        with monkeypatch.context() as broken:
            broken.setattr(wardround_client.service.daemon, "answer", fail)
            reply = hospital.fleet.ask(offer(request(hospital.agreement, 0), hospital.bundle))
        assert reply.error is not None
        assert reply.error[1] == CANNOT_ANSWER
        everything = b"".join(
            call.path.encode() + repr(call.headers).encode() + call.body for call in hospital.fleet.calls
        )
        for encoded in _encodings(SECRET):
            assert encoded not in everything
        assert str(hospital.daemon.home).encode() not in everything
        again = hospital.fleet.ask(offer(request(hospital.agreement, 0), hospital.bundle))
        assert again.blob is not None


def test_the_refusals_numbers_are_public(victim: Victim) -> None:
    """The true count of patients and images is 40 in the store; the words of a refusal never come from there."""
    hospital = victim.hospital
    refusals = [
        only_a_refusal(answer(hospital, blob), hospital)
        for blob in (
            request(victim.agreement, 77),
            request(victim.agreement, 1, theta=2e6),
            request(victim.agreement, 1, theta=float("nan")),
            request(victim.agreement, 1)[:-1],
        )
    ]
    said = Counter(number for each in refusals for number in re.findall(r"\d+", each.asked + each.allowed))
    assert set(said) <= {"77", "0", "4", "2", "1", "06", "2e", "1e"}, said
