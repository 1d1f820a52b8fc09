"""Replies out of Flower's Grid, each on its own: none can hold a round up, fill the memory, or end the run.

Flower's own `pull_messages` waits up to two hours for the parts of an announced reply, puts together whatever it gets,
and raises out of the round when that fails. Here a part that is not there yet is asked for again later, and what cannot
be read is an error of its hospital's. Private Flower API (flwr 1.42); each symbol has a test that fails by its name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid.http_grid import HttpGrid

from wardround.errors import FederationError, MessageError, WardroundError
from wardround_flower import unpack
from wardround_flower.parts import ENVELOPE_BYTES, check_parts, most_parts
from wardround_server.flower.reasons import explained

SLICE_S = 0.5  # after so long the others are looked at again
log = logging.getLogger(__name__)


@dataclass
class Arriving:
    """A reply that was announced. identity: its id. missing: ids of parts that are not here yet, in order."""

    identity: str
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class Mail:
    """What comes back for messages that were sent through a Grid.

    Args:
        grid: Flower's, over HTTP.
        largest_reply: bytes of the longest blob that an honest hospital answers with in this run.
        digest: of the run's agreement, for errors.
    """

    def __init__(self, grid: HttpGrid, largest_reply: int, digest: str = "") -> None:
        self._grid, self._limit, self._digest = grid, largest_reply, digest
        self._arriving: dict[str, Arriving] = {}
        self._late: set[str] = set()

    def collect(self, waiting: Iterable[str], until: float) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Look once -> (id of the message, what came back for it), for those whose reply is whole or hopeless.

        Ends by `until`, in time.monotonic(), however many parts there are to fetch.

        Memory: for each hospital at most its own reply and an envelope, and once more while one is put together.
        """
        asked = {identity for identity in waiting if identity not in self._arriving}
        response = self._client.PullMessages(PullAppMessagesRequest(message_ids=sorted(asked | self._late)))
        for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            to, reply = head.metadata.reply_to_message_id, head.metadata.message_id
            if to in self._late:
                self._late.discard(to)
                self._forget(reply)
            elif head.HasField("error"):
                self._forget(reply)
                yield to, explained(head.error.code, head.error.reason, self._digest)
            elif to in asked:
                self._arriving[to] = Arriving(reply, [part.object_id for part in iterate_object_tree(tree)])
        for to, reply_ in list(self._arriving.items()):
            outcome = self._fetch(reply_, min(until, time.monotonic() + SLICE_S))
            if outcome is not None:
                del self._arriving[to]
                self._forget(reply_.identity)
                yield to, outcome

    def close(self, sent: Iterable[str], unanswered: Iterable[str]) -> Iterator[tuple[str, WardroundError]]:
        """The round is over -> what is to be said of replies that did not arrive whole. What Flower keeps is dropped.

        Args:
            sent: ids of all messages of the round.
            unanswered: those for which nothing was collected.
        """
        for to in unanswered:
            reply = self._arriving.pop(to, None)
            if reply is None:
                self._late.add(to)
                continue
            self._forget(reply.identity)
            total = len(reply.missing) + len(reply.parts)
            yield (
                to,
                FederationError(f"announced a reply of {total} parts and sent {len(reply.parts)} before the deadline"),
            )
        for identity in sent:  # a hospital that never fetches what it is asked must not keep theta here
            self._forget(identity)

    def _fetch(self, reply: Arriving, until: float) -> bytes | WardroundError | None:
        """The blob, if the last part is here; None, if one is still missing. Never raises for what a hospital sent."""
        if len(reply.missing) + len(reply.parts) > most_parts(self._limit):
            return MessageError(f"a reply of {len(reply.missing)} parts", allowed="as many as its length explains")
        while reply.missing:
            if time.monotonic() > until:
                return None
            part = reply.missing[0]
            found = self._client.PullObject(
                PullObjectRequest(node=self._grid.node, run_id=self._grid.run.run_id, object_id=part)
            )
            if not found.object_found:
                return MessageError("a part of the reply is gone")
            if not found.object_available:
                return None
            reply.size += len(found.object_content)
            if reply.size > self._limit + ENVELOPE_BYTES:
                return MessageError(f"a reply of more than {self._limit + ENVELOPE_BYTES:,} bytes")
            reply.parts[reply.missing.pop(0)] = found.object_content
        return put_together(reply.identity, reply.parts, self._limit + ENVELOPE_BYTES)

    def _forget(self, identity: str) -> None:
        """Have Flower drop a message and its parts."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=identity
            )
        )

    @property
    def _client(self) -> RuntimeHttpClient:
        return self._grid._runtime_client


def put_together(identity: str, parts: dict[str, bytes], limit: int) -> bytes | WardroundError:
    """The blob in a reply's parts, or what is wrong with them. Never raises. `parts` is used up."""
    try:
        check_parts(parts, limit)
        message = inflate_object_from_contents(identity, parts)
        if not isinstance(message, Message):
            return MessageError(f"a reply that is a {type(message).__name__}", allowed="a message")
        return unpack(message.content)
    except MessageError as error:
        return error
    except Exception as error:  # somebody else made it: anything may be wrong with it
        return MessageError(f"a reply that cannot be put together ({type(error).__name__})")
