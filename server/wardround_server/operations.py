"""What the coordinator's own process does beside serving: metrics for Prometheus, and notices to the site's hook."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

from wardround.certificates import passed, until
from wardround.hooks import Hook
from wardround.metrics import LOOPBACK, PATH, Metric, serving
from wardround.operations import Operations
from wardround_server.events import LATE, Event, RoundEnded, RoundMissed, RunFailed
from wardround_server.home import Home
from wardround_server.runs_seen import RunsSeen, of_coordinator

LOOK_S, LAST_JOIN_S = 5.0, 2.0
NEWS = timedelta(days=1)  # what happened before is no news to a hook that was set up since
log = logging.getLogger(__name__)


@contextmanager
def watched(home: Home, operations: Operations) -> Iterator[None]:
    """Do what [operations] says for as long as this lasts. Raises: PortInUse."""
    with ExitStack() as stack:
        sender = {"coordinator": home.config().address}
        hook = stack.enter_context(Hook(operations.hook, operations.hook_timeout_s, home.folder, sender))
        watch = _Watch(home, hook)
        if hook.wanted:
            stack.enter_context(watch.looking())
        if operations.metrics_port:
            port = stack.enter_context(serving(operations.metrics_port, watch.metrics))
            log.info("metrics are at http://%s:%d%s", LOOPBACK, port, PATH)
        yield


class _Watch:
    """Reads the runs' events once, for both."""

    def __init__(self, home: Home, hook: Hook) -> None:
        self._home, self._hook, self._lock = home, hook, threading.Lock()
        self._runs = RunsSeen(home.folder / "runs")

    def metrics(self) -> Sequence[Metric]:
        """What Prometheus is shown."""
        with self._lock:
            self._look()
            return of_coordinator(self._runs.progress(), self._home.tls.ends())

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look now and then, in a thread."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(LOOK_S):
                try:
                    with self._lock:
                        self._look()
                    self._certificates()
                except Exception:  # the hospitals are served all the same
                    log.exception("the runs could not be looked at")

        thread = threading.Thread(target=work, name="operations", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(LAST_JOIN_S)

    def _look(self) -> None:
        for run, event in self._runs.news():
            if self._hook.wanted and _is_news(event):
                tell(self._hook, run, event)

    def _certificates(self) -> None:
        for name, end in self._home.tls.ends().items():
            if stage := passed(end):
                self._hook.tell("certificate-ends", f"{name} {end:%Y-%m-%d} {stage}", which=name, ends=until(end))


def tell(hook: Hook, run: str, event: Event) -> None:
    """Tell the hook what of an event a person should know, once in a run for each hospital."""
    match event:
        case RoundEnded() | RoundMissed():
            late = {who: why for who, why in event.rejected.items() if why.startswith(LATE)}
            for who, why in (late | dict.fromkeys(event.absent, "not connected")).items():
                hook.tell("hospital-late", f"{run} {who}", run=run, round=event.round, hospital=who, reason=why)
            for who, why in event.rejected.items():
                if who not in late:
                    hook.tell("hospital-rejected", f"{run} {who}", run=run, round=event.round, hospital=who, reason=why)
        case RunFailed():
            hook.tell("run-failed", f"{run} {event.time}", run=run, reason=event.message)


def _is_news(event: Event) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(event.time) < NEWS
    except (ValueError, TypeError):  # no time, or one without a zone
        return False
