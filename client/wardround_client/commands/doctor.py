"""`wardround hospital doctor`: what is wrong with a hospital's home, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.command import Command, JsonOption
from wardround_client.commands._common import HERE, HomeArgument, checked

if TYPE_CHECKING:
    from wardround.doctor import Looks
    from wardround_client.config import HospitalConfig
    from wardround_client.hospital import Hospital

_NEAR = 0.8  # of the budget
_MANY = 0.1  # of the files of an intake


def doctor(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Look at everything that a hospital needs, and say what is wrong and what to do about it. Nothing is changed.

    Settings, who can read the home, keys, ledger, budget, patients, approvals with their encoders, hook, certificate,
    disk, and the way to the coordinator: asked of the daemon where one runs, and else tried as `check` does.

    Ends with the exit code of the first thing that is wrong, and with 0 if there is nothing.
    """
    home = checked(home)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported
    from wardround.doctor import tell

    place = _Home(home)
    try:
        tell(place.looks(), as_json)
    finally:
        place.close()


class _Home:
    """A home, opened as far as it can be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> HospitalConfig:
        from wardround_client.config import load_hospital_config

        return load_hospital_config(self.folder / "hospital.toml")

    @cached_property
    def hospital(self) -> Hospital:
        from wardround_client.hospital import Hospital

        return Hospital.open(self.folder)

    def close(self) -> None:
        if "hospital" in vars(self):
            self.hospital.ledger.close()

    def looks(self) -> Looks:
        """In the order in which one would mend them."""
        from wardround.doctor import ends, hook, only_its_owner_s, room

        yield "settings", self.settings
        yield "who can read it", partial(only_its_owner_s, self.folder)
        yield "disk", partial(room, self.folder)
        yield "secret.key", self.secret_key
        yield "node.key", self.node_key
        yield "ledger", self.ledger
        yield "budget", self.budget
        yield "one life", self.one_life
        yield "who has withdrawn", self.withdrawn
        yield "cohort", self.cohort
        yield "quarantine", self.quarantine
        yield from self.approvals()
        yield "hook", lambda: hook(self.config.operations)
        yield "coordinator", self.coordinator
        yield from ends(self.authority)
        yield from self.way()

    def settings(self) -> str:
        about = self.config.hospital
        return f"{about.name}, {about.declared_patients} patients declared"

    def secret_key(self) -> str:
        from wardround_client.keys import load_pseudonym_key

        load_pseudonym_key(self.folder)
        return "there"

    def node_key(self) -> str:
        from wardround_client.keys import load_node_key

        load_node_key(self.folder)
        return "there"

    def ledger(self) -> str:
        from wardround.errors import StorageError

        broken = self.hospital.ledger.verify()
        if broken is not None:
            do = "restore it from your backup, and do not take part before: what was spent cannot be told from it"
            raise StorageError(f"ledger.sqlite is broken at entry {broken}", do=do)
        return f"{self.hospital.ledger.head[0]} entries, the chain is whole"

    def budget(self) -> str:
        from wardround.doctor import Soon

        budget = self.config.budget.epsilon
        spent = self.hospital.ledger.spent(self.config.delta)
        said = f"epsilon {spent:.4g} of {budget:g} is spent"
        if spent >= _NEAR * budget:
            do = "agree on fewer or cheaper runs; a greater budget.epsilon is the privacy officer's to decide"
            raise Soon(said, do=do)
        return said

    def one_life(self) -> str:
        from wardround_client.one_life import check_not_stopped

        check_not_stopped(self.folder)
        return "no other copy has answered"

    def withdrawn(self) -> str:
        return f"{len(self.hospital.patients.register.read())} on the register"

    def cohort(self) -> str:
        from wardround_client.service.daemon import check_cohort

        check_cohort(self.hospital)
        return f"{len(self.hospital.patients.cohort())} images"

    def quarantine(self) -> str:
        from wardround.doctor import Soon
        from wardround.text import counted

        file = self.folder / "cohort" / "quarantine.csv"
        if not file.exists():
            return "no intake has left a file out"
        with file.open("rb") as lines:
            left = max(0, sum(1 for _ in lines) - 1)  # less its head
        said = f"{counted(left, 'file')} of the last intake could not be used"
        if left > _MANY * (left + len(self.hospital.patients.cohort())):
            raise Soon(said, do=f"see the reasons in {file}")
        return said

    def approvals(self) -> Looks:
        from wardround_client.consent.approvals import ApprovalFolder

        try:
            digests = sorted(ApprovalFolder(self.folder).digests())
        except OSError as error:
            yield "approvals", partial(_raising, error)
            return
        if not digests:
            yield "approvals", self.nothing_approved
        for digest in digests:
            yield f"approval {digest[:12]}", partial(self.approval, digest)

    def nothing_approved(self) -> str:
        from wardround.doctor import Soon

        raise Soon(
            "nothing is approved, so no round is answered", do="`wardround hospital approve HOME federation.toml`"
        )

    def approval(self, digest: str) -> str:
        from wardround.doctor import Soon

        approvals = self.hospital.approvals
        agreement, approval = approvals.agreement(digest), approvals.approval(digest)
        self.hospital.patients.check_fit(agreement.federation.task)
        name, begun = agreement.federation.name, len(self.hospital.ledger.runs_of(digest))
        file = approvals.folder(digest) / "federation.toml"
        again = f"`wardround hospital approve {self.folder} {file}`, if there is to be another run"
        if approval.until and datetime.now(UTC) > approval.until:
            raise Soon(f"of {name}: no run may begin since {approval.until:%Y-%m-%d %H:%M} UTC", do=again)
        if begun >= approval.runs:
            raise Soon(f"of {name}: all {approval.runs} runs have begun", do=again)
        return f"{name}: {begun} of {approval.runs} runs have begun"

    def coordinator(self) -> str:
        from wardround_client.service.daemon import coordinator_of

        return coordinator_of(self.hospital).address

    def authority(self) -> dict[str, datetime]:
        from wardround.certificates import ends_of
        from wardround_client.service.daemon import coordinator_of

        found = ends_of(coordinator_of(self.hospital).ca_pem)
        return {
            "coordinator's CA" if not number else f"its CA number {number + 1}": end for number, end in enumerate(found)
        }

    def way(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """As the daemon says, or step by step."""
        from wardround.errors import Unreachable, WardroundError
        from wardround_client.service.control import Control

        try:
            with Control(self.folder) as control:
                status = control.status()
        except Unreachable:
            try:
                yield from self.steps()
            except WardroundError as error:
                yield "way to it", partial(_raising, error)
            return
        yield "daemon", lambda: f"runs, {status.link_detail}"

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        from wardround_client.flower.connectivity import steps
        from wardround_client.keys import load_node_key
        from wardround_client.service.daemon import MEMORY, coordinator_of, locked

        with locked(self.folder):  # a second session under one key would end the daemon's
            for step in steps(coordinator_of(self.hospital), partial(load_node_key, self.folder), self.folder / MEMORY):
                yield step.name, partial(_raising, step.error) if step.error else partial(str, step.result)


def _raising(error: Exception) -> str:
    raise error


command = Command(
    doctor,
    panel="Repair",
    place=2,
    examples=("wardround hospital doctor ~/st-anna", "wardround hospital doctor ~/st-anna --json"),
)
