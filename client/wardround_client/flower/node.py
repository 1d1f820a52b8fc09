"""The hospital's own Flower node: one process, outbound connections only, no code that arrives is ever fetched.

It speaks Flower's Fleet API itself (fleet.py), because a stock SuperNode downloads the coordinator's bundle and runs
it, starts a process for each message, and polls every 3 s. Here the bundle's hash is looked up among the approved ones
and the bundle stays where it is. A message that cannot be understood is dropped or refused, and the node goes on.

A session on the coordinator                         what ends it
    activate      the key is registered              an unknown key: `Untrusted`
    poll          is there a message?                401: the coordinator forgot us, activate again
      pull        its objects                        a broken connection changes nothing: the step is repeated
      answer      a blob for a blob
      push        the reply, and its objects         403: the run is over, the reply is dropped
    heartbeat     beside it, also during an answer
    deactivate    at the end, so that the coordinator knows at once
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message

from wardround.errors import FederationError, MessageError, Untrusted, WardroundError
from wardround.proxies import proxy_for
from wardround.text import shown
from wardround.wire import LIMIT_BYTES
from wardround_client.flower.app import CANNOT_ANSWER, ERROR_CODE, Answers, reply_to
from wardround_client.flower.clock_skew import TOLERATED_S, Clock
from wardround_client.flower.errors import KeyRefused, explained
from wardround_client.flower.fleet import (
    INVALID_BUNDLE,
    Coordinator,
    FleetHttpClient,
    Forgotten,
    ObjectPullError,
    ObjectPushError,
    Session,
    Work,
    connect,
    content_of,
)
from wardround_client.flower.node_id import NodeNumber
from wardround_client.flower.pace import POLL_S, Pace
from wardround_flower.parts import ENVELOPE_BYTES

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
NOT_APPROVED = "This hospital has not approved this bundle."
APPROVAL_MISSING = "PolicyRefusal (approved:"
"""How a refusal begins that ends when a person approves."""
TOO_LARGE = "This message is larger than any that this hospital approved."
__all__ = ["POLL_S", "Coordinator", "Link", "Node"]
_GONE = (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND, httpx.codes.PRECONDITION_FAILED, httpx.codes.BAD_REQUEST)
log = logging.getLogger(__name__)


class Link(StrEnum):
    """How the node stands with its coordinator."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RETRYING = "retrying"
    STOPPED = "stopped"


