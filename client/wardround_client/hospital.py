"""A hospital: one home folder, and what stays warm in memory between rounds.

hospital.toml   what the hospital is and permits         secret.key      key of the pseudonyms (0600)
ledger.sqlite   every price, before it was paid          node.key, .pub  the node's identity (0600)
cohort/         pseudonymous images and labels           approved/       federations, by digest
withdrawn.register   who has withdrawn, as pseudonyms (0600)
"""

from __future__ import annotations

import logging
import threading
from functools import cached_property
from pathlib import Path

import torch

from wardround.errors import ConfigError, DataError, StorageError, WardroundError
from wardround.files import private_folder, write_atomically
from wardround.toml import loads
from wardround_client.cohort.examples import Examples
from wardround_client.cohort.optout import REGISTER, Register
from wardround_client.cohort.patients import Patients
from wardround_client.config import HospitalConfig, load_hospital_config
from wardround_client.consent.agreement import Agreement
from wardround_client.consent.approvals import Approvals
from wardround_client.keys import create_pseudonym_key
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
        ledger.grid_s = config.policy.reply_grid_s
        self.approvals = Approvals(home, config, ledger)
        self.patients = Patients(home)
        self.paused = threading.Event()
        self.lock = threading.Lock()  # one round at a time: the ledger's order is the order of the answers
        self.unreleased: dict[int, tuple[bytes, float]] = {}  # seq of a reservation -> its one reply, not stored yet
        self.sent: dict[tuple[str, str], tuple[int, torch.Tensor]] = {}  # (digest, run) -> round, sum of replies before
        self.rehearsed: set[tuple[str, str]] = set()  # (digest of an agreement, question)

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

    def examples(self, agreement: Agreement) -> Examples:
        """The patients as this agreement's model sees them. Raises: DataError, StorageError; see `Patients`."""
        return self.patients.examples(agreement.federation, agreement.model, self.device)

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
                agreement = self.approvals.agreement(digest)
                self.examples(agreement)
                self.patients.check_fit(agreement.federation.task)
                self.approvals.approval(digest)
            except WardroundError as error:
                unfit.append(f"Federation {digest[:12]} does not fit this hospital: {error}")
                log.warning("%s", unfit[-1])
                if len(unfit) == len(digests) and isinstance(error, DataError) and not self.ledger.history():
                    raise
        return unfit
