"""A PACS as a source: what is asked of it, what is believed of its answers, and what is done when it gives none."""

from __future__ import annotations

import datetime as dt
import random
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar, TypeVar

from wardround.errors import ConfigError
from wardround.labels import LABEL_KINDS
from wardround.text import counted
from wardround_client.config import Pacs
from wardround_client.intake.gather import OTHER, Examples, lookers
from wardround_client.intake.labels_csv import LabelsCsv
from wardround_client.intake.pacs.archive import UID, Archive, Found
from wardround_client.intake.pacs.hours import within
from wardround_client.intake.pacs.items import FIELDS, WAITS, Arrival, PacsExample, PacsFile, PacsStudy, files_of
from wardround_client.intake.pacs.line import Line
from wardround_client.intake.pacs.plan import Plan
from wardround_client.intake.pacs.secrets import check_files
from wardround_client.intake.pacs.spool import Spool
from wardround_client.intake.pacs.trouble import PacsError, Trouble, TroubleError
from wardround_client.intake.reported import From, check, labelled
from wardround_client.intake.source import Asked, Instance, Item, LabelLine, Rejection, Source

LONGEST_WAIT_S = 300.0
"""A PACS that wants to be left alone for longer is asked again by the next pull."""

MOST_IN_A_ROW = 3
"""So many answers that make no sense, one after the other, end a pull."""

MOST_FOUND = 200_000
"""Objects that one value of a key may name."""

T = TypeVar("T")


@dataclass
class _Series:
    """What is fetched together. answers: to what was asked already. files: what came, by SOP Instance UID."""

    items: list[PacsFile]
    wanted: dict[str, Found]
    answers: Iterator[tuple[str, Path | None]] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)


