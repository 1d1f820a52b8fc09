"""What is done at home begins with: the hospital opened without its ledger, and one of its adapted models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wardround.errors import ConfigError

if TYPE_CHECKING:
    from wardround_client.hospital import Hospital
    from wardround_client.personal.adapted_model import AdaptedModel


def opened(home: Path) -> Hospital:
    """The hospital with a ledger in memory: its own is not even opened. Raises: ConfigError."""
    import torch

    from wardround_client.hospital import Hospital
    from wardround_client.privacy.ledger import Ledger

    hospital = Hospital.open(home, ledger=Ledger(None))
    if hospital.config.device.threads:
        torch.set_num_threads(hospital.config.device.threads)
    return hospital


def chosen(hospital: Hospital, name: str) -> AdaptedModel:
    """The adapted model of that name, or the only one; nobody whom it was learned from has withdrawn.

    Raises: ConfigError, DataError, StorageError.
    """
    from wardround_client.personal import adapted_file as store

    there = store.names(hospital.home)
    if not name and len(there) != 1:
        raise ConfigError(
            "several models were adapted here" if there else "nothing was adapted here yet",
            allowed=", ".join(there),
            do="name one with --adapted" if there else "make one with `wardround hospital adapt`",
        )
    found = store.load(hospital.home, name or there[0], hospital.device)
    found.check_consent(hospital.patients.register.read())
    return found
