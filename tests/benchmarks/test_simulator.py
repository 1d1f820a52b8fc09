"""The benchmark of the simulator: what it sees of a run, and what it makes of that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

import processes
import simulator
from simulator import FLWR_RUN, IDLE, SIMULATOR, Job, Learned, Run


def run_of(round_s: float, wall_s: float, memory_kb: int = 1024) -> Run:
    """Its first round took a minute, while its processes got warm."""
    return Run(Learned([60.0, round_s, round_s], opened_kb=1, rounds_kb=1), wall_s, 1.0, memory_kb)


def test_a_slow_beginning_is_no_part_of_the_rounds_a_second() -> None:
    assert run_of(0.25, 70.0).round_s == 0.25


def test_ratios_are_of_runs_of_the_same_repeat() -> None:
    ours = [run_of(1.0, 10.0), run_of(10.0, 100.0), run_of(100.0, 1000.0)]
    peer = [run_of(2.0, 40.0), run_of(20.0, 400.0), run_of(200.0, 4000.0)]
    row = simulator.medians(10, SIMULATOR, ours, peer)
    assert (row["rounds_per_s"], row["times_rounds_per_s"], row["times_faster"]) == (0.1, 2.0, 4.0)
    assert "times_faster" not in simulator.medians(10, SIMULATOR, ours, None)


def test_growth_is_what_each_further_hospital_adds() -> None:
    found = {10: Learned([1.0], 2048, 100), 110: Learned([1.0], 2048 + 4000, 100 + 500)}
    first, second = simulator.growth(found)
    assert "opened_kb_each" not in first
    assert (second["opened_kb_each"], second["rounds_kb_each"]) == (40.0, 5.0)


def test_a_family_is_a_process_and_all_that_descend_from_it() -> None:
    grandchild = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", child], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        grandchild_pid = int(process.stdout.readline())
        assert list(processes.family(process.pid)) == [process.pid, grandchild_pid]
        assert processes.memory_kb(process.pid) > processes.memory_kb(grandchild_pid) > 0
        assert set(processes.cpu_seconds(os.getpid())) >= {os.getpid(), process.pid, grandchild_pid}
        process.communicate("")
    assert list(processes.family(process.pid)) == [process.pid]
    assert processes.memory_kb(process.pid) == 0


@pytest.mark.story
def test_a_run_tells_its_rounds_and_what_it_took() -> None:
    run = simulator.watched(Job(IDLE, hospitals=2, rounds=3, patients=4))
    assert len(run.learned.seconds) == 3
    assert 0 < run.round_s < run.wall_s
    assert run.memory_kb >= run.learned.opened_kb > 0
    assert run.cpu_s > 0


def test_without_ray_the_peer_is_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(simulator, "watched", lambda job: run_of(0.5, 3.0))
    monkeypatch.setattr(sys, "argv", ["simulator.py", "--hospitals", "10", "--repeats", "1"])
    simulator.main()
    told = capsys.readouterr()
    assert "pip install 'wardround[ray]'" in " ".join(told.err.split())
    assert FLWR_RUN not in told.out.partition("| hospitals |")[2].partition("times flwr run")[2]
    assert "| 10 | simulator | 2.0 |" in told.out
