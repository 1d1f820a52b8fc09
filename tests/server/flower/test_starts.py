"""A run's process is started a few times and no more, and never do two of them work on a run."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.common.constant import Status, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.corestate import sql_corestate
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from tests.server.conftest import FakeHospital, FakeTransport, a_federation

from wardround.errors import FederationError
from wardround.files import Held
from wardround.models import build_model
from wardround_server import checkpoint
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.flower import superexec
from wardround_server.flower.app import _of_flower
from wardround_server.flower.reasons import NO_HEARTBEAT, TAKEN_FOR_DEAD, ended
from wardround_server.flower.starts import ACQUIRE, MOST_STARTS, Starts
from wardround_server.flower.superexec import FIRST_WAIT_S, LONGEST_WAIT_S, SuperExec
from wardround_server.rounds import run


@given(st.lists(st.sampled_from([b"", b"\xff", b"1", b"2"]), max_size=60))
def test_a_task_is_given_out_a_few_times_and_then_failed_with_a_sentence(given_out: list[bytes]) -> None:
    answers = iter(given_out)
    bodies, failed = list[bytes](), list[tuple[int, str]]()

    async def flower(scope: Scope, receive: Receive, send: Send) -> None:
        answer = next(answers)
        if answer in b"12" and answer:
            answer = AcquireTaskResponse(task=Task(task_id=int(answer)), token="t").SerializeToString()
        length = str(len(answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": answer})

    async def play() -> None:
        layer = Starts(flower, lambda task, why: failed.append((task, why)))
        for _ in given_out:
            parts = list[Message]()

            async def send(part: Message) -> None:
                parts.append(part)  # noqa: B023

            await layer({"type": "http", "path": ACQUIRE}, _receive, send)
            bodies.append(parts[1]["body"])
            assert parts[0]["headers"] == [(b"content-length", str(len(bodies[-1])).encode())]

    asyncio.run(play())
    for task in (1, 2):
        asked = [position for position, answer in enumerate(given_out) if answer == str(task).encode()]
        started = [position for position in asked if bodies[position]]
        assert started == asked[:MOST_STARTS]
        assert [each for each, _ in failed].count(task) == max(0, len(asked) - MOST_STARTS)
    assert all("too busy" in why for _, why in failed)
    assert [bodies[position] for position, answer in enumerate(given_out) if answer == b"\xff"] == [
        b"\xff" for answer in given_out if answer == b"\xff"
    ]


async def _receive() -> Message:
    raise AssertionError("nothing is read")


class Superlink:
    """Flower's own book of runs, and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime.now(UTC)
        monkeypatch.setattr(sql_corestate, "now", lambda: self.now)
        objects = ObjectStoreFactory(":flwr-in-memory:")
        self.state: Any = LinkStateFactory(":memory:", NoOpFederationManager(), objects).state()
        self.run = self.state.create_run(
            *(None, None, "0" * 64, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        )
        (self.task,) = (task.task_id for task in self.state.get_tasks(run_ids=[self.run]))

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def status(self) -> Any:
        return self.state.get_run_info(run_ids=[self.run])[0].status


def test_contract_with_flower_a_late_start_is_refused_and_one_that_began_is_never_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flower = Superlink(monkeypatch)
    late = flower.state.claim_task(flower.task)
    assert flower.state.claim_task(flower.task) is None
    flower.wait(31)
    assert not flower.state.acknowledge_task_heartbeat(flower.task)
    second = flower.state.claim_task(flower.task)
    assert second not in (None, late)
    assert flower.state.get_task_by_token(late) is None
    assert flower.state.activate_task(flower.task)
    assert not flower.state.activate_task(flower.task)
    for _ in range(10):
        flower.wait(59)
        assert flower.state.acknowledge_task_heartbeat(flower.task)
    flower.wait(61)  # as long as it was stopped
    assert flower.state.get_task_by_token(second) is None
    assert not flower.state.acknowledge_task_heartbeat(flower.task)
    assert flower.state.claim_task(flower.task) is None
    status = flower.status()
    assert (status.status, status.sub_status) == (Status.FINISHED, SubStatus.FAILED)
    assert ended(status.details) == TAKEN_FOR_DEAD, f"flwr changed: {NO_HEARTBEAT!r} is now {status.details!r}"


def test_contract_with_flower_a_run_that_is_given_up_has_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    flower = Superlink(monkeypatch)
    assert flower.state.claim_task(flower.task)
    flower.state.finish_task(flower.task, SubStatus.FAILED, "too busy")
    assert flower.state.claim_task(flower.task) is None
    assert flower.status().details == "too busy"


def test_a_process_whose_token_is_void_says_why() -> None:
    response = httpx.Response(401, request=httpx.Request("POST", "https://127.0.0.1/v1/runtime/push-messages"))
    error = _of_flower(httpx.HTTPStatusError("401", request=response.request, response=response), Path())
    assert isinstance(error, FederationError)
    assert "too busy" in str(error)
    assert "--resume" in str(error)


def test_a_process_that_was_stopped_keeps_its_run_and_who_resumes_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE_S", 0.0)
    federation = a_federation(rounds=3)
    model, folder = build_model(federation), tmp_path / "spring"
    hospitals = [FakeHospital(name, federation) for name in ("anna", "bert")]

    def process(*, resume: bool) -> Any:
        transport = FakeTransport(*hospitals)
        return run(federation, model, transport, Checkpointer(folder), run_name="spring", resume=resume)

    counted, stopped = list[RoundEnded](), process(resume=False)
    for event in stopped:
        if isinstance(event, RoundEnded):
            counted.append(event)
            asked = [list(each.seen) for each in hospitals]
            with pytest.raises(Held, match="going on already"):  # this one is between two rounds, and not dead
                next(process(resume=True))
            assert [each.seen for each in hospitals] == asked
        if len(counted) == 2:
            break
    stopped.close()  # it ends at its next call
    counted += [event for event in process(resume=True) if isinstance(event, RoundEnded)]
    assert [event.round for event in counted] == list(range(len(counted)))
    assert all(len(each.seen) == len(counted) for each in hospitals)


def test_a_process_that_ends_before_its_checkpoint_asks_again_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = a_federation(rounds=2)
    model, folder = build_model(federation), tmp_path / "spring"
    hospitals = [FakeHospital(name, federation) for name in ("anna", "bert")]
    save, fail = Checkpointer.save, [False]

    def dying(self: Checkpointer, state: Any) -> None:
        if fail[0] and state.round == 2:
            fail[0] = False
            raise KeyboardInterrupt
        save(self, state)

    def process(*, resume: bool) -> list[RoundEnded]:
        events = run(
            *(federation, model, FakeTransport(*hospitals), Checkpointer(folder)), run_name="spring", resume=resume
        )
        return [event for event in events if isinstance(event, RoundEnded)]

    monkeypatch.setattr(Checkpointer, "save", dying)
    fail[0] = True
    with pytest.raises(KeyboardInterrupt):
        process(resume=False)
    assert [event.round for event in process(resume=True)] == [1, 2]
    for hospital in hospitals:
        assert len(hospital.seen) == 4
        assert hospital.seen[1] == hospital.seen[2]


def test_superexec_that_ends_at_once_is_started_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, starts = [1000.0], list[float]()

    def popen(*_: object, **__: object) -> object:
        starts.append(now[0])
        return SimpleNamespace(poll=lambda: 1, returncode=1)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(superexec, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tls: Any = SimpleNamespace(ca=tmp_path / "ca.crt")
    with (tmp_path / "log").open("wb") as log:
        process = SuperExec(tls, 1, log)
        process.start()
        for _ in range(18_000):  # an hour
            process.keep_alive()
            now[0] += 0.2
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits[0] <= FIRST_WAIT_S
    assert len(starts) < 80
    assert LONGEST_WAIT_S <= waits[-1] < LONGEST_WAIT_S + 1
