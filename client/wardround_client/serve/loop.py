"""One step after another, until told to stop: ask for what is new, fetch and predict a study, send a result.

What a step has done is on the disk before the next one begins.
"""

from __future__ import annotations

import logging
import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from wardround.errors import ConfigError, WardroundError
from wardround.files import cannot_write, private_folder
from wardround.text import counted
from wardround_client.config import Pacs
from wardround_client.hospital import Hospital
from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.pacs.archive import UID, Archive, Found
from wardround_client.intake.pacs.hours import within
from wardround_client.intake.pacs.line import Line
from wardround_client.intake.pacs.secrets import check_files
from wardround_client.intake.pacs.source import clock
from wardround_client.intake.pacs.trouble import Trouble, TroubleError
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import SOURCES, Rejection, Rules
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.intake.workers import Readers
from wardround_client.serve.arrivals import Arrivals
from wardround_client.serve.models import Models, Served
from wardround_client.serve.predicted import Predicted, predicted, withdrew
from wardround_client.serve.queue import Queue, Work
from wardround_client.serve.received import Received
from wardround_client.serve.receiver import Receiver
from wardround_client.serve.results import Results
from wardround_client.serve.study import read_study
from wardround_client.service.control import PAUSED

SERVE = "serve"
"""In a hospital's home."""

IDLE_S = 1.0  # until it is looked again whether there is something to do: a pause and a signal are files
LONGEST_WAIT_S = 900.0
"""Between two tries of what the PACS does not answer."""

_LOOK_S = 1.0  # at what was sent

GONE = "the model is here no more"
log = logging.getLogger(__name__)


def busy(home: Path) -> ConfigError:
    """Another process serves there."""
    return ConfigError(f"another `serve` runs on {home}", do="stop it first")


