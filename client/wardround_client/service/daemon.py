"""`wardround hospital up`: the node, the hospital and the control socket in one process, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch

from wardround import __version__, files
from wardround.certificates import Countdown, ends_of, passed, until
from wardround.errors import ConfigError, DataError, WardroundError
from wardround.files import shut, write_atomically
from wardround.hooks import Hook
from wardround.metrics import LOOPBACK, PATH, Metric, serving
from wardround.models import Model
from wardround.wire import Refusal, peek_reply, request_bytes
from wardround_client.flower.node import APPROVAL_MISSING, POLL_S, Coordinator, Link, Node
from wardround_client.hospital import Hospital
from wardround_client.keys import load_node_key
from wardround_client.one_life import RULE as ONE_LIFE
from wardround_client.one_life import check_not_stopped
from wardround_client.round import answer
from wardround_client.service._proto import hospital_pb2 as pb
from wardround_client.service.control import REFUSAL, ControlServer, StatusFeed, last_refusal
from wardround_client.service.metrics import of_hospital

LOCK, MEMORY = "daemon.lock", "node.json"
_LOOK_S = 60.0
NEARLY = 0.8  # of the budget: the hook is told
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What the daemon knows of itself beside the hospital's files."""

    link: Link = Link.CONNECTING
    link_detail: str = ""
    run: str = ""
    round: int = 0
    answered: int = 0
    refused: int = 0
    last_error: str = ""


