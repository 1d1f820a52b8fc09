"""Registered hospitals that lie about how a reply is sent: each costs itself the round, and nobody else anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.message_pb2 import ObjectTree
from tests.hostile.coordinators import (
    DEADLINE_S,
    Liar,
    Lie,
    Siege,
    agreement,
    besieged,
    changed,
    honest,
    online,
    parts_of,
    start_run,
    whole,
)

from wardround.errors import ConfigError
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.errors import KeyRefused
from wardround_client.flower.fleet import Forgotten, Session, Work, connect

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux' /proc")
SLACK_S = 60.0


def never_sent(liar: Liar, work: Work, blob: bytes) -> None:
    liar.announce(parts_of(work, blob))


def half_sent(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, parts_of(work, blob), but=["Message", "ArrayRecord"])


def chunk_missing(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, parts_of(work, blob), but=["ArrayChunk"])


def silent(liar: Liar, work: Work, blob: bytes) -> None:
    pass


def wrong_hashes(liar: Liar, work: Work, blob: bytes) -> None:
    parts = parts_of(work, blob)
    token = liar.announce(parts).session_id
    for number, content in parts.contents.items():
        liar.upload(work.head.metadata.run_id, token, number, content + b"x")


def no_json(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, changed(parts_of(work, blob), "RecordDict", lambda body: b"\xff no json"))


def nested_json(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, changed(parts_of(work, blob), "Array", lambda body: b"[" * 100_000 + b"]" * 100_000))


def json_of_another_kind(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(
        work, changed(parts_of(work, blob), "Array", lambda body: b'{"arraychunk_ids": {"0": "x"}, "shape": null}')
    )


def a_child_that_is_not_there(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, changed(parts_of(work, blob), "ArrayRecord", lambda body: body, children=["ab" * 32]))


def its_own_grandfather(liar: Liar, work: Work, blob: bytes) -> None:
    parts = parts_of(work, blob)
    liar.send(work, changed(parts, "RecordDict", lambda body: body, children=[parts.root]))


def a_record_as_the_message(liar: Liar, work: Work, blob: bytes) -> None:
    parts = parts_of(work, blob)
    tree = parts.tree.children[0]
    parts.contents.pop(parts.root)
    parts.root, parts.tree = tree.object_id, tree
    liar.send(work, parts)


def unfolds(liar: Liar, work: Work, blob: bytes) -> None:
    def many(body: bytes) -> bytes:
        array = json.loads(body)
        return json.dumps(array | {"arraychunk_ids": array["arraychunk_ids"] * 3000}).encode()

    liar.send(work, changed(parts_of(work, blob), "Array", many))


def a_shape_of_its_own(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, changed(parts_of(work, blob), "Array", lambda body: body.replace(b"uint8", b"object")))


def too_large(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, parts_of(work, bytes(40_000_000)))


def a_little_too_large(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, parts_of(work, blob + bytes(200_000)))


def empty(liar: Liar, work: Work, blob: bytes) -> None:
    liar.send(work, parts_of(work, b""))


def a_wide_tree(liar: Liar, work: Work, blob: bytes) -> None:
    parts = parts_of(work, blob)
    tree = ObjectTree()
    tree.CopyFrom(parts.tree)
    for number in range(800):
        tree.children.add(object_id=f"{number:064x}")
    liar.announce(parts, tree)


def a_tree_that_multiplies(liar: Liar, work: Work, blob: bytes) -> None:
    """300 children, each with 300, each with 300, in a tree of 900: 27 million where Flower unfolds it."""
    parts = parts_of(work, blob)
    a, b, c = (f"{number:064x}" for number in (1, 2, 3))
    middle = ObjectTree(object_id=b, children=[ObjectTree(object_id=c)] * 300)
    top = ObjectTree(object_id=a, children=[middle, *[ObjectTree(object_id=b)] * 299])
    liar.announce(parts, ObjectTree(object_id=parts.root, children=[top, *[ObjectTree(object_id=a)] * 299]))


def in_anothers_name(liar: Liar, work: Work, blob: bytes) -> None:
    parts = parts_of(work, blob)
    parts.message.metadata.__dict__["_src_node_id"] = liar.session.number + 1
    liar.send(work, parts)


def escapes(liar: Liar, work: Work, blob: bytes) -> None:
    from flwr.app import Error, Message

    liar.session.push(
        Message(Error(3, "\x1b[2J\x1b]0;owned\x07\n2026-01-01 INFO forged line\u202e"), reply_to=work.head)
    )


REFUSED: list[Lie] = [a_wide_tree, a_tree_that_multiplies, in_anothers_name]
AT_ONCE: list[Lie] = [
    no_json, nested_json, json_of_another_kind, a_child_that_is_not_there, its_own_grandfather, unfolds,
    a_shape_of_its_own, a_little_too_large, empty, escapes,
]  # fmt: skip
UNTIL_THE_DEADLINE: list[Lie] = [never_sent, half_sent, wrong_hashes, too_large, a_record_as_the_message]
HONEST = ("whole", "refused_and_then_whole", "the_one_before", "impatient", "gone_for_a_second")
LIES = [*AT_ONCE, *UNTIL_THE_DEADLINE, *REFUSED, chunk_missing, silent]  # for the soak


def refused_and_then_whole(liar: Liar, work: Work, blob: bytes) -> None:
    """What the door refuses costs nothing: the hospital may still send its reply."""
    for lie in REFUSED:
        with pytest.raises(httpx.HTTPStatusError) as raised:
            lie(liar, work, blob)
        assert raised.value.response.status_code in (400, 413), lie
    whole(liar, work, blob)


def impatient(liar: Liar, work: Work, blob: bytes) -> None:
    """No liar: each call is made again while the first goes on, and once more, as by who heard no answer in time."""
    parts, run_id = parts_of(work, blob), work.head.metadata.run_id
    with ThreadPoolExecutor(4) as calls:
        first, *others = [*calls.map(lambda _: liar.announce(parts), range(4)), liar.announce(parts)]
        assert all(each == first for each in others)
        for number, content in parts.contents.items():
            upload = partial(liar.upload, run_id, first.session_id, number, content)
            assert all([*calls.map(lambda _: upload(), range(4)), upload()])  # noqa: B023
            assert liar.announce(parts) == first


def gone_for_a_second(liar: Liar, work: Work, blob: bytes) -> None:
    """No liar: stopped as soon as its reply is out, and started again. Flower keeps a reply from a run that had not
    heard of it before its node went.
    """
    whole(liar, work, blob)
    liar.session.end()
    liar.stop.wait(1.0)
    liar.session = liar.begin(number=liar.session.number)


# Said at once; about the others nothing is known but that they did not come.
NAMED = {
    "never_sent": "announced a reply of",
    "half_sent": "announced a reply of",
    "wrong_hashes": "announced a reply of",
    "no_json": "cannot be put together",
    "nested_json": "cannot be put together",
    "json_of_another_kind": "cannot be put together",
    "a_child_that_is_not_there": "cannot be put together",
    "its_own_grandfather": "cannot be put together",
    "a_record_as_the_message": "not a message|a RecordDict|cannot be put together",
    "unfolds": "unfolds to",
    "a_shape_of_its_own": "not a message of wardround",
    "too_large": "announced a reply of",
    "a_little_too_large": "not a Reply|not a RoundReply",
    "empty": "not a Reply|not a RoundReply",
    "escapes": r"disconnected before it answered \(Flower's error 3: \\x1b\[2J",
}


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with besieged(tmp_path_factory.mktemp("liars") / "coordinator") as siege:
        siege.register("anna", "bert")
        yield siege


@dataclass
class Attacked:
    """A run in which eight hospitals of twelve lie, and the coordinator's memory before it and at its most."""

    events: list[dict[str, Any]]
    told: dict[str, list[str]]
    before_mib: float
    peak_mib: float


