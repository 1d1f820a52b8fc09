"""One line of a log for one event, whatever its text holds."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from wardround.text import shown

_LONGEST = 4000  # characters
_MOST_LINES = 100  # of a traceback within JSON, the last
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class OneLine(logging.Formatter):
    """Time, level, name and message, in which no text can forge a line or reach a terminal's controls.

    The lines of a traceback stand indented below their event.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See logging.Formatter."""
        record.message = shown(record.message, _LONGEST)
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        """See logging.Formatter."""
        return indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """See logging.Formatter."""
        return indented(super().formatStack(stack_info))


class JsonLine(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and traceback where there is one. ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": shown(record.getMessage(), _LONGEST),
        }
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            line["traceback"] = "\n".join(shown(each, _LONGEST) for each in lines[-_MOST_LINES:])
        return json.dumps(line)


def formatter(kind: Literal["text", "json"]) -> logging.Formatter:
    """What operations.log_format names."""
    return JsonLine() if kind == "json" else OneLine()


def indented(text: str) -> str:
    """Lines that cannot be taken for an event of their own."""
    return "\n".join("    " + shown(line, _LONGEST) for line in text.split("\n"))
