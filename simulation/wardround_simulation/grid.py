"""A Flower Grid inside this process: every hospital's ClientApp on a thread pool, no ports, no Ray, no database.

It behaves as a SuperLink does towards the ServerApp (messages get an id, a failing app becomes an error reply), so the
same round loop runs here and deployed. A message is copied on the way in, so that hospitals that are asked the same
cannot change what the others, or the coordinator, hold; a reply is handed over once, to the one who asked.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]
RUN_ID = 1
LONG_POLL_S = 0.25


class LocalGrid(Grid):
    """Runs one app a hospital in this process.

    Args:
        apps: hospital's name -> its ClientApp (or anything that is called as one). Node ids count from 1 in this order.
        workers: hospitals that work at the same moment; default: one a core. Torch gets one thread in each.
    """

    def __init__(self, apps: Mapping[str, App], *, workers: int | None = None) -> None:
        self.names = dict(enumerate(apps, start=1))
        self._apps = dict(enumerate(apps.values(), start=1))
        self._contexts = {node: self._context(node) for node in self._apps}
        self._run = Run.create_empty(RUN_ID)
        self._ids = itertools.count(1)
        self._pending: dict[str, Future[Message]] = {}
        # A Message takes run and sender from this process-wide identity; a ServerApp process gets it from Flower.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = RUN_ID, RUN_ID, RUN_ID
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(
            max(1, min(workers or os.cpu_count() or 1, len(self._apps) or 1)),
            thread_name_prefix="hospital",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def _context(self, node: int) -> Context:
        config: dict[str, str | int | float | bool] = {"partition-id": node - 1, "num-partitions": len(self._apps)}
        return Context(run_id=RUN_ID, node_id=node, node_config=config, state=RecordDict(), run_config={})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the hospitals finish what they compute, drop what waits, and give torch its threads back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def set_run(self, run: Run) -> None:
        """Part of Grid; the run has no meaning beyond its id here."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, empty but for its id."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run to one hospital."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every hospital's node id, in the order of `apps`."""
        return list(self._apps)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Every hospital, under its name, as nodes registered with `flwr supernode register --name` appear."""
        return [NodeInfo(node_id=node, name=name) for node, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start each hospital's app on a copy of its message; returns at once."""
        ids = []
        for message in messages:
            own = copy.deepcopy(message)
            # A SuperLink gives the id; the setter that Flower offers for it is its own, underscored one.
            own.metadata.__dict__["_message_id"] = identity = f"local-{next(self._ids)}"
            self._pending[identity] = self._pool.submit(self._answer, own)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready, each given once; a long poll, so that a round loop loses no time in sleeping.

        It waits at most LONG_POLL_S for the last of them, as an HTTP Grid takes its time on the network.
        """
        message_ids = list(message_ids)
        self.wait(message_ids, LONG_POLL_S)
        ready = [i for i in message_ids if i in self._pending and self._pending[i].done()]
        return [self._pending.pop(i).result() for i in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, wait for all replies or `timeout` seconds, pull."""
        ids = list(self.push_messages(messages))
        self.wait(ids, timeout)
        return self.pull_messages(ids)

    def wait(self, message_ids: Iterable[str], timeout: float | None = None) -> None:
        """Sleep until all of the replies are ready or `timeout` seconds have passed."""
        wait([self._pending[i] for i in message_ids if i in self._pending], timeout)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._apps:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, f"no node {node}"), reply_to=message)
        try:
            return self._apps[node](message, self._contexts[node])
        except Exception as error:  # as a SuperNode does: the app's failure is the round's news, not the grid's end
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)
