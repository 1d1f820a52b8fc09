"""The hospitals: registered with the SuperLink, and as it sees them."""

from __future__ import annotations

import contextlib
from typing import Any

from wardround.errors import Unreachable
from wardround_server.answers import AnswerBook
from wardround_server.home import Home
from wardround_server.hospitals import Card, LastSeen, Member, Registry


def register_nodes(coordinator: Home, admin: int) -> dict[str, int]:
    """Make the SuperLink know the hospitals of the registry and no other; done again it changes nothing.

    -> name, node id.
    """
    from wardround_server.flower.control import ControlApi

    registry, nodes = Registry(coordinator.folder), dict[str, int]()
    with ControlApi(admin, coordinator.tls.ca) as control:
        known = control.keys()
        for hospital in registry:
            key = hospital.key_pem
            nodes[hospital.name] = known[key] if key in known else control.register(hospital.name, key)
        registry.set_nodes(nodes)
        for node in set(known.values()) - set(nodes.values()):
            control.unregister(node)
    return nodes


def seen_nodes(coordinator: Home) -> dict[int, LastSeen]:
    """Each node's state. Raises: Unreachable."""
    admin = int(coordinator.running()["admin"])
    from wardround_server.flower.control import ControlApi

    with ControlApi(admin, coordinator.tls.ca) as control:
        return control.seen()


def in_words(seen: LastSeen | None) -> str:
    """A node's state in words."""
    if seen is None:
        return "unknown"
    if seen.status == "registered":
        return "never connected"
    if seen.ago_s is None or (seen.status == "online" and seen.ago_s < seen.promised_s):
        return seen.status
    if seen.status == "online":
        return f"silent, last seen {_ago(seen.ago_s)} ago"
    return f"{seen.status} for {_ago(seen.ago_s)}"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def enrol(coordinator: Home, card: Card) -> tuple[Member, int | None]:
    """Register a hospital -> what it is now, and its node's number; None while the coordinator is down: then the next
    `up` makes it known. Raises: ConfigError, StorageError.
    """
    hospital, node_id = Registry(coordinator.folder).add(card), None
    with contextlib.suppress(Unreachable):
        node_id = register_nodes(coordinator, int(coordinator.running()["admin"]))[hospital.name]
    return hospital, node_id


def there(coordinator: Home) -> tuple[list[dict[str, Any]], Unreachable | None]:
    """Each registered hospital: name, declared patients, status in words and how many answers it gave; and why nobody
    knows who is connected, while the coordinator is down.
    """
    seen, down = dict[int, LastSeen](), None
    try:
        seen = seen_nodes(coordinator)
    except Unreachable as error:
        down = error
    registered = list(Registry(coordinator.folder))
    book = AnswerBook.of_home(coordinator.folder, registered)
    return [
        {
            "hospital": hospital.name,
            "declared_patients": hospital.declared_patients,
            "status": "coordinator down" if down else in_words(seen.get(hospital.node_id or 0)),
            "answers": len(book.of(hospital.name)),
        }
        for hospital in registered
    ], down