class TooLargeError(Exception):
    """A study is larger than hospital.toml allows."""


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
        self.hospital, self.stop, self._say, self._workers = hospital, stop, say, workers
        self.settings, self._pacs = hospital.config.serve, hospital.config.pacs
        check_settings(hospital)
        self._open = ExitStack()
        folder = hospital.home / SERVE
        try:
            private_folder(folder)
            for left in folder.glob("fetched/*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            self._fetched, self._folder = folder / "fetched" / secrets.token_hex(8), folder
            private_folder(self._fetched.parent)
            private_folder(self._fetched)
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._open.callback(shutil.rmtree, self._fetched, ignore_errors=True)
        logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # it logs what headers hold
        self._pseudonyms = Pseudonyms(hospital.patients.key)
        self._rules = Rules.of(hospital.config)
        self.queue = Queue(folder / "queue.sqlite")
        self._open.callback(self.queue.close)
        self.results = Results(folder / "results", folder / "fhir", self.settings, self._pseudonyms)
        self.results.keep_only({work.key for work in self.queue.in_state("made")})
        self.models = Models(hospital)
        self._readers: dict[str, Readers] = {}
        self._line = Line(archive_of(self._pacs), self._pacs, hospital.home, self._fetched)
        self._open.callback(self._line.close)
        self._arrivals = Arrivals(self._line, self.settings, self._known, self._takes)
        self._received = Received(folder / "received", self.settings, self.queue)
        self._receiver: Receiver | None = None
        self._every_s = self.settings.every_s
        if self._listens:
            self._every_s = min(self._every_s, _LOOK_S)
            self._start_receiver()
        self._asked, self._refused, self._full, self._away = 0.0, 0, False, 0.0
        self._tries = 0
        self._was_paused = False
        self._ready: list[Served] = []

    def run(self, *, once: bool = False) -> bool:
        """Step by step until `stop`. once: until nothing more can be done now -> whether everything is done.

        Raises: StorageError.
        """
        try:
            while not self.stop.is_set():
                if not self.step():
                    if once and not self._settles():
                        break
                    self.stop.wait(IDLE_S)
            return self.queue.open() == 0 and not self._away
        finally:
            self.close()

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
        for readers in self._readers.values():
            readers.close()
        self._open.close()

    def step(self) -> bool:
        """One step -> whether there was one to do. Raises: StorageError."""
        paused, now = self._paused(), time.time()
        if self._receiver is not None:
            self._receiver.full(paused or self._full)
        if paused or not within(self._pacs.hours, clock()):
            return False
        if now < self._away and not self._listens:  # nobody answers: nothing is asked
            return False
        if now >= self._asked + self._every_s or now < self._asked:
            self._asked = now
            self._poll()
            return True
        if now < self._away:
            return False
        if (work := self.queue.due("made", now)) is not None:
            self._send(work)
            return True
        if (work := self.queue.due("waiting", now)) is not None:
            self._predict(work)
            return True
        return False

    def _paused(self) -> bool:
        paused = (self.hospital.home / PAUSED).exists()
        if paused != self._was_paused:
            self._was_paused = paused
            self._tell("paused: nothing is fetched, predicted or sent" if paused else "going on")
        return paused

    def _settles(self) -> bool:
        return (
            (self._arrivals.settling or self._received.settling)
            and not self._full
            and not self._away
            and not self._paused()
        )

    # What is new

    def _poll(self) -> None:
        room = self.settings.most_waiting - self.queue.open()
        full = "" if room > 0 else f"{counted(self.settings.most_waiting, 'study', 'studies')} wait"
        if not full and size_of(self._folder) > self.settings.gigabytes * 1e9:
            full = f"HOME/{SERVE} holds more than {self.settings.gigabytes:g} GB"
        if bool(full) != self._full:
            self._tell(f"{full}: nothing more is taken" if full else "there is room again")
        self._full = bool(full)
        if self._listens:
            self._look(full)
            return
        if full:
            return
        self._ready = self.models.ready()
        try:
            for uid in self._arrivals.poll(room):
                self._add(uid)
            self._answered()
        except TroubleError as error:
            self._troubled(error.trouble)

    def _look(self, full: str) -> None:
        """Into what was sent."""
        assert self._receiver is not None
        for title, why in self._receiver.refused():
            self.queue.set_aside(title, why)
        if not self._receiver.alive:  # an object of a stranger may end it
            log.error("the process that listens has died, and is started again")
            self._receiver.close()
            self._start_receiver()
        models = {served.digest: served.name for served in self.models.ready()}
        for study in self._received.settled() if models and not full else ():
            if self.queue.add(study, "", models):
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
        self._away = time.time() + wait_s(self._tries, trouble)

    # A study

    def _predict(self, work: Work) -> None:
        """All models that wait for a study, and may predict, predict for it."""
        ready = {served.digest: served for served in self.models.ready()}
        waiting = [each for each in self.queue.of_study(work.study) if each.state == "waiting"]
        todo = [each for each in waiting if each.model in ready]
        for each in waiting:
            if each not in todo:
                why = self.models.trouble.get(each.name, "")
                self.queue.becomes(each, "refused", (why and f"the model may not predict: {why}"[:500]) or GONE)
        for each in list(todo):
            if each.attempts >= self._pacs.attempts:  # its files may have ended this process each time
                self.queue.becomes(each, "failed", each.reason or "it was begun again and again, and never done")
                todo.remove(each)
            else:
                self.queue.tries(each, each.attempts + 1)
        if not todo:
            return
        try:
            try:
                files = self._fetch(work.uid) if work.uid else self._received.files(work.study, self._rules)
            except TooLargeError as error:
                for each in todo:
                    self.queue.becomes(each, "refused", str(error))
                return
            if work.uid:
                self._answered()
            for each in todo:
                try:
                    with quiet():  # pydicom logs what headers hold
                        self._predict_by(ready[each.model], each, files)
                except WardroundError:
                    raise
                except Exception as error:  # of one study: it must not end the others'
                    log.error("a study is not answered: %s", type(error).__name__)
                    self.queue.becomes(each, "refused", f"it cannot be predicted ({type(error).__name__})")
            self._received.drop(work.study)
        except TroubleError as error:
            self._put_off(todo, error.trouble)
        finally:
            self._empty()

    def _fetch(self, uid: str) -> list[DicomFile]:
        """The files of a study, in HOME/serve/fetched. Raises: TroubleError, TooLargeError."""
        self._empty()
        most, size = self.settings.greatest_study_mb * 1_000_000, 0
        found: dict[str, Found] = {}
        for each in self._line.ask("find", "StudyInstanceUID", uid):
            if each.study == uid and UID.fullmatch(each.series) and UID.fullmatch(each.instance):
                found[each.instance] = each
            if len(found) > self.settings.greatest_objects:
                raise TooLargeError(f"it has more than {self.settings.greatest_objects} objects")
        if not found:  # it stands in the list of studies before its objects do
            raise TroubleError(Trouble("broken", "the PACS lists no object of the study"))
        study = self._pseudonyms.study(uid)
        ours = self.results.series(study, [each.model for each in self.queue.of_study(study)])
        by_series: dict[str, list[Found]] = {}
        for each in found.values():
            if each.series not in ours and is_image(each.sop_class):
                by_series.setdefault(each.series, []).append(each)
        files: list[DicomFile] = []
        for series in by_series.values():
            wanted = {each.instance for each in series}
            for whole in (True, False) if len(series) > 1 else (False,):  # what is still missing, one by one
                missing = [each for each in series if each.instance in wanted]
                for instance, path in self._line.ask("fetch", missing, self._fetched, whole=whole) if missing else ():
                    known = instance in wanted
                    wanted.discard(instance)
                    if path is None:
                        continue
                    if not known:
                        path.unlink()
                        continue
                    size += path.stat().st_size
                    if size > most:
                        raise TooLargeError(f"it has more than {self.settings.greatest_study_mb} MB")
                    files.append(DicomFile(path, rules=self._rules))
            if wanted:  # half of a volume would be another example
                raise TroubleError(Trouble("broken", "the PACS ended its answer before everything was sent"))
        return files

    def _predict_by(self, served: Served, work: Work, files: Sequence[DicomFile]) -> None:
        models = [each.model for each in self.queue.of_study(work.study)]
        readers = self._readers_of(served)
        scratch = self._fetched / "made"
        ours = self.results.series(work.study, models)
        study = read_study(work.uid, files, readers, self._rules.select, ours)
        found: Predicted | Rejection
        if isinstance(study, Rejection):
            found = study
        else:
            withdrawn = self.hospital.patients.register.read()
            found = predicted(
                served, study, self._rules, readers, scratch, withdrawn, pictures="heatmap" in self.settings.write
            )
        if isinstance(found, Predicted):
            why = self.results.make(found, work.study, work.key)
            if why is None:
                self.queue.becomes(work, "made", patient=found.patient)
                return
            found = why
        self.queue.becomes(work, "refused", found.reason)
        log.info("a study is not answered by %s: %s", served.name, found.reason)

    def _readers_of(self, served: Served) -> Readers:
        if served.digest not in self._readers:
            for readers in self._readers.values():  # one model's at a time: each has processes
                readers.close()
            self._readers = {served.digest: Readers(served.predictor.recipe, self._pseudonyms, self._workers)}
        return self._readers[served.digest]

    def _put_off(self, todo: Sequence[Work], trouble: Trouble) -> None:
        """The PACS did not give a study."""
        if trouble.kind in ("away", "busy", "refused"):
            for each in todo:
                self.queue.tries(each, each.attempts)  # it is not to blame
            self._troubled(trouble)
            return
        for each in todo:
            if each.attempts + 1 >= self._pacs.attempts:
                self.queue.becomes(each, "failed", trouble.what)
                log.warning("a study is set aside: %s", trouble.what)
            else:
                self.queue.later(each, trouble.what, time.time() + wait_s(each.attempts + 1, trouble))

    def _empty(self) -> None:
        private_folder(self._fetched)
        for path in self._fetched.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    # A result

    def _send(self, work: Work) -> None:
        if (why := self._may_not_go(work)) is not None:
            self.queue.becomes(work, "refused", why)
            self.results.drop(work.key)
            return
        files = self.results.of(work.key)
        if not files and self.settings.write != ("fhir",):  # somebody removed them: again, under the same UIDs
            self.queue.becomes(work, "waiting")
            return
        try:
            if files:
                confirmed = set(self._line.ask("store", files))
                if len(confirmed) < len(files):
                    raise TroubleError(Trouble("broken", "the PACS did not say that it has everything"))
        except TroubleError as error:
            trouble = error.trouble
            log.warning("a result is not taken: %s", trouble.what)
            self.queue.later(work, trouble.what, time.time() + wait_s(work.attempts + 1, trouble))
            if trouble.kind in ("away", "busy"):
                self._troubled(trouble)
            return
        self._answered()
        self.queue.becomes(work, "sent")
        self.results.drop(work.key)
        log.info("a result of %s is in the PACS", work.name)
        self._say(f"a result of {work.name} is in the PACS")

    def _may_not_go(self, work: Work) -> str | None:
        """Somebody may have withdrawn since it was made: the patient, or one whom the model learned from."""
        if withdrew(work.patient, self.hospital.patients.register.read()):
            return "the patient has withdrawn"
        if any(served.digest == work.model for served in self.models.ready()):
            return None
        why = self.models.trouble.get(work.name, "")
        return f"the model may not predict: {why}"[:500] if why else GONE

    def _tell(self, line: str) -> None:
        log.info("%s", line)
        self._say(line)


def archive_of(pacs: Pacs) -> type[Archive]:
    """The protocol that [pacs] names."""
    archive: type[Archive] = SOURCES["dicomweb" if pacs.url else "dimse"].archive  # type: ignore[attr-defined]
    return archive


def check_settings(hospital: Hospital) -> None:
    """Before anything is opened. Raises: ConfigError."""
    path, serve, pacs = hospital.home / "hospital.toml", hospital.config.serve, hospital.config.pacs
    if not serve.on:
        raise ConfigError(
            f"{path}: this hospital has not switched `serve` on",
            do="read docs/how-to/studies.md; then write on = true and models = [...] under [serve]",
        )
    if bool(pacs.url) == bool(pacs.address):
        raise ConfigError(
            f"{path}: [pacs] names {'url and address' if pacs.url else 'no PACS'}",
            allowed="url of its DICOMweb service, or address (host:port) of its DIMSE service",
            do="write one of the two",
        )
    check_files(pacs, hospital.home)
    if serve.arrive == "listen" and not (serve.listen and serve.callers):
        raise ConfigError(
            f'{path}: [serve] arrive = "listen" without listen or callers',
            do='write listen = "127.0.0.1:11113", say, and callers = ["PACS"]',
        )
    if serve.arrive == "listen" and pacs.tls and not (pacs.ca_file and pacs.certificate_file and pacs.key_file):
        raise ConfigError(
            f'{path}: [serve] arrive = "listen" with [pacs] tls, and no certificate',
            do="write ca_file, certificate_file and key_file under [pacs]",
        )


def is_image(sop_class: str) -> bool:
    """Whether a SOP class may be of images: reports and segmentations are not fetched. "" is not known."""
    return not sop_class.startswith(_NO_IMAGES)


_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGES = tuple(f"{_STORAGE}{part}." for part in ("11", "66", "67", "88", "104", "9", "481.3"))
"""Presentation states, segmentations and registrations, value maps, reports, documents, waveforms (PS3.4 B.5)."""


def wait_s(attempt: int, trouble: Trouble) -> float:
    """How long it is left alone after so many attempts: ever longer, and as long as it asks for within reason."""
    return min(LONGEST_WAIT_S, max(trouble.after_s, 2.0 ** min(attempt, 20) * random.uniform(0.5, 1.0)))


def size_of(folder: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total
