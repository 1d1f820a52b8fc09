"""`wardround hospital ...`: set up, ingest, approve, run, look. Heavy imports wait until a command needs them."""

from wardround_client.commands import approve, audit, ledger, prepare, running, withdraw
from wardround_client.commands.common import app

__all__ = ["app", "approve", "audit", "ledger", "prepare", "running", "withdraw"]
