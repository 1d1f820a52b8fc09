"""A hospital: one home folder, and what stays warm in memory between rounds.

hospital.toml   what the hospital is and permits         secret.key      key of the pseudonyms (0600)
ledger.sqlite   every price, before it was paid          node.key, .pub  the node's identity (0600)
cohort/         pseudonymous images and labels           approved/       federations, by digest
withdrawn.register   who has withdrawn, as pseudonyms (0600)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from wardround.errors import ConfigError, DataError, StorageError, WardroundError
from wardround.files import private_folder, write_atomically
from wardround.toml import loads
from wardround_client.cohort.examples import Examples, NamedExamples, encoded, usable_rows
from wardround_client.cohort.optout import REGISTER, Register
from wardround_client.cohort.store import CohortStore
from wardround_client.config import HospitalConfig, load_hospital_config
from wardround_client.consent.agreement import Agreement, Approval, Approvals, Proposal
from wardround_client.keys import create_pseudonym_key, load_pseudonym_key
from wardround_client.privacy.ledger import LEDGER, Budget, Ledger

log = logging.getLogger(__name__)


class Hospital:
    """Opened once by a daemon, kept over all rounds.

    Args:
        home: the hospital's folder.
        config: its hospital.toml.
        ledger: its ledger; a simulation may pass one that lives in memory.
    """

    def __init__(self, home: Path, config: HospitalConfig, ledger: Ledger) -> None:
        self.home, self.config, self.ledger = home, config, ledger
        self.approvals = Approvals(home / "approved")
        self.paused = threading.Event()
        self.lock = threading.Lock()  # one round at a time: the ledger's order is the order of the answers
        self.unreleased: dict[int, tuple[bytes, float]] = {}  # seq of a reservation -> its one reply, not stored yet
        self.rehearsed: set[tuple[str, str]] = set()  # (digest of an agreement, question)
        self._agreements: dict[str, Agreement] = {}
        self._examples: dict[str, NamedExamples] = {}

    @classmethod
    def open(cls, home: Path, *, ledger: Ledger | None = None) -> Hospital:
        """Open an existing home. Raises: ConfigError, StorageError."""
        config = load_hospital_config(home / "hospital.toml")
        return cls(home, config, ledger or Ledger.of(home))

    @classmethod
    def create(cls, home: Path, hospital_toml: str, *, ledger: Ledger | None = None) -> Hospital:
        """Make a home with this hospital.toml and a fresh pseudonym key; an existing home is left alone.

        Raises:
            ConfigError: a hospital lives there already, or the text is not a hospital.toml.
            StorageError: the folder cannot be written.
        """
        if (home / "hospital.toml").exists():
            raise ConfigError(f"{home} is a hospital's home already", do="choose another folder")
        loads(hospital_toml, HospitalConfig, name="hospital.toml")  # before anything is written
        try:
            private_folder(home)
            private_folder(home / "approved")
            Register(home / REGISTER, create_pseudonym_key(home)).create()
            if ledger is None:
                Ledger(home / LEDGER).close()
            write_atomically(home / "hospital.toml", hospital_toml.encode())
        except OSError as error:
            raise StorageError(
                f"{home} cannot be written ({error.strerror})", do="choose another folder, or check the disk"
            ) from None
        return cls.open(home, ledger=ledger)

    @cached_property
    def key(self) -> bytes:
        """Secret key of the pseudonyms, 32 bytes. Raises: StorageError."""
        return load_pseudonym_key(self.home)

    @cached_property
    def register(self) -> Register:
        """Who has withdrawn. Raises: StorageError."""
        return Register(self.home / REGISTER, self.key)

    @property
    def budget(self) -> Budget:
        """What the cohort may spend over its lifetime."""
        return Budget(self.config.budget.epsilon, self.config.delta, self.config.budget.epsilon_per_round)

    @cached_property
    def device(self) -> torch.device:
        """Where the training runs. Raises: ConfigError, when CUDA is demanded and absent."""
        wanted = self.config.device.compute
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ConfigError('device.compute = "cuda", but torch sees no CUDA device', do='write "auto" or "cpu"')
        return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

    def approve(self, offer: Path | Proposal, terms: Mapping[str, object] | None = None, *, runs: int = 1) -> Agreement:
        """Approve a federation.toml, or one that was read: check it against the policy, then store what was read.

        Args:
            offer: the file; or what a person was shown, which is not read again.
            terms: as they were shown.
            runs: how many runs of this agreement may begin, beside those that have.

        Raises: ConfigError, PolicyRefusal, StorageError.
        """
        proposal = offer if isinstance(offer, Proposal) else Proposal.read(offer)
        agreement = self.agreement_of(proposal)
        digest = proposal.federation.digest
        allowed = len(self.ledger.runs_of(digest)) + runs
        approval = Approval(digest=digest, coordinator=self.config.coordinator.identity, runs=allowed)
        self.approvals.add(proposal, approval, terms or {})
        return agreement

    def agreement_of(self, offer: Path | Proposal) -> Agreement:
        """What approving this would mean; changes nothing. Raises: ConfigError, PolicyRefusal."""
        proposal = offer if isinstance(offer, Proposal) else Proposal.read(offer)
        return Agreement.of(proposal.federation, self.config, proposal.source.parent, proposal.encoder)

    def permit(self, federation: str, run: str) -> None:
        """Refuse a run that the approval of this agreement does not cover. Raises: PolicyRefusal."""
        begun, coordinator = self.ledger.runs_of(federation), self.config.coordinator.identity
        self.approvals.permit(federation, run, begun=begun, coordinator=coordinator)

    def agreement(self, digest: str) -> Agreement:
        """The approved agreement of that digest, kept warm. Raises: PolicyRefusal, ConfigError."""
        federation = self.approvals.federation(digest)  # asked each time: an approval can be withdrawn
        if digest not in self._agreements:
            self._agreements[digest] = Agreement.of(federation, self.config, self.approvals.folder(digest))
        return self._agreements[digest]

    def cohort(self) -> CohortStore:
        """The cohort on disk, without those who have withdrawn; nobody opens it in another way.

        Raises: DataError, StorageError.
        """
        return CohortStore.open(self.home / "cohort", withdrawn=self.register.read())

    def unfit_for(self, agreement: Agreement) -> str:
        """Why the cohort, as it is now, does not fit this agreement; empty when it does. Encodes nothing."""
        try:
            self._check_fit(agreement)
        except (DataError, StorageError) as error:
            return str(error)
        return ""

    def _check_fit(self, agreement: Agreement) -> None:
        """Raises: DataError, StorageError."""
        usable_rows(self.cohort(), agreement.federation.task).check(agreement.federation.task)

    def examples(self, agreement: Agreement) -> Examples:
        """The cohort as this federation's model sees it, encoded once and kept warm, less who has withdrawn by now.

        It may be nobody: whether a round is answered must not depend on a patient (privacy.md, "The promise").

        Raises:
            DataError: there is no cohort, or it was ingested for another shape or without the task's label column.
            StorageError: it cannot be read, or the opt-out register cannot.
        """
        task, digest = agreement.federation.task, agreement.federation.digest
        if digest not in self._examples:
            store = self.cohort()
            rows = usable_rows(store, task)
            pseudonyms = tuple(store.pseudonyms[number] for number in rows.patients.tolist())
            self._examples[digest] = NamedExamples(encoded(store, rows, task, agreement.model, self.device), pseudonyms)
        # Looked at in every round, and after the encoding, which takes time: a patient may withdraw at any moment.
        withdrawn = self.register.read()
        self._examples = {each: examples.without(withdrawn) for each, examples in self._examples.items()}
        return self._examples[digest].examples

    @property
    def has_answered(self) -> bool:
        """Whether a round was ever reserved, which the coordinator knows too."""
        return bool(self.ledger.history())

    def warm_up(self) -> list[str]:
        """Load every approved agreement and its examples now, so that the first round finds them in memory.

        An approval that does not fit the cohort is said -> why, a sentence each. Its rounds refuse where the reason is
        the shape of the cohort; where it is the patients, they are answered all the same, because a refusal would tell.

        Raises: DataError, when the cohort fits none of the approvals, and this hospital has answered no round yet:
            then it is a mistake of the set-up. Later the patients must not decide whether the daemon comes back.
        """
        unfit = []
        digests = sorted(self.approvals.digests())
        for digest in digests:
            try:
                agreement = self.agreement(digest)
                self.examples(agreement)
                self._check_fit(agreement)
                self.approvals.approval(digest, self.config.coordinator.identity)
            except WardroundError as error:
                unfit.append(f"Federation {digest[:12]} does not fit this hospital: {error}")
                log.warning("%s", unfit[-1])
                if len(unfit) == len(digests) and isinstance(error, DataError) and not self.has_answered:
                    raise
        return unfit