@pytest.fixture(scope="module")
def attacked(siege: Siege, tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """One run for all lies: in its first round those that are waited for, once for all of them."""
    from wardround_server.commands.remove import remove

    held: list[tuple[Work, bytes]] = []

    def late(liar: Liar, work: Work, blob: bytes) -> None:
        held.append((work, blob))

    def the_one_before(liar: Liar, work: Work, blob: bytes) -> None:
        whole(liar, *held.pop())
        whole(liar, work, blob)

    def removed_meanwhile(liar: Liar, work: Work, blob: bytes) -> None:
        parts = parts_of(work, blob)
        token = liar.announce(parts).session_id
        *first, last = parts.contents.items()
        for number, content in first:
            liar.upload(work.head.metadata.run_id, token, number, content)
        remove(siege.home, "carl")
        liar.upload(work.head.metadata.run_id, token, *last)

    lies: dict[str, list[Lie]] = {
        f"liar-{n}": [waited, *AT_ONCE[n :: len(UNTIL_THE_DEADLINE)], refused_and_then_whole]
        for n, waited in enumerate(UNTIL_THE_DEADLINE)
    }
    lies |= {
        "late": [late, the_one_before],
        "carl": [removed_meanwhile],
        "hasty": [impatient] * 4,
        "fleeting": [gone_for_a_second] * 4,
    }
    siege.register(*lies)
    federation = agreement(tmp_path_factory.mktemp("attacked"), rounds=3)
    with ExitStack() as stack:
        stack.enter_context(honest(siege, federation, "anna", "bert"))
        liars = {name: stack.enter_context(Liar(siege, name, federation, told)) for name, told in lies.items()}
        online(siege, "anna", "bert", *lies)
        siege.forget_peak()
        before = siege.memory_mib()
        run = start_run(siege, federation)
        run.finish()
    return Attacked(run.rounds(), {name: liar.told for name, liar in liars.items()}, before, siege.peak_mib())


def test_each_lie_costs_its_hospital_the_round_and_nobody_else_anything(siege: Siege, attacked: Attacked) -> None:
    assert len(attacked.events) == 4
    told = {name for names in attacked.told.values() for name in names}
    assert attacked.told["hasty"] == ["impatient"] * 4
    assert attacked.told["fleeting"] == ["gone_for_a_second"] * 4
    assert told >= {lie.__name__ for lie in [*AT_ONCE, *UNTIL_THE_DEADLINE, refused_and_then_whole]}
    for number, event in enumerate(attacked.events):
        lies = {name: told[number] for name, told in attacked.told.items() if name != "carl"}
        honestly = {name for name, lie in lies.items() if lie in HONEST}
        assert set(event["declared_patients"]) == {"anna", "bert"} | honestly, (lies, event)
        assert event["seconds"] < DEADLINE_S + SLACK_S, event
        for name in lies.keys() - honestly:
            reason = event["rejected"][name]
            assert re.search(NAMED.get(lies[name], "no reply within"), reason), (lies[name], reason)
            assert reason.isprintable()
    assert attacked.peak_mib < attacked.before_mib + 100, (attacked.before_mib, attacked.peak_mib)
    log = (siege.home / "coordinator.log").read_text() + (siege.home / "superexec.log").read_text()
    assert "\x1b[2J" not in log
    assert "\x1b]0" not in log
    assert not any(line.startswith("2026-01-01 INFO forged") for line in log.splitlines())


def test_a_late_reply_is_dropped_and_the_next_round_is_its_own(attacked: Attacked) -> None:
    """It comes after its round was closed, while the next one goes on."""
    assert attacked.told["late"][:2] == ["late", "the_one_before"]
    first, *others = attacked.events
    assert "no reply within" in first["rejected"]["late"]
    assert all("late" in event["declared_patients"] and "late" not in event["rejected"] for event in others)


def test_a_hospital_that_is_removed_in_a_run_is_neither_asked_nor_believed(attacked: Attacked) -> None:
    assert attacked.told["carl"] == ["removed_meanwhile"]
    assert not any("carl" in event["declared_patients"] for event in attacked.events)
    assert [event["hospitals"] for event in attacked.events[1:]] == [10, 10, 10]


def test_a_hospital_set_up_anew_gets_a_new_key_and_the_old_one_is_dead_at_once(siege: Siege) -> None:
    from wardround_server.commands.remove import remove

    def begun(key: ec.EllipticCurvePrivateKey) -> Iterator[Session]:
        with connect(siege.coordinator, key, lambda: 1 << 30, Clock()) as client:
            yield Session.begin(client, key, siege.coordinator.address, None, Clock())

    siege.register("dora")
    old = siege.keys["dora"]
    for session in begun(old):
        assert session.poll() is None
        with pytest.raises(ConfigError, match=r"registered with another key.*coordinator remove"):
            siege.register("dora")
        remove(siege.home, "dora")
        with pytest.raises(Forgotten):
            session.poll()
        siege.register("dora")
        with pytest.raises(Forgotten):
            session.poll()
    with pytest.raises(KeyRefused):
        next(begun(old))
    for session in begun(siege.keys["dora"]):
        assert session.poll() is None
        online(siege, "dora")
    remove(siege.home, "dora")