class PacsSource(Source):
    """What the labels CSV names, and nothing else.

    trouble: why the pull stopped early, or None. unasked: objects that the PACS offered or sent beyond what was asked.
    unaskable: lines of the CSV that cannot be asked for. unanswered: values of the key to which it gave no answer.
    """

    Settings = Pacs
    kind = "image"
    identity = "SOP Instance UID (0008,0018)"
    whole = False
    archive: ClassVar[type[Archive]]

    def __init__(self, asked: Asked, settings: Pacs, labels_from: From | None = None) -> None:
        """Check the CSV. labels_from: it is the worklist only; "sr": structured reports bring the labels; "seg":
        segmentations do. Raises: ConfigError, DataError.
        """
        if asked.labels is None:
            raise ConfigError("a PACS without --labels", do="add --labels labels.csv: it says what is fetched")
        if asked.home is None:
            raise ConfigError("a PACS outside of a hospital's home", do="use `wardround hospital pull`")
        self.name, self._settings, self._home, self._asked = asked.where, settings, asked.home, asked
        self._from = labels_from
        task = check(asked.task, csv=False) if labels_from else asked.task
        self._together = bool(labels_from) or (task is not None and bool(task.dense or task.inputs or task.depth))
        masks = task is not None and task.dense and not LABEL_KINDS[task.labels].places
        # Masks, reports and segmentations bring labels: then the worklist is nothing else, and needs no label column.
        bare = masks or bool(labels_from)
        self._worklist = LabelsCsv.open(
            asked.labels, () if bare else asked.columns, own_issuer=asked.rules.patients.issuer
        )
        self._examples = Examples(task, None if bare else self._worklist)
        self.key, self.label_columns, self.notes = self._examples.key, self._examples.columns, self._examples.notes
        if labels_from and task:
            self.label_columns = (task.label_column,)
        self._readers = lookers()
        check_files(settings, self._home)
        self.trouble: Trouble | None = None
        self.unasked = 0
        self.unaskable: list[int] = []
        self.unanswered: list[Trouble] = []
        self._plan: Plan | None = None
        self._spool: Spool | None = None
        self._broken = 0
        self._shaky = False
        self._known_by: tuple[bytes, bytes] | None = None

    def labels(self) -> Iterator[LabelLine]:
        """The lines of the CSV."""
        return self._examples.labels()

    def items(self) -> Iterator[Item]:
        """What the PACS says it has of the worklist, in the order of the UIDs; study by study, where files belong
        together, and patient by patient, where a report of one study may speak of another's images.
        """
        if self._plan is None:
            self.find()
        if not self._together:
            yield from self._objects()
        else:
            for _, files in groupby(self._objects(), key=self._group):
                yield PacsStudy(tuple(files))

    def _group(self, file: PacsFile) -> str:
        return (self._from and file.found.patient) or file.found.study

    def _objects(self) -> Iterator[PacsFile]:
        assert self._plan is not None
        for found, wanted in self._plan:
            file = PacsFile(self._folder / "-", found=found, key=self._worklist.key, wanted=wanted)
            yield replace(file, rules=self._asked.rules)

    def find(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Ask for each value of the worklist. Raises: PacsError: nobody answers; nothing is lost by that."""
        try:
            self._plan = self._planned(progress)
        except TroubleError as error:
            raise _in_words(error.trouble) from None

    def _planned(self, progress: Callable[[int, int], None]) -> Plan:
        values = self._values()
        plan = Plan(self._folder / "plan.sqlite")
        for done, value in enumerate(values):
            self._check_hours()
            progress(done, len(values))
            try:
                self._persistently(lambda value=value: self._find(plan, value))  # type: ignore[misc]
            except TroubleError as error:
                if error.trouble.kind != "broken" or self._broken >= MOST_IN_A_ROW:
                    raise
                self.unanswered.append(error.trouble)
        progress(len(values), len(values))
        return plan

    def _values(self) -> list[str]:
        """The values to ask for, each once. A wildcard would ask for everybody (PS3.4 C.2.2.2.4)."""
        values: dict[str, None] = {}
        self.unaskable = []
        for line in self._worklist.lines():
            uid = self._worklist.key.endswith("UID")
            fits = UID.fullmatch(line.value) if uid else re.fullmatch(r"[^*?\\\x00-\x1f]{1,64}", line.value)
            if line.value and fits:
                values[line.value] = None
            elif line.value:
                self.unaskable.append(line.line)
        return list(values)

    def _find(self, plan: Plan, value: str) -> None:
        for number, found in enumerate(self._line.ask("find", self._worklist.key, value)):
            if number >= MOST_FOUND:
                raise TroubleError(Trouble("broken", f"the PACS offers more than {MOST_FOUND:,} images for one key"))
            named = getattr(found, FIELDS[self._worklist.key]).strip(" \0") == value
            if named and all(UID.fullmatch(uid) for uid in found[:3]):
                plan.add(found, value)
            else:
                self.unasked += 1

    def patient(self, item: Item) -> str:
        """As the PACS says."""
        return next((file.found.patient for file in files_of(item)), "")

    def fetched(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items with their files in the spool, a series at a time; the next one comes while these are read."""
        if not self._together:
            yield from self._fetched(file for item in items for file in files_of(item))
            return
        for study in items:
            files = list(self._fetched(iter(files_of(study))))
            looks = self._readers.outcomes(Arrival(file) for file in files)
            refused = {look.name: why for look, why in looks if why != OTHER and isinstance(why, Rejection)}
            # Half of a volume, or an image without one of its reports, would be another example.
            waits = [PacsExample(file, refused.get(file.name, WAITS)) for file in files]
            *made, last = waits if refused else self._made(files)
            yield from made
            yield replace(last, whole=PacsStudy(tuple(files)))

    def _made(self, files: Sequence[PacsFile]) -> list[PacsExample]:
        """What the task makes of files that belong together."""
        task, examples = self._asked.task, Examples(self._asked.task, self._examples.csv)
        if self._from and task:
            return [*map(PacsExample, labelled(files, task, self._from, examples.of_files, self._readers))]
        return [*map(PacsExample, examples.of_files(files, self._readers))]

    def _fetched(self, files: Iterator[PacsFile]) -> Iterator[PacsFile]:
        ready: list[PacsFile] = []
        for _, grouped in groupby(files, key=lambda file: file.found[:2]):
            group = list(grouped)
            series = _Series(group, {file.found.instance: file.found for file in group})
            if not self._stopped():
                self._begin(series)  # it is sent while what came before is read
            yield from ready
            ready = self._completed(series)
        yield from ready

    def _begin(self, series: _Series) -> None:
        assert self._plan is not None
        whole = self._plan.in_series(series.items[0].found) == len(series.wanted) > 1
        series.answers = self._line.ask("fetch", list(series.wanted.values()), self._folder, whole=whole)

    def _completed(self, series: _Series) -> list[PacsFile]:
        """Its items, with their files or with the reason why there is none."""
        why = self.trouble.what if self.trouble else ""
        if series.answers is not None:
            try:
                self._persistently(lambda: self._receive(series))
            except TroubleError as error:
                why = error.trouble.what
                if error.trouble.kind not in ("broken", "absent") or self._broken >= MOST_IN_A_ROW:
                    self.trouble = error.trouble
        made: list[PacsFile] = []
        for item in series.items:
            path = series.files.get(item.found.instance)
            if path and made and made[-1].found == item.found:  # two lines of the worklist name it
                path = Path(shutil.copy(path, path.with_name(secrets.token_hex(8))))
            made.append(replace(item, path=path) if path else replace(item, unreadable=why or "it has no such object"))
        return made

    def _receive(self, series: _Series) -> None:
        """Take what was asked for; what is still missing after the first answer is asked for one by one."""
        answers, series.answers = series.answers, None
        if answers is None:
            missing = [found for uid, found in series.wanted.items() if uid not in series.files.keys() | series.absent]
            answers = self._line.ask("fetch", missing, self._folder, whole=False)
        for uid, path in answers:
            if path is None:
                series.absent.add(uid)
            elif uid in series.wanted and uid not in series.files:
                series.files[uid] = path
            else:
                path.unlink()
                self.unasked += 1
        if len(series.files.keys() | series.absent) < len(series.wanted):
            raise TroubleError(Trouble("broken", "the PACS ended its answer before everything was sent"))

    def _stopped(self) -> bool:
        """Whether nothing more is fetched."""
        if self.trouble is None:
            try:
                self._check_hours()
            except TroubleError as error:
                self.trouble = error.trouble
        return self.trouble is not None

    def _persistently(self, ask: Callable[[], T]) -> T:
        """Ask again where that may help, ever more slowly. Raises: TroubleError."""
        for attempt in range(1, self._settings.attempts + 1):
            try:
                answer = ask()
            except TroubleError as error:
                trouble = error.trouble
                if trouble.kind == "broken" and attempt == self._settings.attempts:
                    self._broken += 1
                if trouble.kind in ("refused", "absent", "full") or attempt == self._settings.attempts:
                    raise
                if trouble.after_s > LONGEST_WAIT_S:
                    raise
                pause(max(trouble.after_s, min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0)))
            else:
                self._broken = 0
                return answer
        raise AssertionError("attempts are at least 1")

    def _check_hours(self) -> None:
        now = clock()
        if not within(self._settings.hours, now):
            raise TroubleError(
                Trouble(
                    "away",
                    f"it is {now:%H:%M}, and the PACS may be asked {self._settings.hours} only",
                    "run `pull` again in these hours; it goes on where it stopped",
                )
            )

    def known_by(self, item: Item, outcome: Instance | Rejection, *, stored: bool) -> tuple[bytes, bytes] | None:
        """A study by any of its examples; not where one could not be read this time."""
        by = super().known_by(item, outcome, stored=stored)
        if not isinstance(item, PacsExample):
            return by
        self._shaky = self._shaky or (isinstance(outcome, Rejection) and outcome.passing)
        self._known_by = by or self._known_by
        if item.whole is None:
            return None
        by, self._shaky, self._known_by = None if self._shaky else self._known_by, False, None
        return by

    def done(self, item: Item) -> None:
        """It was read, and what could be stored is stored: the files go that nothing else is made of."""
        for file in files_of(item):
            if not file.unreadable:
                file.path.unlink(missing_ok=True)

    def ended(self) -> None:
        """Raises: PacsError, where the PACS did not answer everything; what it gave is in the cohort."""
        if self.trouble is not None:
            raise _in_words(self.trouble)
        if self.unanswered:
            raise PacsError(
                f"the PACS gave no answer to {counted(len(self.unanswered), 'key')} of the worklist: "
                f"{self.unanswered[0].what}",
                do="pull again; what was fetched is in the cohort and is not fetched again",
            )

    def close(self) -> None:
        """End the processes that talk to the PACS and look into files, and leave nothing in the spool."""
        self._readers.close()
        if self._plan is not None:
            self._plan.close()
        if self._spool is not None:
            self._line.close()
            self._spool.close()
        self._plan = self._spool = None

    @property
    def _folder(self) -> Path:
        if self._spool is None:
            self._spool = Spool(self._home)
            self._line = Line(self.archive, self._settings, self._home, self._spool.folder)
        return self._spool.folder


def who_answers(archive: type[Archive], settings: Pacs, home: Path) -> str:
    """Ask a PACS for nothing. Raises: ConfigError, PacsError, StorageError."""
    check_files(settings, home)
    with closing(Spool(home)) as spool, closing(Line(archive, settings, home, spool.folder)) as line:
        try:
            return ", ".join(line.ask("check"))
        except TroubleError as error:
            raise _in_words(error.trouble) from None


def _in_words(trouble: Trouble) -> PacsError:
    return PacsError(trouble.what, do=trouble.do or "pull again; what is in the cohort is not fetched again")


def pause(seconds: float) -> None:
    """Wait before asking again."""
    time.sleep(seconds)


def clock() -> dt.time:
    """The time of the day."""
    return dt.datetime.now().time()
