"""A reservation for tests of the ledger, of which a test names what it is about."""

from __future__ import annotations

from wardround.accountant import Answers
from wardround_client.privacy.ledger import Budget, Ledger, Reservation

BUDGET = Budget(epsilon=5.0, delta=1e-3)
PRICE = (Answers(4.0, 1.0, 1),)


def reserve(
    ledger: Ledger,
    round: int,
    *,
    run: str = "run",
    request_sha256: str = "a" * 64,
    rows: tuple[Answers, ...] = PRICE,
    budget: Budget = BUDGET,
    federation: str = "f" * 64,
    coordinator: str = "coordinator:9092",
) -> Reservation:
    """Raises: as `Ledger.reserve`."""
    return ledger.reserve(
        run=run,
        round=round,
        request_sha256=request_sha256,
        federation=federation,
        coordinator=coordinator,
        question="gradient",
        bundle_sha256="b" * 64,
        rows=rows,
        budget=budget,
    )
