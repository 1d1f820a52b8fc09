"""Whether this hospital can reach its coordinator, step by step, without a cohort: names, network, TLS, clock, key."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.errors import Unreachable, WardroundError
from wardround.proxies import proxy_for, spare_loopback
from wardround.text import shown
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.errors import explained
from wardround_client.flower.fleet import ANSWER_BYTES, Coordinator, Session, connect
from wardround_client.flower.node_id import NodeNumber

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Step:
    """name: what was tried. result: what was found, and soon: whether somebody should see to it. error: why it failed;
    the steps after it are not tried.
    """

    name: str
    result: str = ""
    error: WardroundError | None = None
    soon: bool = False


def steps(coordinator: Coordinator, key: Callable[[], ec.EllipticCurvePrivateKey], memory: Path) -> Iterator[Step]:
    """Try each in turn; ends after the first that fails.

    Args:
        coordinator: where to connect, and whom to believe.
        key: reads the node's private key; may raise WardroundError.
        memory: the file that remembers the node's number.
    """
    check = _Check(coordinator, key, memory)
    tries = {
        "proxy": check.proxy,
        "name (DNS)": check.name,
        "network (TCP)": check.network,
        "certificate (TLS)": check.certificate,
        "clock": check.apart,
        "key": check.registered,
    }
    for name, attempt in tries.items():
        try:
            yield Step(name, attempt())
        except WardroundError as error:
            yield Step(name, error=error)
            return


class _Check:
    """One attempt a method: what it finds in words, or a WardroundError."""

    def __init__(self, coordinator: Coordinator, key: Callable[[], ec.EllipticCurvePrivateKey], memory: Path) -> None:
        self._coordinator, self._key, self._memory = coordinator, key, memory
        self._clock = Clock()
        spare_loopback(coordinator.host)
        self._proxy = proxy_for(coordinator.host)
        port = int(coordinator.address.rpartition(":")[2])
        self._host, self._port = coordinator.host, port  # what is dialled: the proxy, where there is one
        if self._proxy:
            url = urlsplit(self._proxy)
            self._host, self._port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)

    def proxy(self) -> str:
        """Which one the environment names."""
        return f"through {self._proxy}" if self._proxy else "none: the coordinator is dialled directly"

    def name(self) -> str:
        """Its addresses."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreachable(
                f"the name {shown(self._host)} has no address ({shown(error)})",
                do="check the name for slips, and ask your network's people whether this machine may resolve it",
            ) from None
        return f"{self._host} is {', '.join(dict.fromkeys(str(each[4][0]) for each in found))}"

    def network(self) -> str:
        """A connection."""
        try:
            socket.create_connection((self._host, self._port), TIMEOUT_S).close()
        except OSError as error:
            raise Unreachable(
                f"no connection to {shown(self._host)} port {self._port} ({shown(error)})",
                do=f"see whether the coordinator is up, and let this machine out to port {self._port} in the firewall",
            ) from None
        return f"port {self._port} of {self._host} is open"

    def certificate(self) -> str:
        """TLS with the coordinator, by the authority that this hospital joined; hears its clock."""
        address, ca_pem = self._coordinator.address, self._coordinator.ca_pem
        with explained(address, ca_pem, self._proxy):
            context = ssl.create_default_context(cadata=ca_pem.decode("ascii", "replace"))
            client = httpx.Client(verify=context, timeout=TIMEOUT_S, follow_redirects=False)
            with client, client.stream("GET", f"https://{address}/health") as response:
                self._clock.hear(response)
        return "signed by the CA that this hospital joined"

    def apart(self) -> str:
        """How far the clocks are apart."""
        if self._clock.ahead_s is None:
            return "the coordinator does not say its time"
        return self._clock.sentence() or "agrees with the coordinator's"

    def registered(self) -> str:
        """Whether the coordinator knows the key: a session that ends at once."""
        key, coordinator, clock = self._key(), self._coordinator, self._clock
        number = NodeNumber(self._memory, coordinator.address)
        with (
            explained(coordinator.address, coordinator.ca_pem, self._proxy),
            connect(coordinator, key, lambda: ANSWER_BYTES, clock) as client,
        ):
            session = Session.begin(client, key, coordinator.address, number.read(), clock)
            session.end()
        return f"registered, as node {session.number}"
