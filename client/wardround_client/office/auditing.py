"""An audit of this installation: its answers are attacked with invented patients, and bounds set beside the claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wardround_client import audit as auditing
from wardround_client.audit import AuditReport
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.office import TRIALS
from wardround_client.privacy.ledger import Ledger


def audited(
    home: Path,
    named: str = "",
    *,
    trials: int = TRIALS,
    confidence: float = 0.95,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> tuple[Agreement, AuditReport]:
    """Attack the answers to an agreement: an approved one by its digest, the beginning of that or its name, or a file.

    progress: is told an experiment's name, how many answers it had, and of how many. The hospital's ledger is not even
    opened. Raises: ConfigError, PolicyRefusal.
    """
    hospital = Hospital.open(home, ledger=Ledger(None))
    agreement = _agreement(hospital, named)
    report = auditing.audit(
        agreement,
        declared_patients=hospital.config.hospital.declared_patients,
        delta=hospital.config.delta,
        trials=trials,
        confidence=confidence,
        device=hospital.device,
        progress=progress,
    )
    return agreement, report


def _agreement(hospital: Hospital, named: str) -> Agreement:
    if named and Path(named).is_file():
        return hospital.approvals.preview(Path(named))
    return hospital.approvals.agreement(hospital.approvals.find(named))
