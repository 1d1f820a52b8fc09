"""Whatever the parts of a reply are, putting them together gives the blob or an error of its hospital, no more."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.fleet import offer

from wardround.errors import MessageError, WardroundError
from wardround_flower.parts import CHUNK_BYTES, ENVELOPE_BYTES, most_parts
from wardround_server.flower.mail import put_together

LIMIT = 20_000
BLOB = bytes(random.Random(0).randbytes(10_000))


def honest(content: RecordDict | bytes = BLOB) -> tuple[str, dict[str, bytes]]:
    made = offer(content, "")
    return made.head.metadata.message_id, made.parts


def of(name: str, body: bytes, *children: str) -> tuple[str, bytes]:
    made = f"{name} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(made).hexdigest(), made


def test_an_honest_reply_is_its_blob() -> None:
    root, parts = honest()
    assert put_together(root, parts, LIMIT) == BLOB


def test_the_longest_blob_fits_the_bounds() -> None:
    root, parts = honest(bytes(random.Random(1).randbytes(2 * CHUNK_BYTES + 17)))
    assert len(parts) <= most_parts(2 * CHUNK_BYTES)
    assert max(map(len, parts.values())) <= CHUNK_BYTES + 100
    assert isinstance(put_together(root, parts, 3 * CHUNK_BYTES), bytes)


@pytest.mark.parametrize("times", [3, 3_000, 1_000_000])
def test_a_chunk_that_is_listed_again_and_again_is_not_unfolded(times: int) -> None:
    number, chunk = of("ArrayChunk", bytes(9_000))
    body = json.dumps({"dtype": "uint8", "shape": [1], "stype": "x", "arraychunk_ids": [0] * times}).encode()
    array, content = of("Array", body, number)
    tracemalloc.start()
    outcome = put_together(array, {number: chunk, array: content}, LIMIT)
    assert isinstance(outcome, MessageError)
    assert tracemalloc.get_traced_memory()[1] < 40 * len(body) + 1_000_000
    tracemalloc.stop()


def test_json_that_is_much_larger_in_memory_is_not_read() -> None:
    config = ConfigRecord({f"k{number}": [0.0] * 1000 for number in range(40)})
    root, parts = honest(RecordDict({"wardround": config}))
    outcome = put_together(root, parts, LIMIT)
    assert isinstance(outcome, MessageError)
    assert "beside its numbers" in str(outcome)
    assert sum(map(len, parts.values())) > ENVELOPE_BYTES


CONTENTS: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "a config": RecordDict({"wardround": ConfigRecord({"blob": "x"})}),
    "two records": RecordDict({"wardround": ArrayRecord({"blob": Array("uint8", (1,), "wardround.blob", b"x")}),
                               "more": ConfigRecord()}),
    "another dtype": RecordDict({"wardround": ArrayRecord({"blob": Array("object", (1,), "wardround.blob", b"x")})}),
    "another length": RecordDict({"wardround": ArrayRecord({"blob": Array("uint8", (9,), "wardround.blob", b"x")})}),
    "another name": RecordDict({"wardround": ArrayRecord({"b\x1b[2Jlob": Array("uint8", (1,), "numpy", b"x")})}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_content_of_another_kind_is_an_error_or_its_blob(name: str) -> None:
    outcome = put_together(*honest(CONTENTS[name]), LIMIT)
    assert isinstance(outcome, MessageError | bytes)
    if name != "two records":
        assert isinstance(outcome, MessageError)
        assert str(outcome).isprintable()


def _flip(body: bytes, draws: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draws.randint(1, 4)):
        changed[draws.randrange(len(changed))] = draws.randrange(256)
    return bytes(changed)


CHANGES: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    lambda body, draws: body[: draws.randrange(len(body))],
    lambda body, draws: body + draws.randbytes(draws.randint(1, 99)),
    lambda body, draws: body.partition(b"\0")[0] + b"\0" + b"[" * 50_000,
    lambda body, draws: body.replace(b" ", b"," * draws.randint(0, 3)),
    lambda body, draws: draws.choice([b"Array", b"Message", b"ConfigRecord", b"MetricRecord", b"x", b""]) + body,
    lambda body, draws: body.replace(b"0", str(draws.choice([-1, 10**30, 7])).encode()),
    lambda body, draws: body.replace(b"[", b"{").replace(b"]", b"}"),
]


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 4), change=st.integers(0, len(CHANGES) - 1))
def test_broken_parts_are_an_error_and_nothing_else(seed: int, which: int, change: int) -> None:
    draws = random.Random(seed)
    root, parts = honest()
    number = list(parts)[which]
    parts[number] = CHANGES[change](parts[number], draws)
    outcome = put_together(root, parts, LIMIT)
    assert isinstance(outcome, bytes | WardroundError)
    assert isinstance(outcome, bytes) or str(outcome).isprintable()


@settings(max_examples=200, deadline=None)
@given(parts=st.dictionaries(st.text(max_size=3), st.binary(max_size=60), max_size=4), root=st.text(max_size=3))
def test_bytes_that_are_no_parts_are_an_error(parts: dict[str, bytes], root: str) -> None:
    assert isinstance(put_together(root, parts, LIMIT), MessageError)


def test_a_message_is_a_chain_of_five_as_the_door_expects() -> None:
    """The door knows this shape: when Flower changes it, this fails before a hospital is refused."""
    from wardround_server.flower.door import Refused, _parts

    made = offer(BLOB, "")
    assert len(_parts(made.tree)) == len(made.parts) == 5
    large = offer(bytes(random.Random(2).randbytes(3 * CHUNK_BYTES)), "")
    assert len(_parts(large.tree)) == len(large.parts) == 7
    twice = offer(BLOB, "").tree
    twice.children[0].children[0].children[0].children.add(object_id=twice.object_id)
    with pytest.raises(Refused):
        _parts(twice)
    wide = offer(BLOB, "").tree
    wide.children.add(object_id="0" * 64)
    with pytest.raises(Refused):
        _parts(wide)
    deep = offer(BLOB, "").tree
    deep.children[0].children[0].children[0].children[0].children.add(object_id="0" * 64)
    with pytest.raises(Refused):
        _parts(deep)
