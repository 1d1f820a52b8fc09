"""One step after another, until told to stop: ask for what is new, predict for a study, send a result.

What a step has done is on the disk before the next one begins.
"""

from __future__ import annotations

import logging
import math
import os
import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from wardround.errors import ConfigError, StorageError
from wardround.files import cannot_write, private_folder
from wardround.text import counted
from wardround_client.hospital import Hospital
from wardround_client.intake.pacs.hours import within
from wardround_client.intake.pacs.line import Line
from wardround_client.intake.pacs.source import clock
from wardround_client.intake.pacs.trouble import Trouble, TroubleError
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rules
from wardround_client.serve.answering import Answering
from wardround_client.serve.arrivals import Arrivals
from wardround_client.serve.checks import archive_of, check_settings
from wardround_client.serve.fetching import Fetched, Fetching, TooLargeError
from wardround_client.serve.models import Models, Served
from wardround_client.serve.queue import LONGEST_WAIT_S, Queue, Work
from wardround_client.serve.received import Received
from wardround_client.serve.receiver import Receiver
from wardround_client.serve.results import Results
from wardround_client.serve.sending import Sending
from wardround_client.service.control import PAUSED

SERVE = "serve"
"""In a hospital's home."""

IDLE_S = 1.0  # until it is looked again whether there is something to do: a pause and a signal are files
MOST_SENDS = 40
"""Of a result that the PACS does not take: seven hours. Then it waits for a person, and keeps no new study out."""

_LOOK_S = 1.0  # at what was sent
_SIZE_S = 10.0  # how much lies there
_PAUSED = "paused: nothing is fetched, predicted or sent"
log = logging.getLogger(__name__)


def busy(home: Path) -> ConfigError:
    """Another process serves there."""
    return ConfigError(f"another `serve` runs on {home}", do="stop it first")