class Node:
    """A hospital's node.

    Args:
        coordinator: where to connect, and whom to believe.
        key: the node's private key; its public half is registered at the coordinator.
        answer: gives the hospital's blob for the coordinator's; must not raise.
        approved_bundles: SHA-256 of the bundles that the hospital approved, asked at each message.
        largest_request: bytes of the largest blob that an approved agreement can bring, asked at each message.
        memory: a small file that remembers the node's number, to come back at once after a crash.
        report: called whenever the link changes, with a sentence for a person.
        refused: called whenever a message is refused before the hospital reads it, with the reason.
        clock: this machine's.
        poll_s: how long an idle node waits before it asks again, at first.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        key: ec.EllipticCurvePrivateKey,
        answer: Answers,
        approved_bundles: Callable[[], frozenset[str]],
        memory: Path,
        *,
        largest_request: Callable[[], int] = lambda: LIMIT_BYTES,
        report: Callable[[Link, str], None] = lambda link, detail: None,
        refused: Callable[[str], None] = lambda why: None,
        clock: Clock | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._coordinator, self._key, self._answer = coordinator, key, answer
        self._approved_bundles, self._largest_request = approved_bundles, largest_request
        self._number, self._report, self._pace = NodeNumber(memory, coordinator.address), report, Pace(poll_s)
        self._refused, self._clock = refused, clock or Clock()
        self._session: Session | None = None
        self._work: Work | None = None

    def run(self, stop: threading.Event, *, give_up_after_s: float | None = None) -> None:
        """Work until `stop`. A broken connection is repaired for as long as it takes.

        Args:
            stop: ends the loop; the coordinator is told.
            give_up_after_s: how long to go on trying while nothing connects; None: for ever.

        Raises:
            Untrusted: at the first contact, the coordinator's certificate or this node's key is not accepted. A node
                that was connected before goes on trying instead.
            Unreachable: only with give_up_after_s.
        """
        wait_s, failing_since = FIRST_WAIT_S, time.monotonic()
        met = False  # whether this process was ever connected
        address, ca_pem = self._coordinator.address, self._coordinator.ca_pem
        with connect(self._coordinator, self._key, self._allowed, self._clock) as client:
            proxy = proxy_for(self._coordinator.host)
            self._report(Link.CONNECTING, f"connecting to {address}{f' through the proxy {proxy}' if proxy else ''}")
            try:
                while not stop.is_set():
                    try:
                        with explained(address, ca_pem, proxy):
                            busy = self._step(client)
                    except WardroundError as error:
                        late = give_up_after_s is not None and time.monotonic() - failing_since >= give_up_after_s
                        if late or self._hopeless(error, met):
                            raise
                        pause_s = random.uniform(0.5, 1.0) * wait_s  # jitter: hospitals must not come back in step
                        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                        self._report(Link.RETRYING, f"{error} Trying again in {pause_s:.1f} s.")
                        stop.wait(pause_s)
                        continue
                    if not met or wait_s > FIRST_WAIT_S:
                        self._report(Link.CONNECTED, f"connected to {address}{self._clocks()}")
                    met, wait_s, failing_since = True, FIRST_WAIT_S, time.monotonic()
                    if busy:
                        self._pace.worked()
                    else:
                        stop.wait(self._pace.wait_s())
            finally:
                if self._session:
                    self._session.end()
                self._report(Link.STOPPED, "stopped")

    def _clocks(self) -> str:
        """What is to be said of the clocks behind the address."""
        apart = self._clock.sentence()
        return f"; {apart}: more than {TOLERATED_S / 60:g} minutes, and nothing is answered any more" if apart else ""

    def _allowed(self) -> int:
        """Bytes of the largest message, as Flower sends it."""
        return min(self._largest_request(), LIMIT_BYTES) + ENVELOPE_BYTES

    def _hopeless(self, error: WardroundError, met: bool) -> bool:
        """Whether a person has to act first. A key that was accepted before may only be late after a crash."""
        if met or not isinstance(error, Untrusted):
            return False
        return not (isinstance(error, KeyRefused) and self._number.read() is not None)

    def _step(self, client: FleetHttpClient) -> bool:
        """One step of the session -> whether there was something to do."""
        if self._session is None or self._session.lost.is_set():
            self._session = self._begin(client)
        try:
            if self._work is None:
                self._work = self._session.poll()
            if self._work is None:
                return False
            self._do(self._session, self._work)
        except Forgotten:
            self._session.end()
            self._session = None
        return True

    def _do(self, session: Session, work: Work) -> None:
        """Answer the message and deliver the reply; a step that fails for a broken line is repeated later."""
        try:
            if work.reply is None:
                work.reply = self._reply(session, work)
            session.push(work.reply)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _GONE:
                raise
            log.info("the run of a message is over: its reply is dropped")
        except (httpx.TransportError, FederationError, Forgotten):
            raise
        except (ObjectPullError, ObjectPushError) as error:
            log.warning("a message was dropped: its parts are no longer there (%s)", type(error).__name__)
        except Exception:  # what it is made of cannot be understood, and would not be the next time
            log.exception("a message was dropped")
        self._work = None

    def _reply(self, session: Session, work: Work) -> Message:
        bundle = session.bundle(work.head)
        approved = bundle in self._approved_bundles()
        content, why, limit = None, CANNOT_ANSWER, self._allowed()
        try:
            parts = session.fetch(work, limit)
            content = content_of(work, parts, limit) if approved else None
        except MessageError as error:
            log.warning("a message was refused: %s", error)
            why = TOO_LARGE
            self._refused(f"MessageError ({error.what})")
        if not approved:
            log.warning("a run was refused: its bundle is not approved here")
            which = shown(bundle[:12])
            self._refused(f"{APPROVAL_MISSING} a run whose agreement is not approved here, bundle {which})")
            return Message(Error(INVALID_BUNDLE, NOT_APPROVED), reply_to=work.head)
        if content is None:
            return Message(Error(ERROR_CODE, why), reply_to=work.head)
        return reply_to(work.head, self._answer, content)

    def _begin(self, client: FleetHttpClient) -> Session:
        session = Session.begin(
            client, self._key, self._coordinator.address, self._number.read(), self._clock, self._pace
        )
        self._number.write(session.number)
        return session
