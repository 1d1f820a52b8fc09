"""What happens in a run, as frozen values. As JSON they are the lines of a run's events.jsonl.

    run                        RunStarted, then RunEnded or RunFailed
    before a round             Waiting, then Proceeding where somebody is missing still
    each round                 RoundEnded, or RoundMissed, which ends the run
    a simulation with --audit  Attacked, once an attack

Files of earlier versions are read too: what they do not hold has a default, and a value of another type than it should
have is passed over. Fields that are not declared here are kept.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wardround.errors import DataError

Numbers = Mapping[str, float | None]
"""By hospital; None where it is not known."""

LATE = "no reply within"
"""How the reason begins why a hospital that said nothing before the deadline did not count."""


class Event(BaseModel):
    """event: its kind. time: UTC, ISO 8601; "" where nobody noted it. privacy: "OFF" for exact answers."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="null")

    event: str = ""
    time: str = ""
    privacy: Literal["ON", "OFF"] = "ON"

    def stamped(self) -> Self:
        """The same with the time of now."""
        return self.model_copy(update={"time": datetime.now(UTC).isoformat(timespec="seconds")})

    def line(self) -> str:
        """One line of JSON, without its end."""
        return json.dumps(self.model_dump(mode="json"))


class Registered(BaseModel):
    """A hospital that may take part. delta: of its promise to patients; None: just below 1 / (10 declared patients)."""

    model_config = ConfigDict(frozen=True)

    declared_patients: int | None = None
    delta: float | None = None


class RunStarted(Event):
    """hospitals: those connected. registered: those that may take part; empty where nobody registers.

    liars_borne: how many of the hospitals that are connected may lie without moving the model far; see `aggregate`.
    versions: of what runs.
    """

    event: Literal["start"] = "start"
    run: str = ""
    federation: str = ""
    digest: str = ""
    from_round: int = 0
    rounds: int = 0
    quorum: int = 0
    hospitals: tuple[str, ...] = ()
    registered: Mapping[str, Registered] = Field(default_factory=dict)
    rule: str = "mean"
    liars_borne: int = 0
    versions: Mapping[str, str] = Field(default_factory=dict)


class Waiting(Event):
    """Some are not connected. missing: who, as far as is known. seconds: how long they are waited for, at most."""

    event: Literal["waiting"] = "waiting"
    round: int = 0
    quorum: int = 0
    missing: tuple[str, ...] = ()
    seconds: float = 0.0


class Proceeding(Event):
    """The waiting is over. absent: who is missing still; a quorum is there."""

    event: Literal["proceeding"] = "proceeding"
    round: int = 0
    absent: tuple[str, ...] = ()


class _Asked(Event):
    """question: its name. trains: whether it moves the model. hospitals: how many were asked. replied: how many
    answered usably.

    absent: who is registered and was not connected. rejected: hospital -> why its answer was not used.
    clipped: hospital -> the factor by which its answer was shortened. declared_patients: of those whose answer counts.
    """

    round: int = 0
    question: str = "gradient"
    trains: bool = True
    hospitals: int = 0
    replied: int = 0
    absent: tuple[str, ...] = ()
    rejected: Mapping[str, str] = Field(default_factory=dict)
    clipped: Mapping[str, float] = Field(default_factory=dict)
    declared_patients: Mapping[str, int | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _trains_by_its_name(cls, line: Any) -> Any:
        """Version 0.1 gave the question's name only."""
        if isinstance(line, Mapping) and "trains" not in line:
            return {**line, "trains": line.get("question", "gradient") in ("gradient", "episode_gradient")}
        return line


class RoundEnded(_Asked):
    """A round that counts.

    rounds: of the run, in all. epsilon: hospital -> what the run has cost it so far. epsilon_max: the greatest of them.
    delta_norm: L2 norm of the mean delta. accuracy, balanced_accuracy in [0, 1]: None where nothing was measured.
    score: what `accuracy` and `accuracy_by_hospital` are, for a reader, as the kind of labels says.
    balance: the share of each class, by noised counts; where they were asked for.
    answers: hospital -> SHA-256 of its answer, of which its ledger holds a receipt.
    apart: hospital -> how far its delta lay from what was made of all, in units of the median hospital.
    training_round: in a simulation, how many training rounds there were, with this one.
    """

    event: Literal["round"] = "round"
    rounds: int = 0
    epsilon_max: float | None = None
    epsilon: Mapping[str, float] = Field(default_factory=dict)
    delta_norm: float | None = None
    score: str = "accuracy"
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    accuracy_by_hospital: Numbers = Field(default_factory=dict)
    balance: tuple[float, ...] = ()
    apart: Mapping[str, float] = Field(default_factory=dict)
    answers: Mapping[str, str] = Field(default_factory=dict)
    training_round: int | None = None
    seconds: float = 0.0


class RoundMissed(_Asked):
    """A round without enough good answers: the run ends here, and goes on with this round when it is resumed."""

    event: Literal["missed"] = "missed"


class RunFailed(Event):
    """error: name of a class of wardround.errors. message: what it says. exit_code: of the command."""

    event: Literal["failed"] = "failed"
    run: str = ""
    error: str = ""
    message: str = ""
    exit_code: int = 1


class RunEnded(Event):
    """The last round is done. seconds, comparison, versions, report: of a simulation."""

    event: Literal["done"] = "done"
    run: str = ""
    rounds: int = 0
    checkpoint: str = ""
    report: str = ""
    seconds: float = 0.0
    comparison: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)


class Attacked(Event):
    """What an attack of a simulation found. event: "membership" or "audit". file: where all of it stands."""

    event: Literal["membership", "audit"]
    file: str = ""


_KINDS: Mapping[str, type[Event]] = {
    "start": RunStarted,
    "waiting": Waiting,
    "proceeding": Proceeding,
    "round": RoundEnded,
    "missed": RoundMissed,
    "failed": RunFailed,
    "done": RunEnded,
    "membership": Attacked,
    "audit": Attacked,
}


def parsed(line: Mapping[str, Any]) -> Event:
    """An event from a line's JSON object; a field of another type than it should have is passed over."""
    kind = _KINDS.get(str(line.get("event")), Event)
    try:
        return kind.model_validate(line)
    except ValidationError as error:
        odd = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
        return kind.model_validate({key: value for key, value in line.items() if key not in odd})


def whole_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, Event]]:
    """(byte after it, event) for each line from `offset` that is written to its end; none where there is no file.

    Raises: DataError, when a line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # a process that was killed wrote it
                return
            offset += len(line)
            if not line.strip():
                continue
            try:
                event = parsed(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise DataError(f"{path}, line {number} is not JSON", do="restore it, or remove the line") from None
            yield offset, event


def versions() -> dict[str, str]:
    """What runs here."""
    names = ("wardround", "flwr", "torch", "opacus", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