class Server:
    """What `wardround hospital serve` runs.

    Args:
        hospital: its home is used by this process alone (`serve.lock`).
        stop: ends `run`.
        say: told what happens, a sentence for a person, without a patient in it.
        workers: processes that read files; None: one for each core; 0: none but this one.

    Raises: ConfigError, StorageError.
    """

    def __init__(
        self,
        hospital: Hospital,
        stop: threading.Event,
        say: Callable[[str], None] = lambda line: None,
        workers: int | None = None,
    ) -> None:
        self.hospital, self.stop, self._say = hospital, stop, say
        self.settings, self._pacs = hospital.config.serve, hospital.config.pacs
        check_settings(hospital)
        self._folder = folder = hospital.home / SERVE
        with self._disk(), ExitStack() as opening:
            private_folder(folder)
            for left in folder.glob("fetched/*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            self._fetched = folder / "fetched" / secrets.token_hex(8)
            private_folder(self._fetched.parent)
            private_folder(self._fetched)
            opening.callback(shutil.rmtree, self._fetched, ignore_errors=True)
            logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # it logs what headers hold
            self._pseudonyms, self._rules = Pseudonyms(hospital.patients.key), Rules.of(hospital.config)
            self.queue = Queue(folder / "queue.sqlite")
            opening.callback(self.queue.close)
            self.results = Results(folder / "results", folder / "fhir", self.settings, self._pseudonyms)
            self.results.keep_only({work.key for work in self.queue.unsent()})
            self.models = Models(hospital)
            line = Line(archive_of(self._pacs), self._pacs, hospital.home, self._fetched)
            opening.callback(line.close)
            self._fetching = Fetching(line, self._fetched, self.settings, self._rules)
            self._answering = Answering(hospital, self.queue, self.results, workers)
            opening.callback(self._answering.close)
            self._sending = Sending(hospital, line, self.queue, self.results, self.models)
            self._arrivals = Arrivals(line, self.settings, self._known, self._takes)
            self._received = Received(folder / "received", self.settings, self.queue)
            self._receiver: Receiver | None = None
            self._every_s = self.settings.every_s
            if self._listens:
                self._every_s = min(self._every_s, _LOOK_S)
                self._start_receiver()
            self._open = opening.pop_all()
        # By a clock that nobody sets: when the PACS was asked, and until when it, and the disk, are left alone.
        self._asked, self._sized, self._away, self._stuck = -math.inf, -math.inf, 0.0, 0.0
        self._tries = self._faults = 0
        self._full, self._large, self._closed = "", False, ""
        self._ready: list[Served] = []

    def run(self, *, once: bool = False) -> bool:
        """Step by step until `stop`. once: until nothing more can be done now -> whether everything is done.

        Raises: StorageError.
        """
        try:
            while not self.stop.is_set():
                if not self._stepped(once=once):
                    if once and not self._settles():
                        break
                    self.stop.wait(IDLE_S)
            return self.queue.open() == 0 and not self._away and not self._closed
        finally:
            self.close()

    def _stepped(self, *, once: bool) -> bool:
        """A step; where the disk did not take it, it is tried again later."""
        try:
            done = self.step()
        except StorageError as error:
            if once:
                raise
            self._faults += 1
            if self._faults == 1:
                self._tell(f"{error}; it goes on by itself")
            self._stuck = time.monotonic() + wait_s(self._faults, Trouble("full", ""))
            return False
        if self._faults and done:
            self._faults = 0
            self._tell("the disk takes files again")
        return done

    @property
    def _listens(self) -> bool:
        return self.settings.arrive == "listen"

    def _start_receiver(self) -> None:
        """Raises: ConfigError."""
        self._receiver = Receiver(
            self.settings, self._pacs, self.hospital.home, self._received.folder, self.hospital.patients.key
        )

    def close(self) -> None:
        """End its processes."""
        if self._receiver is not None:
            self._receiver.close()
        self._open.close()

    def step(self) -> bool:
        """One step -> whether there was one to do. Raises: StorageError."""
        with self._disk():
            return self._step()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._folder, error) from None

    def _step(self) -> bool:
        closed, now = self._is_closed(), time.monotonic()
        if self._receiver is not None:
            self._receiver.full(bool(self._full) or closed == _PAUSED)
            self._hear(self._receiver)
        if closed or now < self._stuck:
            return False
        if now < self._away and not self._listens:  # nobody answers: nothing is asked
            return False
        if now >= self._asked + self._every_s:
            self._poll()
            self._asked = time.monotonic()  # its answer may take longer than every_s: then the work comes in between
            return True
        if now < self._away:
            return False
        if (work := self.queue.due("made", time.time())) is not None:
            self._send(work)
            return True
        if (work := self.queue.due("waiting", time.time())) is not None:
            self._predict(work)
            return True
        return False

    def _is_closed(self) -> str:
        """Why nothing is done now, or ""."""
        closed = ""
        if (self.hospital.home / PAUSED).exists():
            closed = _PAUSED
        elif not within(self._pacs.hours, clock()):
            closed = f"it is not within [pacs] hours, {self._pacs.hours}: nothing is fetched, predicted or sent"
        if closed != self._closed:
            self._closed = closed
            self._tell(closed or "going on")
        return closed

    def _settles(self) -> bool:
        settling = self._arrivals.settling or self._received.settling
        return settling and not self._why_full() and not self._away and not self._is_closed()

    # What is new

    def _poll(self) -> None:
        room, full = self._room(), self._why_full()
        if full != self._full:
            self._full = full
            self._tell(f"{full}: nothing more is taken" if full else "there is room again")
        self._ready = self.models.ready()
        if self._listens:
            self._look(room)
            return
        if full:
            return
        try:
            for uid in self._arrivals.poll(room):
                self._add(uid)
            self._answered()
        except TroubleError as error:
            self._troubled(error.trouble)

    def _room(self) -> int:
        """How many studies more are taken."""
        return self.settings.most_waiting - self.queue.open()

    def _why_full(self) -> str:
        """Why nothing more is taken now, or ""."""
        if self._room() <= 0:
            return f"{counted(self.settings.most_waiting, 'study', 'studies')} wait"
        return "" if self._fits() else f"HOME/{SERVE} holds more than {self.settings.gigabytes:g} GB"

    def _fits(self) -> bool:
        if time.monotonic() >= self._sized + _SIZE_S:
            self._large = size_of(self._folder) > self.settings.gigabytes * 1e9
            self._sized = time.monotonic()
        return not self._large

    def _hear(self, receiver: Receiver) -> None:
        for title, why in receiver.refused():
            self.queue.set_aside(title, why)
        if not receiver.alive:  # an object of a stranger may end it
            log.error("the process that listens has died, and is started again")
            receiver.close()
            self._start_receiver()

    def _look(self, room: int) -> None:
        """Into what was sent."""
        models = {served.digest: served.name for served in self._ready}
        for study in self._received.settled(models):
            if not models:
                continue
            if room <= 0:
                self._received.settling = True  # it is taken when there is room
            elif self.queue.add(study, "", models):
                room -= 1
                log.info("a study was sent")

    def _add(self, uid: str) -> None:
        models = {served.digest: served.name for served in self._ready}
        if self.queue.add(self._pseudonyms.study(uid), uid, models):
            log.info("a study has come")

    def _known(self, uid: str) -> bool:
        digests = [served.digest for served in self._ready]
        return not self.queue.unknown(self._pseudonyms.study(uid), digests)

    def _takes(self, modalities: tuple[str, ...]) -> bool:
        return any(served.takes(modalities) for served in self._ready)

    def _answered(self) -> None:
        if self._tries:
            self._tell("the PACS answers again")
        self._tries, self._away = 0, 0.0

    def _troubled(self, trouble: Trouble) -> None:
        """The PACS as a whole: it is left alone for a while."""
        self._tries += 1
        if self._tries == 1:
            self._tell(f"the PACS: {trouble.what}")
        self._away = time.monotonic() + wait_s(self._tries, trouble)

    # A study

    def _predict(self, work: Work) -> None:
        """All models that wait for a study, and may predict, predict for it."""
        ready = {served.digest: served for served in self.models.ready()}
        waiting = [each for each in self.queue.of_study(work.study) if each.state == "waiting"]
        todo = [each for each in waiting if each.model in ready]
        for each in waiting:
            if each not in todo:
                self.queue.becomes(each, "refused", self.models.why_not(each.name))
                self._asked = -math.inf  # another one may be there by that name
        for each in list(todo):
            if each.attempts >= self._pacs.attempts:  # its files may have ended this process each time
                self.queue.becomes(each, "failed", each.reason or "it was begun again and again, and never done")
                todo.remove(each)
            else:
                self.queue.tries(each, each.attempts + 1)
        if not todo:
            return
        try:
            fetched = self._files(work)
            for each in todo:
                self._answering.answer(ready[each.model], each, fetched, self._fetched / "made")
            self._received.drop(work.study)
        except TooLargeError as error:
            for each in todo:
                self.queue.becomes(each, "refused", str(error))
        except TroubleError as error:
            self._put_off(todo, error.trouble)
        except (StorageError, OSError):
            for each in todo:
                self.queue.tries(each, each.attempts)  # it is not to blame
            raise
        self._fetching.empty()

    def _files(self, work: Work) -> Fetched:
        """Raises: TroubleError, TooLargeError, OSError."""
        if not work.uid:
            return Fetched(self._received.files(work.study, self._rules))
        models = [each.model for each in self.queue.of_study(work.study)]
        fetched = self._fetching.study(work.uid, self.results.series(work.study, models))
        self._answered()
        return fetched

    def _put_off(self, todo: Sequence[Work], trouble: Trouble) -> None:
        """The PACS did not give a study, or the disk did not take it."""
        if trouble.kind in ("away", "busy", "refused", "full"):
            for each in todo:
                self.queue.tries(each, each.attempts)  # it is not to blame
            self._check_room(trouble)
            self._troubled(trouble)
            return
        for each in todo:
            if each.attempts + 1 >= self._pacs.attempts:
                self.queue.becomes(each, "failed", trouble.what)
                log.warning("a study is set aside: %s", trouble.what)
            else:
                self.queue.later(each, trouble.what, time.time() + wait_s(each.attempts + 1, trouble))
                log.warning("a study is put off: %s", trouble.what)

    def _check_room(self, trouble: Trouble) -> None:
        if trouble.kind == "full":
            raise StorageError(trouble.what, do=trouble.do)

    # A result

    def _send(self, work: Work) -> None:
        try:
            if not self._sending.send(work):
                self._asked = -math.inf
                return
        except TroubleError as error:
            self._check_room(error.trouble)
            log.warning("a result is not taken: %s", error.trouble.what)
            away = error.trouble.kind in ("away", "busy")
            if work.attempts + 1 >= MOST_SENDS and not away:
                self.queue.becomes(work, "failed", error.trouble.what, patient=work.patient)
                return
            self.queue.later(work, error.trouble.what, time.time() + wait_s(work.attempts + 1, error.trouble))
            if away:
                self._troubled(error.trouble)
            return
        self._answered()
        log.info("a result of %s is in the PACS", work.name)
        self._say(f"a result of {work.name} is in the PACS")

    def _tell(self, line: str) -> None:
        log.info("%s", line)
        self._say(line)


def wait_s(attempt: int, trouble: Trouble) -> float:
    """How long it is left alone after so many attempts: ever longer, and as long as it asks for within reason."""
    return min(LONGEST_WAIT_S, max(trouble.after_s, 2.0 ** min(attempt, 20) * random.uniform(0.5, 1.0)))


def size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    for here, _, names in os.walk(folder):  # what goes meanwhile counts for nothing
        for name in names:
            with suppress(OSError):
                total += Path(here, name).lstat().st_size
    return total
