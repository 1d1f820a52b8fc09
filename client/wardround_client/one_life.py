"""One home, one life: a home that was copied and runs twice, or was restored from an older copy, stops answering.

A ledger that forgot what was spent is a valid ledger (privacy/ledger.py); only somebody outside can know better. The
coordinator tells each hospital, in every request, the last answer that it has of it (`wire.Answered`). The hospital's
ledger wrote a receipt of that answer before it left. Where there is none, another copy gave the answer, or this ledger
is an older one. Then nothing is answered until a person decides (`wardround hospital accept-history`).

Nothing new is told to anybody: the coordinator gets its own words back. One that lies can stop the hospital, no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.accountant import epsilon, rows_for
from wardround.errors import ConfigError, PolicyRefusal, PrivacyError, StorageError
from wardround.files import read_bounded, sync_folder, write_atomically
from wardround.toml import Section, load
from wardround.wire import Answered, RequestHeader
from wardround_client.clock import now
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Adopted

RULE, MARK = "one_life", "stopped.toml"
_LIST_BYTES = 1 << 26
log = logging.getLogger(__name__)


class Stopped(PolicyRefusal):
    """This ledger does not hold an answer that the coordinator has."""

    def __init__(self, home: Path, missing: str) -> None:
        self.rule, self.asked, self.allowed = RULE, "a round", "none until a person at the hospital has decided"
        what = f"this hospital has stopped: the coordinator has an answer that is not in its ledger ({missing})"
        do = f"see whether a copy of it runs or an old one was put back; `wardround hospital accept-history {home}`"
        PrivacyError.__init__(self, what, do=do)


class Mark(Section):
    """stopped.toml. time: UTC. run, round: what was asked. last: the answer that the ledger does not hold."""

    time: str
    run: str
    round: int
    last: Answered

    @property
    def missing(self) -> str:
        """The answer that the ledger does not hold, for a person."""
        return f"run {self.last.run} round {self.last.round}, SHA-256 {self.last.sha256[:12]}"

    def text(self) -> str:
        """As TOML; every value is a plain word or a number."""
        rows = {"time": self.time, "run": self.run, "round": self.round}
        tables = (rows, self.last.model_dump())
        return "\n[last]\n".join("".join(f"{key} = {json.dumps(value)}\n" for key, value in t.items()) for t in tables)


def check(hospital: Hospital, header: RequestHeader) -> None:
    """Look whether this ledger holds the last answer that the coordinator has; else stop, also over a restart.

    Raises:
        Stopped: it does not, or it did not at an earlier request and nobody has decided since.
        StorageError: the ledger cannot be read.
    """
    check_not_stopped(hospital.home)
    last = header.last
    if last is None or hospital.ledger.holds(last.run, last.round, last.sha256):
        return
    mark = Mark(time=now(), run=header.run, round=header.round, last=last)
    try:
        write_atomically(hospital.home / MARK, mark.text().encode())
    except OSError as error:  # the next request will find the same
        log.error("%s cannot be written (%s)", hospital.home / MARK, error.strerror)
    stopped = Stopped(hospital.home, mark.missing)
    log.error("%s", stopped)
    raise stopped


def check_not_stopped(home: Path) -> None:
    """Raises: Stopped, while nobody has decided."""
    if (home / MARK).exists():
        raise Stopped(home, why(home))


def mark_of(home: Path) -> Mark | None:
    """Why this hospital has stopped; None, when it has not. Raises: ConfigError, when it cannot be read."""
    return load(home / MARK, Mark) if (home / MARK).exists() else None


def why(home: Path) -> str:
    """What a stopped hospital misses, for a person; empty, when it has not stopped."""
    try:
        mark = mark_of(home)
    except ConfigError as error:
        return str(error)
    return mark.missing if mark else ""


@dataclass(frozen=True)
class History:
    """What accepting would book. epsilon_before, epsilon_after: of the cohort, at the hospital's delta."""

    adopted: tuple[Adopted, ...]
    epsilon_before: float
    epsilon_after: float


def read_answers(path: Path) -> list[Answered]:
    """The coordinator's list of one hospital's answers (`answers/NAME.jsonl` of its home). Raises: ConfigError."""
    answers = []
    try:
        lines = read_bounded(path, _LIST_BYTES).splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", do="ask the coordinator for it") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            answers.append(Answered.model_validate({key: row[key] for key in Answered.model_fields}))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(
                f"{path} line {number} is not an answer",
                allowed="one JSON object a line, with run, federation, round and sha256",
                do="ask the coordinator for its answers/NAME.jsonl again",
            ) from None
    return answers


def weigh(hospital: Hospital, answers: Sequence[Answered]) -> History:
    """What it means to believe the coordinator's list: every round in it that this ledger does not hold is spent.

    So is each round between the first and the last of these that this ledger did not pay for, because an answer of the
    other copy may have come too late to be in any list. Prices come from the agreements as approved here.

    Raises: ConfigError: the list lacks the answer that this hospital stopped at, or an agreement is not approved here.
    """
    mark, ledger, delta = mark_of(hospital.home), hospital.ledger, hospital.config.delta
    if mark and mark.last not in answers:
        raise ConfigError(
            f"the list does not hold the answer at which this hospital stopped ({mark.missing})",
            do="ask the coordinator for the list as it is now, of this hospital's name",
        )
    paid = {(entry.run, entry.round) for entry in ledger.entries()}
    foreign = [each for each in answers if not ledger.holds(each.run, each.round, each.sha256)]
    adopted: list[Adopted] = []
    for run in dict.fromkeys(each.run for each in foreign):
        theirs = [each for each in foreign if each.run == run]
        listed = {each.round for each in answers if each.run == run}
        last = max(max(listed), mark.round - 1 if mark and mark.run == run else 0)
        unknown = set(range(min(each.round for each in theirs), last + 1)) - listed
        seen = [(each.round, each.sha256) for each in theirs]
        unseen = [(number, "") for number in unknown if (run, number) not in paid]
        adopted += [_priced(hospital, run, theirs[0].federation, *each) for each in sorted(seen + unseen)]
    rows = [row for each in adopted for row in each.rows]
    return History(tuple(adopted), ledger.spent(delta), epsilon([*ledger.history(), *rows], delta))


def _priced(hospital: Hospital, run: str, federation: str, number: int, sha256: str) -> Adopted:
    """Raises: ConfigError."""
    try:
        agreement = hospital.approvals.agreement(federation)
        plan = agreement.schedule[number]
    except (PolicyRefusal, IndexError):
        raise ConfigError(
            f"run {run} round {number} was answered under agreement {federation[:12]}, which is not approved here",
            do="approve that agreement first: it prices the round. Where nobody has it, take no further part",
        ) from None
    return Adopted(run, number, federation, plan.question, rows_for(agreement.calibration, plan), sha256)


def accept(hospital: Hospital, history: History) -> None:
    """Book it, and answer again. Raises: StorageError."""
    ledger = hospital.ledger
    ledger.adopt(history.adopted, coordinator=hospital.config.coordinator.identity, delta=hospital.config.delta)
    try:
        (hospital.home / MARK).unlink(missing_ok=True)
        sync_folder(hospital.home)
    except OSError as error:
        raise StorageError(
            f"{hospital.home / MARK} cannot be removed ({error.strerror})", do="check the disk"
        ) from None
    log.warning("%d rounds of another copy were accepted", len(history.adopted))
