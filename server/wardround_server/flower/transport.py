"""The hospitals behind Flower's Grid: each round's requests go out as messages, replies come in until the deadline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import httpx
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from wardround.errors import FederationError, MessageError, WardroundError
from wardround_flower import MESSAGE_TYPE, pack, unpack
from wardround_server.flower.reasons import explained
from wardround_server.hospitals import Member

POLL_S, SLOWEST_POLL_S = 0.05, 0.25
LAST_LOOK_S = 1.0  # after the deadline, for what is there already
SPARE_S, PUSH_S = 60.0, 2.0  # a message lives so much longer than the deadline: for a late reply, and for the pushing
PUSHES, LOT = 3, 8  # tries of so many requests together: on a busy machine one call in fifty comes too late
log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """How replies are fetched."""

    def collect(self, waiting: Iterable[str], until: float) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Look once, until a moment of time.monotonic() -> (id of the message, what came back for it)."""
        ...

    def close(self, sent: Iterable[str], unanswered: Iterable[str]) -> Iterator[tuple[str, WardroundError]]:
        """The round is over -> what is to be said of replies that did not arrive whole."""
        ...


class GridTransport:
    """Hospitals behind a Flower Grid.

    Args:
        grid: Flower's.
        members: the hospitals by node id, as they are now; asked before each round and for each reply.
        mail: how replies are fetched; default: by the Grid's own `pull_messages`, which trusts who sends.
        everybody: nodes that are no members are asked too, named by their numbers, and believed. Only in a simulation.
        digest: of the run's agreement, for errors.
    """

    def __init__(
        self,
        grid: Grid,
        members: Callable[[], Mapping[int, Member]],
        *,
        mail: Mailbox | None = None,
        everybody: bool = False,
        digest: str = "",
    ) -> None:
        self._grid, self._members, self._everybody = grid, members, everybody
        self._mail = mail or _GridMail(grid, digest)
        self._nodes: dict[str, int] = {}
        self._declared: dict[str, int] = {}

    def hospitals(self) -> Sequence[str]:
        """Names of those that Flower has heard of lately and that may take part."""
        members = self._members()
        self._declared = {hospital.name: hospital.declared_patients for hospital in members.values()}
        self._nodes = {
            members[node].name if node in members else str(node): node
            for node in self._grid.get_node_ids()
            if node in members or self._everybody
        }
        return sorted(self._nodes)

    def declared_patients(self, name: str) -> int | None:
        """What the hospital registered with; None for a node that nobody registered."""
        return self._declared.get(name)

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Send each request as one message; yield replies and failures as they arrive, until the deadline.

        The deadline's time begins when the last request has gone: that of 200 hospitals takes a coordinator minutes,
        and is not theirs.
        """
        # A failure's sender is the SuperLink, so replies are told apart by what they reply to.
        sent = {}
        names = list(requests)
        lives_s = deadline_s + SPARE_S + PUSH_S * len(names)
        for lot in (names[begin : begin + LOT] for begin in range(0, len(names), LOT)):
            some = {name: requests[name] for name in lot}
            for name, identity in zip(lot, self._pushed(some, lives_s), strict=True):
                if identity:
                    sent[identity] = name
                else:
                    yield name, FederationError("the message could not be sent")
        until = time.monotonic() + deadline_s
        waiting, pause, in_time = dict(sent), POLL_S, True
        while waiting and in_time:
            in_time = time.monotonic() < until  # once more after it: what was there in time is counted
            for identity, outcome in self._mail.collect(list(waiting), until + LAST_LOOK_S):
                if identity in waiting:
                    name = waiting.pop(identity)
                    yield name, outcome if self._may_answer(name) else FederationError("it is not registered any more")
            if waiting and in_time:
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
                pause = min(pause * 1.1, SLOWEST_POLL_S)  # who has not answered soon is computing: leave it the CPU
        for identity, error in self._mail.close(sent, waiting):
            yield waiting[identity], error

    def _pushed(self, requests: Mapping[str, bytes], lives_s: float) -> Sequence[str]:
        """The id of each request's message, which Flower forgets after lives_s; "" for one that was not sent.

        Flower takes a message and a part once, and refuses the same again, with 500 or a word of its own, when a busy
        SuperLink answered too late and its client repeated the call. Then all go anew as other messages: a hospital
        answers a round once, whoever asks how often.
        """
        for _ in range(PUSHES):
            messages = [
                Message(pack(blob), self._nodes[name], MESSAGE_TYPE, ttl=lives_s) for name, blob in requests.items()
            ]
            try:
                return list(self._grid.push_messages(messages))
            except (ObjectPushError, httpx.HTTPStatusError) as error:
                if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
                    raise
                log.warning("the requests were not taken whole: %s", error)
        return [""] * len(requests)

    def _may_answer(self, name: str) -> bool:
        """Whether nobody has taken it out since it was asked."""
        return self._everybody or any(hospital.name == name for hospital in self._members().values())


class _GridMail:
    """Replies by Flower's public Grid, in a simulation: the hospitals are this process's own."""

    def __init__(self, grid: Grid, digest: str) -> None:
        self._grid, self._digest = grid, digest

    def collect(self, waiting: Iterable[str], until: float) -> Iterator[tuple[str, bytes | WardroundError]]:
        for reply in self._grid.pull_messages(list(waiting)):
            yield reply.metadata.reply_to_message_id, _outcome(reply, self._digest)

    def close(self, sent: Iterable[str], unanswered: Iterable[str]) -> Iterator[tuple[str, WardroundError]]:
        return iter(())


def _outcome(reply: Message, digest: str) -> bytes | WardroundError:
    if reply.has_error():
        return explained(reply.error.code, reply.error.reason, digest)
    try:
        return unpack(reply.content)
    except MessageError as error:
        return error
