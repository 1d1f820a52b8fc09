"""`wardround coordinator check`: whether a run of an agreement can succeed, before anybody pays for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.config import Federation, load_federation
from wardround.errors import QuorumMissed, WardroundError
from wardround.terminal import Fields, Table, emit, say, show
from wardround.text import counted
from wardround_server.answers import AnswerBook
from wardround_server.commands._common import HomeArgument
from wardround_server.events import Event, RoundEnded, RoundMissed, RunStarted, whole_lines
from wardround_server.home import Home
from wardround_server.hospitals import LastSeen, Member, Registry
from wardround_server.office.hospitals import in_words, seen_nodes
from wardround_server.sinks.jsonl import FILE as EVENTS

if TYPE_CHECKING:
    from wardround.schedule import Schedule


def check(
    home: HomeArgument,
    federation: Annotated[Path, typer.Argument(help="The agreement: federation.toml.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show who is connected and has approved, and what a run would cost. Nobody is asked and nothing is spent.

    The coordinator knows an approval by an answer only: "not known" may well be a hospital that has approved. What a
    hospital has left to spend is its own secret; `wardround hospital approve` shows it there. The noise on a sum is as
    large as so many patients: with not many more of them than that, nothing is learned.

    Ends with 6 while fewer hospitals are connected than the agreement's quorum.
    """
    agreement = load_federation(federation)
    coordinator = Home(home)
    coordinator.config()
    seen = seen_nodes(coordinator)
    from wardround.schedule import Schedule

    schedule = Schedule.of(agreement)
    members, past = list(Registry(home)), _Past(coordinator, agreement.digest)
    rows = [_hospital(member, seen, past, agreement, schedule) for member in members]
    asked = _run(agreement, schedule, federation.parent)
    online = sum(row["online"] for row in rows)
    if as_json:
        emit(event="check", **asked, hospitals=rows, online=online)
    else:
        say(f"Agreement {agreement.digest}")
        show(Fields({name.replace("_", " "): str(each) for name, each in asked.items() if name != "agreement"}))
        columns = ("hospital", "status", "approved", ">patients", ">noise", ">epsilon so far")
        names = ("hospital", "status", "approved", "declared_patients", "noise", "epsilon_so_far")
        show(Table(columns, [[str(row[name]) for name in names] for row in rows], caption="noise: in patients"))
    if online < agreement.rounds.quorum:
        raise QuorumMissed(
            f"connected: {online} of {counted(len(members), 'registered hospital')}",
            allowed=f"a quorum of {agreement.rounds.quorum}",
            do="start the other hospitals' daemons, or agree on a smaller rounds.quorum",
        )


class _Past:
    """What earlier runs say of the hospitals."""

    def __init__(self, coordinator: Home, digest: str) -> None:
        self._book = AnswerBook.of_home(coordinator.folder, Registry(coordinator.folder))
        self._digest = digest
        self.spent: Counter[str] = Counter()
        self._refused: dict[str, str] = {}
        for file in sorted((coordinator.folder / "runs").glob(f"*/{EVENTS}")):
            self._read([event for _, event in whole_lines(file)])

    def approved(self, hospital: str) -> str:
        """Whether it has approved the agreement, as far as its answers tell."""
        answers = [answered for answered in self._book.of(hospital) if answered.federation == self._digest]
        if answers:
            return f"yes: answered round {answers[-1].round} of run {answers[-1].run}"
        return f"no: {self._refused[hospital]}" if hospital in self._refused else "not known"

    def _read(self, events: list[Event]) -> None:
        rounds = [event for event in events if isinstance(event, RoundEnded | RoundMissed)]
        last = next((event for event in reversed(rounds) if isinstance(event, RoundEnded)), None)
        self.spent.update(dict(last.epsilon) if last else {})
        if rounds and any(isinstance(event, RunStarted) and event.digest == self._digest for event in events):
            self._refused |= dict(rounds[-1].rejected)


def _hospital(
    member: Member, seen: dict[int, LastSeen], past: _Past, agreement: Federation, schedule: Schedule
) -> dict[str, Any]:
    node = seen.get(member.node_id or 0)
    delta = member.delta or 1 / (10 * member.declared_patients + 1)
    return {
        "hospital": member.name,
        "status": in_words(node),
        "online": node is not None and node.status == "online",
        "approved": past.approved(member.name),
        "declared_patients": member.declared_patients,
        "delta": f"{delta:.1e}",
        "noise": _noise(agreement, schedule, member.declared_patients, delta),
        "epsilon_so_far": round(past.spent[member.name], 3),
    }


def _noise(agreement: Federation, schedule: Schedule, declared: int, delta: float) -> str:
    """How much noise its answers need, in patients: a mean over fewer than that is mostly noise."""
    from wardround.accountant import calibrate

    try:
        found = calibrate(schedule, agreement.privacy, declared_patients=declared, delta=delta)
    except WardroundError as error:
        return f"does not fit: {error.what}"
    sigma = max(found.noise_multiplier(plan.question) for plan in schedule.rounds if plan.trains)
    return f"{sigma:.1f}"


def _run(agreement: Federation, schedule: Schedule, base: Path) -> dict[str, str | int | float]:
    """What is asked, and what it costs."""
    from wardround.models import build_model
    from wardround.wire import reply_bytes, request_bytes

    model = agreement.algorithm.extended(build_model(agreement, base))
    leaves = sum(map(reply_bytes, schedule.answer_sizes(agreement, model)))
    comes = len(schedule) * request_bytes(model.layout.size, model.scaling_size)
    rounds = agreement.rounds
    return {
        "federation": agreement.name,
        "agreement": agreement.digest,
        "questions": ", ".join(f"{count} x {name}" for name, count in _questions(schedule)),
        "quorum": rounds.quorum,
        "epsilon_of_each_hospital": agreement.privacy.epsilon,
        "longest_time": f"{len(schedule) * rounds.deadline_s / 60:,.0f} min, if every round lasts to its deadline",
        "bytes_of_each_hospital": f"{leaves:,} leave, at most {comes:,} come",
    }


def _questions(schedule: Schedule) -> Iterator[tuple[str, int]]:
    yield from Counter(str(plan.question) for plan in schedule.rounds).items()


command = Command(
    check,
    panel="Run",
    place=1,
    examples=("wardround coordinator check ~/coordinator federation.toml",),
)
