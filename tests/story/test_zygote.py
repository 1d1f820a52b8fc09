"""What stands for `wardround` in the stories behaves as the installed program does, to who types and to who kills."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.hostile.conftest import make_home
from tests.story import zygote
from tests.story.processes import environment, typed

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without it, the installed program is used")


@pytest.mark.parametrize("arguments", [["--version"], ["nonsense"], ["coordinator", "run", "no", "no", "--json"], []])
def test_it_says_and_ends_as_the_installed_program_does(arguments: list[str], tmp_path: Path) -> None:
    real, fork = (
        subprocess.run([program, *arguments], cwd=tmp_path, env=environment(), capture_output=True, check=False)
        for program in (zygote.REAL, zygote.launcher())
    )
    assert (fork.returncode, fork.stdout, fork.stderr) == (real.returncode, real.stdout, real.stderr)


def test_the_folder_the_environment_and_the_input_are_those_of_who_typed(tmp_path: Path) -> None:
    def run(*arguments: str, said: str = "") -> str:
        command, env = [zygote.launcher(), *arguments], environment() | {"HOME": str(tmp_path), "COLUMNS": "60"}
        return subprocess.run(
            command, cwd=tmp_path, env=env, input=said, capture_output=True, text=True, check=True
        ).stdout

    assert max(map(len, run("hospital", "--help").splitlines())) <= 60
    run("hospital", "init", "here", "--name", "st-anna", "--patients", "60")
    assert (tmp_path / "here" / "hospital.toml").is_file()
    run("hospital", "withdraw", "here", "--from", "-", said="P1\nP2\n")
    assert "2" in typed("hospital", "withdraw", tmp_path / "here", "--list")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a hospital whose coordinator is not there: its daemon keeps trying."""
    folder = tmp_path_factory.mktemp("hospital")
    home, coordinator = make_home(folder / "home", 40), folder / "coordinator"
    typed("coordinator", "init", coordinator)
    typed("hospital", "join", home, "--address", "127.0.0.1:9", "--ca", coordinator / "tls" / "ca.crt")
    return home


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_a_signal_reaches_the_daemon(number: signal.Signals, code: int, home: Path) -> None:
    command = [zygote.launcher(), "hospital", "up", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline()  # its handlers are there
        daemon.send_signal(number)
        daemon.stdout.read()  # ends when the daemon has ended, not its launcher alone
        assert daemon.wait() == code


def test_one_that_was_started_in_another_environment_says_so() -> None:
    command, env = [zygote.launcher(), "--version"], environment() | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "OMP_NUM_THREADS is read while modules are imported" in done.stderr