class Daemon:
    """One hospital's daemon.

    Args:
        home: the hospital's home; everything in it is checked before anything connects.
        say: told each change of the link, one sentence for a person.
        poll_s: how long an idle node waits before it asks again, at first.

    Raises: ConfigError, DataError, StorageError; one_life.Stopped, while nobody has decided.
    """

    def __init__(self, home: Path, *, say: Callable[[str], None] = lambda line: None, poll_s: float = POLL_S) -> None:
        self.home, self._say, self._poll_s = home, say, poll_s
        self.stop = threading.Event()
        check_not_stopped(home)
        self.hospital = Hospital.open(home)
        self._coordinator = coordinator_of(self.hospital)
        self._key = load_node_key(home)
        check_cohort(self.hospital)
        self._shown, self._shown_lock = Shown(last_error=last_refusal(home)), threading.Lock()
        self._started_at = time.time()
        self.feed = StatusFeed(self._describe)
        operations, who = self.hospital.config.operations, {"hospital": self.hospital.config.hospital.name}
        self._hook = Hook(operations.hook, operations.hook_timeout_s, home, who)
        self._control = ControlServer(home, self.feed, self.hospital.paused, self.stop)

    def run(self, *, give_up_after_s: float | None = None) -> None:
        """Serve until told to stop.

        Raises:
            Untrusted, Unreachable: see Node.run.
            one_life.Stopped: another copy of this home answers, and this one leaves the coordinator to it.
            StorageError.
        """
        if self.hospital.config.device.threads:
            torch.set_num_threads(self.hospital.config.device.threads)
        node = Node(
            self._coordinator,
            self._key,
            self._answer,
            self.hospital.approvals.bundles,
            self.home / MEMORY,
            largest_request=self._largest_request,
            report=self._link,
            refused=self._refuse,
            poll_s=self._poll_s,
        )
        if opened := shut(self.home):  # but a node.key that others could read was refused before
            log.warning("others could read or write in this home, and no longer can: %s", ", ".join(opened[:20]))
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        with self._control, self._watched(), self._hook:
            for unfit in self.hospital.warm_up():  # a coordinator's deadline is not for loading what is there now
                self._say(unfit)
            node.run(self.stop, give_up_after_s=give_up_after_s)
        check_not_stopped(self.home)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Serve the metrics meanwhile, where hospital.toml says so. Raises: PortInUse."""
        port = self.hospital.config.operations.metrics_port
        if not port:
            yield
            return
        with serving(port, self._metrics) as port:
            log.info("metrics are at http://%s:%d%s", LOOPBACK, port, PATH)
            yield

    def _metrics(self) -> Sequence[Metric]:
        with self._shown_lock:
            refused = self._shown.refused
        return of_hospital(self._describe(), refused, self._authority_ends())

    def _authority_ends(self) -> datetime | None:
        try:
            return max(ends_of(self._coordinator.ca_pem))
        except ValueError:  # said when it is dialled
            return None

    def _watch(self) -> None:
        """Say weeks before that the authority which this hospital joined ends, and that the budget will: not on the way
        of an answer, which must neither wait nor fail for it.
        """
        ends, countdown = self._authority_ends(), Countdown()
        while True:
            try:
                self._tell_of_budget()
            except WardroundError as error:
                log.warning("nobody can tell how much of the budget is spent: %s", error)
            if ends and (stage := passed(ends)):
                name = "coordinator's CA"
                self._hook.tell("certificate-ends", f"{ends:%Y-%m-%d} {stage}", which=name, ends=until(ends))
            for line in countdown.due({"coordinator's CA": ends} if ends else {}):
                log.warning("the %s: ask the coordinator for its present invitation.toml and join again", line)
            if self.stop.wait(_LOOK_S):
                return

    def _largest_request(self) -> int:
        """Bytes of the largest request that an approved agreement can bring; 0 without an approval."""
        return max((request_bytes(model.layout.size, model.scaling_size) for model in self._models()), default=0)

    def _models(self) -> Iterator[Model]:
        for digest in self.hospital.approvals.digests():
            with suppress(WardroundError):  # its round will be refused
                yield self.hospital.approvals.agreement(digest).model

    def _answer(self, blob: bytes) -> bytes:
        came = time.monotonic()
        reply = answer(self.hospital, blob)
        self._wait_for_grid(came)
        header = peek_reply(reply)
        if header.refusal and header.refusal.rule == ONE_LIFE:
            self.stop.set()  # once this refusal is delivered: to go on polling would take the other copy's rounds away
        if header.refusal:
            self._refuse(_in_words(header.refusal))
        else:
            log.info(
                "run %s, round %d: answered, epsilon %.4g of this run so far", header.run, header.round, header.epsilon
            )
            with self._shown_lock:
                shown = self._shown
                self._shown = replace(shown, run=header.run, round=header.round, answered=shown.answered + 1)
            self.feed.notify()
        return reply

    def _refuse(self, why: str) -> None:
        """Show a refusal, also after a restart."""
        if why.startswith(APPROVAL_MISSING):
            self._hook.tell("approval-waits", why, refused=why)
        line = f"{why}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        with suppress(OSError):  # a disk that is full must not end the daemon
            write_atomically(self.home / REFUSAL, line.encode())
        with self._shown_lock:
            self._shown = replace(self._shown, last_error=line, refused=self._shown.refused + 1)
        self.feed.notify()

    def _tell_of_budget(self) -> None:
        """Tell the hook that most of the budget is spent; prices are public, so this says nothing of a patient."""
        budget = self.hospital.budget
        if self._hook.wanted and (spent := self.hospital.ledger.spent(budget.delta)) >= NEARLY * budget.epsilon:
            self._hook.tell(
                "budget", f"{budget.epsilon:g}", epsilon_spent=round(spent, 4), epsilon_budget=budget.epsilon
            )

    def _wait_for_grid(self, came: float) -> None:
        """Hold a reply until a whole multiple of policy.reply_grid_s has passed since its request; `stop` ends it."""
        grid_s = self.hospital.config.policy.reply_grid_s
        if grid_s > 0:
            self.stop.wait(-(time.monotonic() - came) % grid_s)

    def _link(self, link: Link, detail: str) -> None:
        with self._shown_lock:
            self._shown = replace(self._shown, link=link, link_detail=detail)
        self._control.connected(link is Link.CONNECTED)
        log.info("%s", detail)
        self._say(detail)
        self.feed.notify()

    def _describe(self) -> pb.StatusReply:
        with self._shown_lock:
            shown = self._shown
        config, budget = self.hospital.config, self.hospital.budget
        return pb.StatusReply(
            name=config.hospital.name,
            declared_patients=config.hospital.declared_patients,
            coordinator=self._coordinator.address,
            link=shown.link.value,
            link_detail=shown.link_detail,
            paused=self.hospital.paused.is_set(),
            run=shown.run,
            round=shown.round,
            answered=shown.answered,
            epsilon_spent=self.hospital.ledger.spent(budget.delta),
            epsilon_budget=budget.epsilon,
            delta=budget.delta,
            last_error=shown.last_error,
            approved=sorted(self.hospital.approvals.digests()),
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
        )


def _in_words(refusal: Refusal) -> str:
    asked = ": ".join(part for part in (refusal.rule, refusal.asked) if part)
    return f"{refusal.error} ({asked})" if asked else refusal.error


def coordinator_of(hospital: Hospital) -> Coordinator:
    """Where hospital.toml says the coordinator is, and its CA. Raises: ConfigError."""
    section = hospital.config.coordinator
    ca_file = hospital.home / section.ca_file
    join = f"wardround hospital join {hospital.home} invitation.toml"
    if not section.address:
        raise ConfigError("hospital.toml names no coordinator (coordinator.address)", do=f"`{join}`")
    try:
        ca_pem = ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{ca_file} cannot be read ({error.strerror})", do=f"`{join}`") from None
    if not section.is_pinned_to(ca_pem):
        raise ConfigError(
            f"{ca_file} is not the certificate authority that this hospital joined",
            allowed=f"a file of SHA-256 {section.ca_sha256} (coordinator.ca_sha256)",
            do=f"find out who exchanged it; to join another coordinator, `{join}`",
        )
    return Coordinator(section.address, ca_pem)


def check_cohort(hospital: Hospital) -> None:
    """Look for a cohort before anything connects. Raises: DataError.

    An empty one is a mistake of the set-up; once a round was answered, whether the daemon comes back must not depend on
    the patients.
    """
    folder = hospital.home / "cohort"
    ingest = f"wardround hospital ingest {hospital.home} DICOM_DIR --labels labels.csv"
    if not folder.exists():
        raise DataError("this hospital has no cohort yet", do=f"`{ingest}`")
    if not hospital.ledger.history() and len(hospital.patients.cohort()) == 0:
        raise DataError("this hospital's cohort is empty", do=f"see why files were quarantined, and `{ingest}`")


def locked(home: Path) -> AbstractContextManager[None]:
    """One daemon for each home. Raises: ConfigError, when another one runs there; StorageError."""
    return files.locked(
        home / LOCK,
        busy=ConfigError(
            f"a daemon runs on {home} already", do="look with `wardround hospital status`, or stop it first"
        ),
    )


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`, so that a round is finished and the coordinator is told."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
