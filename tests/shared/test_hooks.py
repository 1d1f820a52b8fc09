"""The hook: each notice once, over restarts too; a command that hangs, forks, floods or is not there hurts nobody."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround import hooks
from wardround.errors import ConfigError
from wardround.hooks import FILE, MOST_ATTEMPTS, MOST_WAITING, OUTPUT_BYTES, Hook, run_bounded
from wardround.operations import Operations
from wardround.toml import loads


def program(folder: Path, body: str) -> str:
    """A Python program, executable."""
    path = folder / "hook.py"
    path.write_text(f"#!{sys.executable} -S\nimport json, os, sys, time\n{body}\n")
    path.chmod(0o700)
    return str(path)


def until(true: Callable[[], object]) -> None:
    """Wait for it; a minute is a failure of the test, not of what it tests."""
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up, "it never came"
        threading.Event().wait(0.02)


@contextmanager
def hook(folder: Path, body: str, timeout_s: float = 60.0) -> Iterator[Hook]:
    with Hook([program(folder, body)], timeout_s, folder, {"hospital": "anna"}) as made:
        yield made


def notes(folder: Path) -> str:
    return f"open({str(folder / 'told')!r}, 'a').write(sys.stdin.read())"


def told(folder: Path) -> list[dict[str, object]]:
    """All but the one that says that the hook is set up."""
    try:
        lines = [json.loads(line) for line in (folder / "told").read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in lines if line["event"] != "hook-set-up"]


def remembered(folder: Path) -> dict[str, object]:
    try:
        read: dict[str, object] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {}
    return {key: value for key, value in read.items() if not key.startswith("hook-set-up")}


def test_each_notice_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        with hook(tmp_path, notes(tmp_path)) as made:
            for key in ("a", "b", "a"):
                made.tell("budget", key, epsilon_spent=8.1, text="\x1b[2J" + "x" * 1000)
            until(lambda: set(remembered(tmp_path).values()) == {"done"} and len(remembered(tmp_path)) == 2)
    first, second = told(tmp_path)
    assert first["event"] == second["event"] == "budget" and first["hospital"] == "anna"
    assert first["epsilon_spent"] == 8.1
    assert "\x1b" not in str(first["text"]) and len(str(first["text"])) < 300
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


def test_who_sets_it_up_sees_it_work_once_for_each_command(tmp_path: Path) -> None:
    for body in (notes(tmp_path), notes(tmp_path)):
        with hook(tmp_path, body):
            until(lambda: "done" in (tmp_path / FILE).read_text() if (tmp_path / FILE).exists() else False)
    [line] = (tmp_path / "told").read_text().splitlines()
    assert json.loads(line)["event"] == "hook-set-up"


def test_a_command_that_fails_is_tried_so_often_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = notes(tmp_path) + "\nprint('no mail server \x07')\nsys.exit(3)"
    for attempt in range(1, MOST_ATTEMPTS + 3):
        with hook(tmp_path, body) as made, caplog.at_level(logging.WARNING):
            made.tell("budget", "a")
            made.tell("last", str(attempt))  # told after it
            until(lambda wanted=f"last {attempt}": wanted in remembered(tmp_path))  # type: ignore[misc]
            until(lambda wanted=attempt: sum(line["event"] == "last" for line in told(tmp_path)) == wanted)  # type: ignore[misc]
    assert sum(line["event"] == "budget" for line in told(tmp_path)) == MOST_ATTEMPTS
    until(lambda: "it ended with 3 (no mail server \\x07)" in caplog.text)


def test_what_died_in_the_middle_of_a_notice_tells_it_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"budget a": 1}))  # as a daemon that was killed leaves it
    with hook(tmp_path, notes(tmp_path)) as made:
        made.tell("budget", "a")
        until(lambda: remembered(tmp_path) == {"budget a": "done"})
    assert len(told(tmp_path)) == 1


@given(st.binary(max_size=100) | st.sampled_from([b"[" * 100_000, b"[]", b'{"budget a": [1]}', b'{"budget a": null}']))
def test_a_memory_that_is_damaged_is_an_empty_one(damage: bytes) -> None:
    path = Path(os.environ["PYTEST_DAMAGED"]) / FILE
    path.write_bytes(damage)
    Hook([], 1.0, path.parent, {}).tell("budget", "a")
    assert hooks._Memory(path).wants("budget a")


@pytest.fixture(autouse=True)
def _damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DAMAGED", str(tmp_path))


FORKS = """
if os.fork() == 0:
    open(sys.argv[1], 'w').write(str(os.getpid()))
    time.sleep(1e6)
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    pass
"""
FAULTS = {
    "hangs": ("time.sleep(1e6)", "longer than"),
    "hangs and ignores signals": (
        "import signal\nfor s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
        "time.sleep(1e6)",
        "longer than",
    ),
    "never ends to write": ("while True: os.write(1, b'x' * 65536)", f"more than {OUTPUT_BYTES:,} bytes"),
    "never ends to complain": ("while True: os.write(2, b'x' * 65536)", f"more than {OUTPUT_BYTES:,} bytes"),
    "closes its ends and hangs": ("os.close(0); os.close(1); os.close(2)\ntime.sleep(1e6)", "longer than"),
    "kills itself": ("os.kill(os.getpid(), 9)", "ended with -9"),
    "forks and ends": (FORKS, ""),
    "forks and hangs": (FORKS + "time.sleep(1e6)", "longer than"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_command_that_does_all_that_a_command_should_not(fault: str, tmp_path: Path) -> None:
    body, wrong = FAULTS[fault]
    child = tmp_path / "child"
    before = {each.name for each in Path("/proc/self/fd").iterdir()}
    found = run_bounded(
        [program(tmp_path, body), str(child)], b"{}\n", 1.5 if wrong == "longer than" else 60, threading.Event()
    )
    assert (wrong in found) if wrong else not found
    assert {each.name for each in Path("/proc/self/fd").iterdir()} == before
    if child.exists():
        until(lambda: not _lives(int(child.read_text())))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _not_there(folder: Path) -> str:
    return str(folder / "nowhere")


def _not_executable(folder: Path) -> str:
    path = program(folder, "")
    Path(path).chmod(0o600)
    return path


def _no_interpreter(folder: Path) -> str:
    (folder / "odd").write_text("#!/nowhere/sh\n")
    (folder / "odd").chmod(0o700)
    return str(folder / "odd")


def _no_program(folder: Path) -> str:
    (folder / "odd").write_bytes(b"\x00\x01")
    (folder / "odd").chmod(0o700)
    return str(folder / "odd")


@pytest.mark.parametrize("made", [_not_there, _not_executable, _no_interpreter, _no_program, str])
def test_a_command_that_cannot_be_started_is_named_and_later_notices_go_on(
    made: Callable[[Path], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Hook([made(tmp_path)], 60, tmp_path, {}) as broken:
        broken.tell("budget", "a")
        broken.tell("budget", "b")
        until(lambda: "the hook failed at budget b" in caplog.text)
    assert "cannot be started" in caplog.text
    assert remembered(tmp_path) == {"budget a": 1, "budget b": 1}


def test_it_gets_no_shell_no_environment_and_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    seen = tmp_path / "seen"
    body = (
        f"fds = sorted(os.listdir('/proc/self/fd'))\n"
        f"json.dump([dict(os.environ), sys.argv[1:], os.getcwd(), len(fds), os.getpid() == os.getpgid(0)], "
        f"open({str(seen)!r}, 'w'))"
    )
    argument = "; touch /nowhere $(id)"
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), False)
        assert not run_bounded([program(tmp_path, body), argument], b"{}\n", 60, threading.Event())
    environment, arguments, where, open_files, leads_its_group = json.loads(seen.read_text())
    assert set(environment) - {"LC_CTYPE"} == {"PATH", "LANG"}  # Python itself may set the one
    assert (arguments, where, leads_its_group) == ([argument], "/", True)
    assert open_files <= 4  # 0, 1, 2, and the folder that was listed


def test_a_hook_that_hangs_delays_neither_tell_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "LAST_S", 0.2)
    begun = tmp_path / "begun"
    with hook(tmp_path, f"open({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1e6)", 600.0) as made:
        until(lambda: begun.exists() and begun.read_text())
        for number in range(3 * MOST_WAITING):
            made.tell("budget", str(number))
    until(lambda: not _lives(int(begun.read_text())))


def test_a_full_disk_costs_the_memory_and_not_the_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hooks, "write_atomically", full)
    with hook(tmp_path, notes(tmp_path)) as made:
        made.tell("budget", "a")
        made.tell("budget", "b")
        until(lambda: len(told(tmp_path)) == 2)
        made.tell("budget", "a")
        made.tell("budget", "c")
        until(lambda: len(told(tmp_path)) == 3)
    assert "No space left" in caplog.text


def test_who_makes_notices_up_makes_so_many_an_hour_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "MOST_AN_HOUR", 3)
    with hook(tmp_path, notes(tmp_path)) as made:
        for number in range(9):
            made.tell("approval-waits", str(number))
        until(lambda: "approval-waits 8 is left out for now" in caplog.text)
    assert [line["event"] for line in told(tmp_path)] == ["approval-waits"] * 2  # and one that it is set up
    assert len(remembered(tmp_path)) == 2


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "MOST_REMEMBERED", 5)
    memory = hooks._Memory(tmp_path / FILE)
    for number in range(20):
        memory.ended(str(number))
    assert list(json.loads((tmp_path / FILE).read_text())) == ["15", "16", "17", "18", "19"]


@pytest.mark.parametrize("bad", ['hook = ["notify"]', 'hook = [""]', 'hook = "/bin/true"', "hook_timeout_s = 0"])
def test_settings_that_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="hook"):
        loads(bad, Operations)
    assert loads('hook = ["/bin/true", "x"]', Operations).hook == ("/bin/true", "x")
