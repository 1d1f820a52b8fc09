"""The hospital's commands, as its people type them."""

from __future__ import annotations

import pytest

from wardround.cli import run


def wardround(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `wardround hospital ARGUMENTS`."""
    capsys.readouterr()
    code = run(["hospital", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err
