"""What the coordinator's own process does beside serving: metrics for Prometheus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wardround.metrics import LOOPBACK, PATH, Metric, serving
from wardround.operations import Operations
from wardround_server.home import Home
from wardround_server.runs_seen import RunsSeen, of_coordinator

log = logging.getLogger(__name__)


@contextmanager
def watched(home: Home, operations: Operations) -> Iterator[None]:
    """Do what [operations] says for as long as this lasts. Raises: PortInUse."""
    if not operations.metrics_port:
        yield
        return
    runs, lock = RunsSeen(home.folder / "runs"), threading.Lock()

    def read() -> Sequence[Metric]:
        with lock:
            for _ in runs.news():
                pass
            return of_coordinator(runs.progress(), home.tls.ends())

    with serving(operations.metrics_port, read) as port:
        log.info("metrics are at http://%s:%d%s", LOOPBACK, port, PATH)
        yield
