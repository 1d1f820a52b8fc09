"""The script for a GPU that is lent: ready without one, bounded in time, and no part stops the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu
from gpu import CPU, CUDA, Part, carried_out, parts, table

ROOT = Path(__file__).parents[2]
ROW = '{"device": "cpu", "of": "built-in", "how": "image by image", "images_per_s": 12.5}'


def program(text: str) -> Part:
    return Part("encoders", CPU, ("-c", text), 600)


def test_all_parts_together_take_less_than_six_minutes_and_those_of_the_gpu_come_first() -> None:
    every = parts(small=False)
    assert sum(part.limit_s for part in every) <= gpu.LONGEST_S <= 345
    devices = [part.device for part in every]
    assert devices == sorted(devices, reverse=True)
    assert {part.what for part in every} == {"a patient alone", "meta steps", "private steps", "encoders"}
    for part in every:
        assert any((ROOT / word).is_file() for word in part.arguments if word.endswith(".py"))


def test_a_part_that_fails_keeps_its_rows_says_why_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = program(f"print('{ROW}'); raise RuntimeError('out of memory')")
    whole = program(f"print('{ROW}')")
    monkeypatch.setattr(gpu, "parts", lambda small: [broken, whole])
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "results.json").read_text())
    assert [each["how"] for each in found] == ["failed (1): RuntimeError: out of memory", "done"]
    assert all(each["rows"] == [json.loads(ROW)] for each in found)
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("kept", [f"{ROW}\n{ROW[:20]}".encode(), None])
def test_a_part_that_takes_too_long_is_ended_and_keeps_its_rows(
    kept: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(command: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"], output=kept)

    monkeypatch.setattr(subprocess, "run", late)
    outcome = carried_out(program(""), {})
    assert outcome.how == "ended after 600 s"
    assert outcome.rows == ([json.loads(ROW)] if kept else [])


def test_a_table_says_how_many_times_the_processor_a_gpu_is() -> None:
    rows = [json.loads(ROW), {**json.loads(ROW), "device": CUDA, "images_per_s": 50.0}]
    assert "| cuda | built-in | image by image | 50.0 | 4.0 |" in table(
        [gpu.Outcome("encoders", CUDA, "done", 1.0, rows)]
    )


def test_the_script_runs_without_a_gpu(tmp_path: Path) -> None:
    """All programs, with small networks: what a machine without one can try."""
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--small", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "results.json").read_text())
    assert {each["how"] for each in outcomes if each["device"] == CUDA} == {"left out: no CUDA device"}
    assert {each["how"] for each in outcomes if each["device"] == CPU} == {"done"}
    steps = {row["step"] for each in outcomes for row in each["rows"] if "step" in row}
    assert {"wardround", "Opacus hooks"} <= steps
    assert not torch.cuda.is_available() or "no CUDA" not in done.stdout
