"""An agreement before a yes: what it asks, what it costs, whose data it would use, and what speaks against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from wardround.config import Federation, agreement_text
from wardround.errors import BudgetExceeded, DataError, WardroundError
from wardround.kit import AGREEMENT, FOLDER
from wardround.task import Task
from wardround.text import counted
from wardround.toml import loads
from wardround_client.cohort.labels import label_counts, quoted
from wardround_client.consent.approvals import Approval, Proposal
from wardround_client.hospital import Hospital
from wardround_client.office.terms import terms_of

PROPOSED = "proposed"
"""In a hospital's home: where agreements lie until somebody has read them."""
_MOST = 50
_MANY_MORE = 2  # times the declared patients; delta leaves room for ten
_OF_THE_MOMENT = ("memory",)  # what the machine has free is another number each second


@dataclass(frozen=True)
class Offer:
    """What a person is shown, all of it made from one reading of the file.

    terms: `terms_of`. patients: name -> text; shown here and stored nowhere. warnings: sentences. obstacle: why not to
    approve it. runs: how many more may begin.
    """

    proposal: Proposal
    terms: dict[str, Any]
    patients: dict[str, str]
    warnings: list[str]
    obstacle: WardroundError | None
    runs: int

    @classmethod
    def of(cls, hospital: Hospital, file: Path, runs: int = 1) -> Self:
        """Raises: ConfigError, PolicyRefusal."""
        proposal = Proposal.read(file)
        terms = terms_of(hospital, hospital.approvals.preview(proposal), runs)
        patients, warnings, obstacle = _cohort(hospital, proposal.federation.task)
        if terms["rounds_within_budget"] < runs * terms["rounds"]:
            obstacle = BudgetExceeded(
                f"the budget {terms['forecast']}",
                do="agree on fewer rounds or more noise, raise budget.epsilon in hospital.toml, or add --anyway: the "
                "run then ends early, and what it has spent stays spent",
            )
        return cls(proposal, terms, patients, warnings, obstacle, runs)

    @property
    def digest(self) -> str:
        """Of the agreement."""
        return self.proposal.federation.digest

    @property
    def seal(self) -> str:
        """SHA-256 of all that is shown: another agreement, budget, coordinator or cohort has another."""
        terms = {name: value for name, value in self.terms.items() if name not in _OF_THE_MOMENT}
        shown = [self.digest, terms, self.patients, self.warnings, str(self.obstacle or ""), self.runs]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()

    def approve(self, hospital: Hospital, days: int = 0) -> datetime | None:
        """Approve what was shown -> until when a run may begin; None: until it is revoked.

        Raises: ConfigError, PolicyRefusal, StorageError.
        """
        until = datetime.now(UTC) + timedelta(days=days) if days else None
        hospital.approvals.approve(self.proposal, self.terms, runs=self.runs, until=until)
        return until


@dataclass(frozen=True)
class Proposed:
    """A file that may wait for an approval. error: why it cannot be read; then all else is empty.

    approval: what was approved of it before. begun: how many runs of it have begun.
    """

    file: Path
    federation: Federation | None = None
    approval: Approval | None = None
    begun: int = 0
    error: str = ""

    @property
    def waits(self) -> bool:
        """Whether no run of it may begin now."""
        over = self.approval and self.approval.until and datetime.now(UTC) > self.approval.until
        return self.federation is not None and (self.approval is None or self.begun >= self.approval.runs or bool(over))

    @property
    def key(self) -> str:
        """What stands for the file in an address."""
        return hashlib.sha256(str(self.file).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def proposed(hospital: Hospital, named: Sequence[Path]) -> list[Proposed]:
    """Those files, that of the startup kit, and what lies in the home's folder `proposed`: NAME.toml, or
    NAME/federation.toml with an encoder beside it. What was sent first, by name.
    """
    folder = hospital.home / PROPOSED
    kit = [file for file in (hospital.home / FOLDER / AGREEMENT,) if file.is_file()]
    files = [*named, *kit, *sorted(folder.glob("*.toml")), *sorted(folder.glob(f"*/{AGREEMENT}"))]
    return [_proposed(hospital, file) for file in dict.fromkeys(files[:_MOST])]


def _proposed(hospital: Hospital, file: Path) -> Proposed:
    try:
        federation = loads(agreement_text(file), Federation, name=str(file))
    except WardroundError as error:
        return Proposed(file, error=str(error))
    approval = None
    if federation.digest in hospital.approvals.digests():
        try:
            approval = hospital.approvals.approval(federation.digest)
        except WardroundError:
            approval = None  # of another coordinator, or of an old version: it is to be approved again
    return Proposed(file, federation, approval, len(hospital.ledger.runs_of(federation.digest)))


def _cohort(hospital: Hospital, task: Task) -> tuple[dict[str, str], list[str], WardroundError | None]:
    """(patients a class, what to warn of, why to refuse). It is shown here and stored nowhere."""
    fewest, declared = hospital.config.policy.least_patients, hospital.config.hospital.declared_patients
    try:
        cohort = hospital.patients.cohort()
        usable = hospital.patients.usable(task)
        counts = label_counts(cohort, task)
    except WardroundError as error:
        return {"cohort": "does not fit yet"}, [str(error)], None
    count, held = len(usable.patients), len(cohort.pseudonyms)
    patients = {"usable": f"{count} of {held}, {declared} declared"}
    patients |= {quoted(name): str(number) for name, number in counts.classes.items()}
    warnings = [f"{sentence}. Their images are not used" for sentence in [counts.sentence()] if counts.suspect]
    if held > _MANY_MORE * declared:
        warnings.append(
            f"the cohort has {counted(held, 'patient')}, and {declared} are declared: delta and this hospital's weight "
            "follow from that. Write a round number near it into hospital.toml, and have it registered again"
        )
    if missing := [quoted(name) for name, number in counts.classes.items() if not number]:
        warnings.append(f"no patient shows {', '.join(missing)}")
    try:
        usable.check(task)
    except DataError as error:
        warnings.append(str(error))
    if count >= fewest:
        return patients, warnings, None
    few = DataError(
        f"the cohort has {counted(count, 'patient')} for this task",
        allowed=f"at least {fewest} (policy.least_patients)",
        do="ingest more patients, or add --anyway: noise will drown what so few can teach",
    )
    return patients, warnings, few
