"""The in-process Grid behaves towards a ServerApp as Flower's own does."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from wardround_simulation.grid import LocalGrid


def content(value: float = 0.0) -> RecordDict:
    return RecordDict({"a": ArrayRecord({"v": Array(np.full(3, value, np.float32))})})


def adder(amount: float) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["a"]
        arrays["v"] = Array(arrays["v"].numpy() + np.float32(amount))
        return Message(message.content, reply_to=message)

    return app


def broken(message: Message, context: Context) -> Message:
    raise RuntimeError("PatientID 4711 is on the path")


def value_of(message: Message) -> float:
    return float(message.content.array_records["a"]["v"].numpy()[0])


def replies(grid: LocalGrid, nodes: list[int], value: float = 0.0, timeout: float | None = 30) -> list[Message]:
    sent = [grid.create_message(content(value), "train", node, "1") for node in nodes]
    return list(grid.send_and_receive(sent, timeout=timeout))


def test_each_hospital_runs_its_own_app_and_answers_under_its_own_id() -> None:
    with LocalGrid({"north": adder(1), "south": adder(2)}, workers=2) as grid:
        assert list(grid.get_node_ids()) == [1, 2]
        assert [node.name for node in grid.get_nodes()] == ["north", "south"]
        by_node = {m.metadata.src_node_id: value_of(m) for m in replies(grid, [1, 2], 10)}
    assert by_node == {1: 11, 2: 12}


def test_a_hospital_cannot_change_what_the_coordinator_holds() -> None:
    with LocalGrid({"north": adder(1)}) as grid:
        mine = grid.create_message(content(5), "train", 1, "1")
        list(grid.send_and_receive([mine], timeout=30))
    assert value_of(mine) == 5
    assert mine.metadata.message_id == ""


def test_a_failing_app_becomes_an_error_reply_without_its_text() -> None:
    with LocalGrid({"north": adder(1), "south": broken}) as grid:
        answered = {m.metadata.src_node_id: m for m in replies(grid, [1, 2])}
    assert answered[1].has_content()
    assert answered[2].has_error()
    assert answered[2].metadata.reply_to_message_id
    assert "4711" not in str(answered[2].error.reason)


def test_an_unknown_node_is_an_error_reply() -> None:
    with LocalGrid({"north": adder(1)}) as grid:
        assert replies(grid, [7])[0].has_error()


def test_pull_gives_what_is_ready_and_each_reply_once() -> None:
    go = threading.Event()

    def waits(message: Message, context: Context) -> Message:
        assert go.wait(300)
        return Message(message.content, reply_to=message)

    with LocalGrid({"north": waits}) as grid:
        ids = list(grid.push_messages([grid.create_message(content(), "train", 1, "1")]))
        assert list(grid.pull_messages(ids)) == []
        go.set()
        grid.wait(ids, 30)
        assert len(list(grid.pull_messages(ids))) == 1
        assert list(grid.pull_messages(ids)) == []


def test_a_slow_hospital_does_not_hold_the_round_beyond_its_deadline() -> None:
    go = threading.Event()

    def waits(message: Message, context: Context) -> Message:
        go.wait(300)
        return Message(message.content, reply_to=message)

    with LocalGrid({"fast": adder(1), "slow": waits}, workers=2) as grid:
        # None of these waits for the slow one, who never answers; a busy machine needs the second.
        answered = next(filter(None, (replies(grid, [1, 2], timeout=each) for each in (0.3, 30.0))))
        assert [m.metadata.src_node_id for m in answered] == [1]
        go.set()


def test_hospitals_work_at_the_same_moment() -> None:
    together = threading.Barrier(2, timeout=300)

    def meets(message: Message, context: Context) -> Message:
        together.wait()
        return Message(message.content, reply_to=message)

    with LocalGrid({"north": meets, "south": meets}, workers=2) as grid:
        assert all(m.has_content() for m in replies(grid, [1, 2]))


def test_state_of_a_hospital_lasts_over_rounds() -> None:
    def counts(message: Message, context: Context) -> Message:
        seen = context.state.config_records.setdefault("seen", ConfigRecord({"n": 0.0}))
        rounds = float(str(seen["n"])) + 1
        seen["n"] = rounds
        return Message(content(rounds), reply_to=message)

    with LocalGrid({"north": counts}) as grid:
        values = [value_of(replies(grid, [1])[0]) for _ in range(3)]
    assert values == [1, 2, 3]


def test_torch_gets_one_thread_a_hospital_and_its_own_back_afterwards() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def looks(message: Message, context: Context) -> Message:
        seen.append(torch.get_num_threads())
        return Message(message.content, reply_to=message)

    with LocalGrid({"north": looks}) as grid:
        replies(grid, [1])
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_flower_still_offers_what_the_grid_stands_on() -> None:
    """Fails by name when Flower changes: the abstract methods of Grid, and the identity that Message reads."""
    assert Grid.__abstractmethods__ == {
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive",
    }  # fmt: skip
    with LocalGrid({"north": adder(1)}) as grid:
        message = Message(content(), 1, "train")
        assert message.metadata.run_id == grid.run.run_id
        assert "_message_id" in message.metadata.__dict__


@pytest.mark.parametrize("hospitals", [0, 1])
def test_few_hospitals_are_no_special_case(hospitals: int) -> None:
    with LocalGrid({f"h{i}": adder(1) for i in range(hospitals)}) as grid:
        assert len(replies(grid, list(grid.get_node_ids()))) == hospitals
