"""`--engine ray`: the same apps under `flwr run`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from wardround.cli import run

SMALL = ["--hospitals", "2", "--rounds", "1", "--patients", "24-26", "--shots", "1"]
HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_message_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *SMALL, "--engine", "ray", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'wardround[ray]'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HAS_RAY, reason="needs the extra: pip install 'wardround[ray]'")
@pytest.mark.story
def test_a_small_federation_learns_under_flwr_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *SMALL, "--engine", "ray", "--json", "--out", str(tmp_path / "out")]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["round", "round", "done"]
    assert all(event["replied"] == 2 for event in events[:-1])
    assert (tmp_path / "out" / "report.html").exists()
