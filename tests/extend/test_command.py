"""The recipe "A new command", followed in a package of somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.recipes import follow

from wardround.cli import run


def test_a_command_of_another_package_stands_among_the_hospital_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow("A new command", tmp_path, monkeypatch)
    home = tmp_path / "home"
    assert run(["hospital", "init", str(home), "--name", "st-anna", "--patients", "60"]) == 0
    capsys.readouterr()
    assert run(["hospital", "--help"]) == 0
    assert "disk-usage" in capsys.readouterr().out.split("Look:")[1]
    assert run(["hospital", "disk-usage", str(home)]) == 0
    assert "bytes" in capsys.readouterr().out
    assert run(["hospital", "disk-usage", str(tmp_path)]) == 2
    assert "is not a hospital's home" in capsys.readouterr().err
