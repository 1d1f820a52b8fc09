"""How often a node asks for messages and gives a sign of life: the more rarely, the longer nothing has come.

A coordinator serves hundreds of nodes, most of them idle most of the time. How often they ask depends on nothing but
when the last message came.
"""

from __future__ import annotations

import random

POLL_S, SLOWEST_POLL_S = 0.25, 10.0
LATER = 0.05
"""A message is heard of later by this part of the wait for it, at most."""
BEAT_S, SLOWEST_BEAT_S = 8.0, 20.0
BELIEVED_S = 30.0
"""What the coordinator is told: it believes the node dead after two of them. A busy one does not hear every sign."""
BEAT_OF_IDLE = 0.1


class Pace:
    """Of one node.

    Args:
        poll_s: how long it waits before it asks again, at first.
    """

    def __init__(self, poll_s: float = POLL_S) -> None:
        self._poll_s, self.idle_s = poll_s, 0.0

    def worked(self) -> None:
        """Something came: be quick again."""
        self.idle_s = 0.0

    def wait_s(self) -> float:
        """How long to wait before asking again. Jitter: nodes that one event has waked must not go on in step."""
        wait_s = random.uniform(0.75, 1.0) * min(self._poll_s + LATER * self.idle_s, SLOWEST_POLL_S)
        self.idle_s += wait_s
        return wait_s

    def beat_s(self) -> float:
        """How long until the next sign of life."""
        return min(max(BEAT_S, BEAT_OF_IDLE * self.idle_s), SLOWEST_BEAT_S)
