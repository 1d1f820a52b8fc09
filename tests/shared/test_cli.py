"""The `wardround` command: every failure is one message and one exit code, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
import typer

from wardround import __version__, cli
from wardround.errors import DataError, PolicyRefusal

BROKEN = EntryPoint("broken", "wardround_that_is_not_installed.commands:app", cli.GROUP)
app = typer.Typer()


@app.command()
def only(what: str = "nothing", as_json: bool = typer.Option(False, "--json")) -> None:
    """One command without a word of its own."""
    raise {
        "data": DataError("no images", do="ingest some"),
        "policy": PolicyRefusal("policy.labels", asked="a", allowed="b"),
        "interrupt": KeyboardInterrupt(),
        "abort": click.Abort(),
        "bug": ZeroDivisionError("patient 4711"),
        "exit": typer.Exit(4),
    }[what]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Here(EntryPoint):
        def load(self) -> typer.Typer:
            return app

    monkeypatch.setattr(cli, "_words", lambda: {"only": Here("only", "x:app", cli.GROUP), "broken": BROKEN})
    monkeypatch.setattr(cli, "user_log_path", lambda name: tmp_path / "log")
    monkeypatch.delenv(cli.DEBUG, raising=False)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"wardround {__version__}\n"


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("data", 3, "no images. Next: ingest some."),
        ("policy", 4, "Refused by policy.labels"),
        ("interrupt", 130, "interrupted"),
        ("abort", 130, "interrupted"),
        ("bug", 1, "internal error (ZeroDivisionError): this is a bug; the log is"),
    ],
)
def test_a_failure_is_one_line_and_a_code(capsys: pytest.CaptureFixture[str], what: str, code: int, said: str) -> None:
    assert cli.run(["only", "--what", what]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.strip().count("\n") == 0  # click puts the line that ^C broke to an end
    assert "Traceback" not in err
    assert "4711" not in err


def test_a_bug_is_in_the_log_which_is_private(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.run(["only", "--what", "bug"])
    log = tmp_path / "log" / "wardround.log"
    assert str(log) in capsys.readouterr().err
    assert "ZeroDivisionError: patient 4711" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_bug_where_no_log_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cli, "user_log_path", lambda name: tmp_path / "file" / "log")
    assert cli.run(["only", "--what", "bug"]) == 1
    assert f"{cli.DEBUG}=1 shows more" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG, "1")
    assert cli.run(["only", "--what", "bug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_a_failure_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["only", "--what", "data", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "event": "error",
        "error": "DataError",
        "message": "no images. Next: ingest some.",
        "exit_code": 3,
    }
    assert err == ""


def test_an_exit_code_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["only", "--what", "exit"]) == 4


def test_an_unknown_option_or_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["only", "--wat"]) == 2
    assert cli.run(["onyl"]) == 2
    assert cli.run(["onyl", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_word_that_cannot_be_loaded_fails_only_when_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    assert "cannot be loaded" in capsys.readouterr().out
    assert cli.run(["broken", "up", "--now"]) == 1
    assert "wardround_that_is_not_installed is missing" in capsys.readouterr().err


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["only", "--what", "data"])
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "module",
    [
        "wardround_client.commands",
        "wardround_client.privacy.ledger",
        "wardround_server.commands",
        "wardround_simulation.commands",
    ],
)
def test_a_command_that_needs_no_model_does_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
