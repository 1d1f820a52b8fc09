"""`wardround hospital ...`: set up, ingest, approve, run, look. Heavy imports wait until a command needs them."""

from wardround_client.commands import (
    adapt,
    approve,
    audit,
    evaluate,
    history,
    ingest,
    ledger,
    predict,
    prepare,
    running,
    withdraw,
)
from wardround_client.commands.common import app

__all__ = [
    "adapt",
    "app",
    "approve",
    "audit",
    "evaluate",
    "history",
    "ingest",
    "ledger",
    "predict",
    "prepare",
    "running",
    "withdraw",
]
