"""Masks and points at home as a hospital types it: pictures -> a model of its own, what it is worth, new answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.client.command_line import wardround
from tests.client.personal.test_shared_model import model_of, write_release
from tests.drawn import MASKS, POINTS, discs, spots

from wardround.cli import run
from wardround.config import load_federation
from wardround_client.personal.kinds.points import METRICS as OF_POINTS

Capture = pytest.CaptureFixture[str]


def hospital(folder: Path, federation: str, draw: Callable[[Path], Path]) -> Path:
    """A hospital with a cohort of what was drawn; beside it the federation, and a model that nobody trained."""
    (folder / "federation.toml").write_text(federation)
    agreed = load_federation(folder / "federation.toml")
    write_release(folder / "model", agreed, theta=model_of(agreed).initial().detach())
    assert run(["hospital", "init", str(folder / "home"), "--name", "here", "--patients", "12"]) == 0
    labels = ("--labels", str(draw(folder / "pictures") / "labels.csv"))
    given = ("--federation", str(folder / "federation.toml"), "--workers", "1")
    assert run(["hospital", "ingest", str(folder / "home"), str(folder / "pictures"), *labels, *given]) == 0
    return folder / "home"


@pytest.fixture(scope="module")
def of_masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hospital(tmp_path_factory.mktemp("masks"), MASKS, discs)


@pytest.fixture(scope="module")
def of_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hospital(tmp_path_factory.mktemp("points"), POINTS, spots)


def adapt(capsys: Capture, home: Path, *more: object) -> dict[str, Any]:
    """Adapt -> the card."""
    given = ("--task", home.parent / "federation.toml", "--model", home.parent / "model", "--json")
    code, out, err = wardround(capsys, "adapt", home, *given, *more)
    assert code == 0, err
    card: dict[str, Any] = json.loads(out)
    return card


def test_masks_are_adapted_to_and_judged(of_masks: Path, capsys: Capture) -> None:
    card = adapt(capsys, of_masks)
    before, after = (card[when]["metrics"] for when in ("before", "after"))
    assert set(after) == {"dice", "surface_distance_95_px", "volume_error"}
    assert after["dice"]["low"] <= after["dice"]["value"] <= after["dice"]["high"]
    assert after["dice"]["value"] > 0.8 > before["dice"]["value"]
    assert after["surface_distance_95_px"]["value"] < 3
    assert set(card["after"]["manufacturers"]) == {"acme", "zeta"}
    assert card["after"]["images"] == 2 * card["after"]["patients"] == 2 * (12 - card["support_patients"])

    code, out, err = wardround(capsys, "evaluate", of_masks, "--json")
    assert code == 0, err
    assert json.loads(out)["after"] == card["after"]
    code, out, err = wardround(capsys, "evaluate", of_masks)
    assert code == 0, err
    assert "Dice coefficient" in out and "surface distance, px" in out and "Dice coefficient, zeta" in out
    assert "Not judged" not in out


def test_points_are_adapted_to_and_judged(of_points: Path, capsys: Capture) -> None:
    card = adapt(capsys, of_points, "--tune")
    before, after = (card[when]["metrics"] for when in ("before", "after"))
    assert tuple(after) == OF_POINTS
    assert after["cpm"]["value"] > max(0.8, before["cpm"]["value"])
    assert after["f1"]["value"] > 0.8
    code, out, err = wardround(capsys, "evaluate", of_points)
    assert code == 0, err
    assert "sensitivity at 1/8 false findings an image" in " ".join(out.split())
