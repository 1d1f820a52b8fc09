"""Where a program of the hospital writes what happens; a module without heavy imports, for processes that are short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from wardround.errors import StorageError
from wardround.files import PrivateLog
from wardround.logs import formatter

LOG = "hospital.log"
_LOG_BYTES, _LOG_FILES = 5_000_000, 4


@contextmanager
def logging_to(home: Path, log_format: Literal["text", "json"] = "text", name: str = LOG) -> Iterator[None]:
    """Send this program's log, and what its libraries warn of, into a file of the home (0600) and nowhere else.

    Raises: StorageError.
    """
    path = home / name
    try:
        handler = PrivateLog(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})", do="check the disk") from None
    handler.setFormatter(formatter(log_format))
    levels = {
        "wardround_client": logging.INFO,
        "wardround": logging.INFO,
        "flwr": logging.WARNING,
        "uvicorn": logging.ERROR,
    }
    before = []
    for of, level in levels.items():
        logger = logging.getLogger(of)
        before.append((logger, logger.handlers, logger.propagate, logger.level))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
