"""The environment in which Flower runs: its folder, its log, no telemetry."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from wardround.files import PrivateLog, shut
from wardround.logs import formatter


def prepare(home: Path, log_format: Literal["text", "json"] = "text", log: str = "coordinator.log") -> None:
    """Flower's environment, here and in the processes it starts; its log into a file of the home."""
    os.umask(0o077)  # for Flower's database and logs, and the processes that it starts
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_HOME"] = str(home / "flower")
    os.environ["WARDROUND_COORDINATOR_HOME"] = str(home)
    import flwr.supercore.logger  # noqa: F401 (attaches its console handler, which is taken off again here)

    handler = PrivateLog(home / log, maxBytes=10_000_000, backupCount=3)
    handler.setFormatter(formatter(log_format))
    for name in ("flwr", "uvicorn", "wardround.web", "wardround_server"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if opened := shut(home):
        logging.getLogger(__name__).warning("others could read or write here, and no longer can: %s", ", ".join(opened))
