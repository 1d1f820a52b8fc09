"""Messages that are no messages: random bytes, mutated ones, headers that lie. Each gets a refusal and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.hostile.attack import Victim, only_a_refusal, put_together, taken_apart, with_header
from tests.rounds import request

from wardround.errors import MessageError
from wardround.wire import (
    GREATEST_HEADER_BYTES,
    LIMIT_BYTES,
    RoundRequest,
    peek_reply,
    peek_request,
    request_bytes,
)
from wardround_client.round import answer


@pytest.fixture(scope="module")
def sitting_victim(attacked_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """One hospital for many messages; its ledger must stay empty."""
    home = tmp_path_factory.mktemp("sitting") / "home"
    shutil.copytree(attacked_home, home)
    return Victim.of(home)


def refused(victim: Victim, blob: bytes) -> None:
    """It is refused as malformed or unknown, and the ledger holds not one entry."""
    refusal = only_a_refusal(answer(victim.hospital, blob), victim.hospital)
    assert refusal.error in ("MessageError", "PolicyRefusal")
    assert not victim.hospital.ledger.entries()


def readable(blob: bytes, victim: Victim) -> bool:
    """Whether a mutation happened to leave an honest message, such as one with another theta."""
    model = victim.agreement.model
    try:
        RoundRequest.unpack(blob, size=model.layout.size, scaling_size=model.scaling_size)
    except MessageError:
        return False
    return True


@given(blob=st.binary(max_size=400))
@example(blob=b"")
@example(blob=b"\xff" * 8)
@example(blob=b"\0" * 8 + b"{}")
@example(blob=(2).to_bytes(8, "little") + b"{}")
@example(blob=(2**63).to_bytes(8, "little") + b"{}")
def test_random_bytes(sitting_victim: Victim, blob: bytes) -> None:
    refused(sitting_victim, blob)


@settings(max_examples=300)
@given(data=st.data())
def test_a_mutated_message(sitting_victim: Victim, data: st.DataObject) -> None:
    good = bytearray(request(sitting_victim.agreement, 1))
    visible = 260  # bytes at either end, most of them not padding
    for _ in range(data.draw(st.integers(1, 6))):
        end = data.draw(st.booleans())
        place = data.draw(st.integers(0, visible))
        good[-1 - place if end else place] = data.draw(st.integers(0, 255))
    blob = bytes(good)
    if not readable(blob, sitting_victim):
        refused(sitting_victim, blob)


@settings(max_examples=60)
@given(cut=st.floats(0, 1))
def test_a_truncated_message(sitting_victim: Victim, cut: float) -> None:
    good = request(sitting_victim.agreement, 1)
    refused(sitting_victim, good[: min(int(cut * len(good)), len(good) - 1)])


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "BOOL", "C64", "F8_E4M3", "F4", "U64", "X", "", 5, None]),
    shape=st.sampled_from([[6], [3, 2], [], [0], [10**18], [2**64], [-1], [2**32, 2**32], "a", [1.5], None, [[6]]]),
    offsets=st.sampled_from([[0, 24], [0, 0], [24, 0], [0, 2**63], [0, 2**64], [-1, 3], [8, 32], [0], None, "x"]),
    name=st.sampled_from(["theta", "shift", "scale"]),
)
def test_an_array_whose_dtype_shape_or_place_lies(
    sitting_victim: Victim, dtype: object, shape: object, offsets: object, name: str
) -> None:
    outer, data = taken_apart(request(sitting_victim.agreement, 1))
    blob = put_together(outer | {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data)
    if not readable(blob, sitting_victim):
        refused(sitting_victim, blob)


def _doubled(text: str, key: str) -> str:
    return text.replace(f'"{key}":', f'"{key}":1,"{key}":', 1)


def _repeated_array(good: bytes) -> bytes:
    outer, data = taken_apart(good)
    text = json.dumps(outer)
    return put_together(
        text.replace('"theta": ', '"theta": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "theta": '), data
    )


def _repeated_metadata(good: bytes) -> bytes:
    outer, data = taken_apart(good)
    text = json.dumps(outer)
    return put_together(text.replace("{", '{"__metadata__": {"wardround": "{}"}, ', 1), data)


def _inner(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    def changed(good: bytes) -> bytes:
        outer: dict[str, Any]
        outer, data = taken_apart(good)
        return put_together(outer | {"__metadata__": {"wardround": change(outer["__metadata__"]["wardround"])}}, data)

    return changed


def _with_array(good: bytes, name: str) -> bytes:
    arrays = safetensors.numpy.load(good)
    outer: dict[str, Any]
    outer, _ = taken_apart(good)
    return safetensors.numpy.save(arrays | {name: np.zeros(3, np.float32)}, metadata=outer["__metadata__"])


def _as_dtype(good: bytes, dtype: type) -> bytes:
    outer: dict[str, Any]
    outer, _ = taken_apart(good)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: array.astype(dtype) for name, array in safetensors.numpy.load(good).items()
    }
    return safetensors.numpy.save(arrays, metadata=outer["__metadata__"])


CRAFTED: dict[str, Callable[[bytes], bytes]] = {
    "a huge declared header": lambda good: put_together(*taken_apart(good), length=1 << 62),
    "a header of 4 GB": lambda good: put_together(*taken_apart(good), length=1 << 32),
    "a header past the limit": lambda good: put_together(" " * (GREATEST_HEADER_BYTES + 1), b""),
    "a header past the end": lambda good: put_together(*taken_apart(good), length=GREATEST_HEADER_BYTES),
    "JSON a thousand arrays deep": lambda good: put_together("[" * 15_000 + "]" * 15_000, b""),
    "JSON a thousand objects deep": lambda good: put_together('{"a":' * 5000 + "1" + "}" * 5000, b""),
    "a deep header inside": _inner(lambda text: "[" * 4000 + "]" * 4000),
    "a key twice": _inner(lambda text: _doubled(text, "round")),
    "a run twice": _inner(lambda text: text.replace('"run":', '"run":"winter","run":', 1)),
    "an array twice": _repeated_array,
    "the metadata twice": _repeated_metadata,
    "no header inside": _inner(lambda text: ""),
    "a list inside": _inner(lambda text: "[1]"),
    "a number of 5000 digits": _inner(lambda text: text.replace('"round":1', '"round":' + "1" * 5000)),
    "NaN for a number": _inner(lambda text: text.replace('"round":1', '"round":NaN')),
    "a lone surrogate": _inner(lambda text: text.replace('"spring"', '"\\ud800"')),
    "an array too many": lambda good: _with_array(good, "seed"),
    "an array with a name that says more": lambda good: _with_array(good, "\n\x1b[31mPatientID" * 20),
    "float64": lambda good: _as_dtype(good, np.float64),
    "float16": lambda good: _as_dtype(good, np.float16),
    "int32": lambda good: _as_dtype(good, np.int32),
    "bytes after the end": lambda good: good + b"\0",
    "pickle": lambda good: (
        b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85R."
    ),
    "a zip": lambda good: b"PK\x03\x04" + good,
    "an unknown question": lambda good: with_header(good, question="patients"),
    "a reply for a request": lambda good: with_header(good, kind="reply"),
}


@pytest.mark.parametrize("attack", CRAFTED)
def test_a_crafted_message(victim: Victim, attack: str) -> None:
    blob = CRAFTED[attack](request(victim.agreement, 1))
    refusal = victim.refuses(blob, "MessageError")
    assert refusal.asked.isascii()
    assert refusal.asked.isprintable()
    assert len(refusal.asked) <= 256


def test_arrays_of_another_models_size_are_refused_with_both_sizes(victim: Victim) -> None:
    model, header = victim.agreement.model, peek_request(request(victim.agreement, 1))
    for size in (0, 1, model.layout.size - 1, model.layout.size + 1, 1000):
        zeros = np.zeros(model.scaling_size, np.float32)
        blob = RoundRequest(header, np.zeros(size, np.float32), zeros, zeros + 1).pack()
        refusal = victim.refuses(blob, "MessageError")
        assert refusal.asked == f"theta is float32 [{size}]"
        assert refusal.allowed == f"float32 [{model.layout.size}]"


def test_a_message_of_more_than_the_limit_is_refused_unread(victim: Victim) -> None:
    class Endless(bytes):
        """Says that it is long; whoever reads on would run into the end."""

        def __len__(self) -> int:
            return LIMIT_BYTES + 1

    with pytest.raises(MessageError, match="a message of"):
        peek_request(Endless(b"{}"))
    victim.still_answers()


def test_no_honest_request_is_longer_than_is_allowed(victim: Victim) -> None:
    model = victim.agreement.model
    for run in ("a", "a" * 63):
        assert len(request(victim.agreement, 1, run=run)) <= request_bytes(model.layout.size, model.scaling_size)


@settings(max_examples=100)
@given(asked=st.text(max_size=300), allowed=st.text(max_size=300))
def test_every_refusal_has_one_length_whatever_it_says(sitting_victim: Victim, asked: str, allowed: str) -> None:
    """P47: "per-round timing and message size"."""
    from wardround.errors import PolicyRefusal
    from wardround_client.refusal import refused

    error = PolicyRefusal("policy.labels", asked=asked, allowed=allowed)
    reply = refused(sitting_victim.hospital.config.hospital, None, error, named=True)
    only_a_refusal(reply, sitting_victim.hospital)
    refusal = peek_reply(reply).refusal
    assert refusal is not None
    assert len(refusal.asked) == min(len(asked), 256)
