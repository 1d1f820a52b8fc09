"""What crosses the wire survives unchanged, or is refused with a MessageError and nothing else."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wardround.errors import MessageError
from wardround.wire import Refusal, ReplyHeader, RequestHeader, RoundReply, RoundRequest, Vector, peek_request

DIGEST = "0" * 64
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(0, 20), elements=numbers)
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
texts = st.text(max_size=64)


def reply_header(**changes: object) -> ReplyHeader:
    fields = {"run": "spring", "round": 3, "hospital": "st-anna", "declared_patients": 500, "epsilon": 1.5}
    return ReplyHeader.model_validate(fields | changes)


def a_request(theta: int = 5, scaling: int = 2) -> bytes:
    header = RequestHeader(run="spring", federation=DIGEST, round=3)
    return RoundRequest(
        header, np.arange(theta, dtype=np.float32), np.zeros(scaling, np.float32), np.ones(scaling, np.float32)
    ).pack()


def a_reply(answer: Vector | None = None, **changes: object) -> bytes:
    return RoundReply(reply_header(**changes), np.arange(4, dtype=np.float32) if answer is None else answer).pack()


@given(run=names, number=st.integers(0, 1_000_000), theta=vectors, shift=vectors)
def test_a_request_comes_out_as_it_went_in(run: str, number: int, theta: Vector, shift: Vector) -> None:
    header = RequestHeader(run=run, federation=DIGEST, round=number)
    scale = np.abs(shift) + 1
    blob = RoundRequest(header, theta, shift, scale).pack()
    found = RoundRequest.unpack(blob, size=len(theta), scaling_size=len(shift))
    assert found.header == header == peek_request(blob)
    np.testing.assert_array_equal(found.theta, theta)
    np.testing.assert_array_equal(found.shift, shift)
    np.testing.assert_array_equal(found.scale, scale)
    assert found.pack() == blob


@given(hospital=names, answer=vectors, epsilon=st.floats(0, 1e6))
def test_a_reply_comes_out_as_it_went_in(hospital: str, answer: Vector, epsilon: float) -> None:
    blob = a_reply(answer, hospital=hospital, epsilon=epsilon)
    found = RoundReply.unpack(blob, run="spring", round=3, size=len(answer))
    assert found.header == reply_header(hospital=hospital, epsilon=epsilon)
    np.testing.assert_array_equal(found.answer, answer)


@given(error=texts, rule=texts, asked=texts, allowed=texts)
def test_a_refusal_comes_out_as_it_went_in(error: str, rule: str, asked: str, allowed: str) -> None:
    refusal = Refusal(error=error, rule=rule, asked=asked, allowed=allowed)
    blob = a_reply(np.zeros(0, np.float32), refusal=refusal.model_dump())
    found = RoundReply.unpack(blob, run="spring", round=3, size=4).header.refusal
    assert found is not None
    assert found.asked == asked.encode("ascii", "replace").decode()
    assert found.allowed == allowed.encode("ascii", "replace").decode()


@given(hospital=names, patients=st.integers(1, 10**9), epsilon=st.floats(0, 1e6), seed=st.integers(0, 99))
def test_the_length_of_a_reply_tells_nothing(hospital: str, patients: int, epsilon: float, seed: int) -> None:
    answer = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    blob = a_reply(answer, hospital=hospital, declared_patients=patients, epsilon=epsilon)
    assert len(blob) == len(a_reply())


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_a_message_error(blob: bytes) -> None:
    with pytest.raises(MessageError):
        RoundRequest.unpack(blob, size=5, scaling_size=2)
    with pytest.raises(MessageError):
        RoundReply.unpack(blob, run="spring", round=3, size=4)
    with pytest.raises(MessageError):
        peek_request(blob)


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_message_is_whole_or_a_message_error(data: st.DataObject) -> None:
    for blob in (a_request(), a_reply()):
        damaged = bytearray(blob)
        for _ in range(data.draw(st.integers(1, 4))):
            # Most of a message is padding: aim at its length, the two ends of its header and its numbers.
            spot = data.draw(st.sampled_from([range(300), range(len(blob) - 400, len(blob)), range(len(blob))]))
            damaged[data.draw(st.sampled_from(spot))] = data.draw(st.integers(0, 255))
        cut = bytes(damaged)[: data.draw(st.integers(0, len(blob)))]
        for candidate in (bytes(damaged), cut, bytes(damaged) + b"x"):
            with contextlib.suppress(MessageError):
                RoundRequest.unpack(candidate, size=5, scaling_size=2)
            with contextlib.suppress(MessageError):
                RoundReply.unpack(candidate, run="spring", round=3, size=4)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (a_reply(np.array([1, 2, np.nan, 4], np.float32)), "NaN"),
        (a_reply(np.array([1, 2, np.inf, 4], np.float32)), "infinity"),
        (a_reply(np.zeros(5, np.float32)), r"\[5\]"),
        (a_reply(round=2), "round 2"),
        (a_reply(run="autumn"), "autumn"),
        (a_reply(refusal={"error": "PolicyRefusal"}), "float32"),
        (a_request(), "not a ReplyHeader"),
        (safetensors.numpy.save({"answer": np.zeros(4, np.float32)}), "not a ReplyHeader"),
        (
            safetensors.numpy.save(
                {"answer": np.zeros(4, np.float64)}, metadata={"wardround": reply_header().model_dump_json()}
            ),
            "float64",
        ),
        (
            safetensors.numpy.save(
                {"other": np.zeros(4, np.float32)}, metadata={"wardround": reply_header().model_dump_json()}
            ),
            "other",
        ),
    ],
    ids=["nan", "inf", "shape", "round", "run", "refusal with numbers", "request", "bare", "float64", "array name"],
)
def test_a_wrong_reply_is_refused_with_its_reason(blob: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        RoundReply.unpack(blob, run="spring", round=3, size=4)


@pytest.mark.parametrize("number", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_not_positive_is_refused(number: float) -> None:
    header = RequestHeader(run="spring", federation=DIGEST, round=0)
    blob = RoundRequest(
        header, np.zeros(3, np.float32), np.zeros(2, np.float32), np.array([1, number], np.float32)
    ).pack()
    with pytest.raises(MessageError, match="scale"):
        RoundRequest.unpack(blob, size=3, scaling_size=2)


def test_the_longest_refusal_fits() -> None:
    for letter in ("\x01", '"', "\\", "\U0001f600"):
        refusal = {"error": letter * 64, "rule": letter * 128, "asked": letter * 256, "allowed": letter * 256}
        RoundReply.unpack(a_reply(np.zeros(0, np.float32), refusal=refusal), run="spring", round=3, size=4)
