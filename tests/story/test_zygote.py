"""What stands for `wardround` in the stories behaves as the installed program does, to who types and to who kills."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from tests.hostile.conftest import make_home
from tests.story.processes import COMMAND, environment, forked, typed


def test_it_says_and_ends_as_the_installed_program_does(tmp_path: Path) -> None:
    real, fork = (
        subprocess.run([program, "hospital", "status", "no"], cwd=tmp_path, env=environment(), capture_output=True)
        for program in (*COMMAND, forked())
    )
    assert fork.returncode and (fork.returncode, fork.stdout, fork.stderr) == (
        real.returncode,
        real.stdout,
        real.stderr,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a hospital whose coordinator is not there: its daemon keeps trying."""
    folder = tmp_path_factory.mktemp("hospital")
    home, coordinator = make_home(folder / "home", 40), folder / "coordinator"
    typed("coordinator", "init", coordinator)
    typed("hospital", "join", home, "--address", "127.0.0.1:9", "--ca", coordinator / "tls" / "ca.crt")
    return home


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_a_signal_reaches_the_daemon(number: signal.Signals, code: int, home: Path) -> None:
    command = [forked(), "hospital", "up", home.name]
    with subprocess.Popen(command, cwd=home.parent, stdout=subprocess.PIPE, env=environment()) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline()  # its handlers are there
        daemon.send_signal(number)
        daemon.stdout.read()  # ends when the daemon has ended, not its launcher alone
        assert daemon.wait() == code
