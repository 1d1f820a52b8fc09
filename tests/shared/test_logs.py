"""Logs as JSON: whatever a message or an error holds, a line is one object that every reader of JSON takes."""

from __future__ import annotations

import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from wardround.logs import JsonLine, OneLine, formatter


def made(message: str, error: str | None = None) -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise ValueError(error)
        except ValueError as raised:
            info = (type(raised), raised, raised.__traceback__)
    return logging.LogRecord("wardround_client", logging.WARNING, "x.py", 1, "%s", (message,), info)


@given(message=st.text(), error=st.none() | st.text())
def test_a_line_is_one_object_of_plain_ascii(message: str, error: str | None) -> None:
    line = JsonLine().format(made(message, error))
    assert line.isascii() and line.isprintable()
    read = json.loads(line)
    assert set(read) == {"time", "level", "logger", "message"} | ({"traceback"} if error is not None else set())
    assert (read["level"], read["logger"]) == ("WARNING", "wardround_client")
    assert "\x1b" not in "".join(read.values())


def test_a_megabyte_is_cut_and_so_is_a_traceback() -> None:
    assert len(JsonLine().format(made("x" * 1_000_000))) < 10_000
    assert len(JsonLine().format(made("x", "\x00\n" * 100_000))) < 2_000_000


def test_the_setting_chooses() -> None:
    assert isinstance(formatter("json"), JsonLine) and isinstance(formatter("text"), OneLine)
