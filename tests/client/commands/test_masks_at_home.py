"""Masks at home as a hospital types it: pictures and their masks -> a model of its own, what it is worth, new masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.client.personal.test_shared_model import write_release
from tests.drawn import MASKS, discs

from wardround.config import load_federation

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with a cohort of masks, and a model that nobody trained, beside it."""
    from wardround.cli import run

    folder = tmp_path_factory.mktemp("masks")
    (folder / "federation.toml").write_text(MASKS)
    write_release(folder / "model", load_federation(folder / "federation.toml"))
    assert run(["hospital", "init", str(folder / "home"), "--name", "here", "--patients", "12"]) == 0
    pictures = discs(folder / "pictures")
    given = ("--labels", str(pictures / "labels.csv"), "--federation", str(folder / "federation.toml"))
    assert run(["hospital", "ingest", str(folder / "home"), str(pictures), *given, "--workers", "1"]) == 0
    return folder / "home"


def test_masks_are_adapted_to_and_judged(home: Path, capsys: Capture) -> None:
    given = ("--task", home.parent / "federation.toml", "--model", home.parent / "model")
    code, out, err = wardround(capsys, "adapt", home, *given, "--json")
    assert code == 0, err
    card = json.loads(out)
    before, after = (card[when]["metrics"] for when in ("before", "after"))
    assert set(after) == {"dice", "surface_distance_95_px", "volume_error"}
    assert after["dice"]["low"] <= after["dice"]["value"] <= after["dice"]["high"]
    assert after["dice"]["value"] > before["dice"]["value"]
    assert set(card["after"]["manufacturers"]) == {"acme", "zeta"}
    assert card["after"]["images"] == 2 * card["after"]["patients"] == 2 * (12 - card["support_patients"])

    code, out, err = wardround(capsys, "evaluate", home, "--json")
    assert code == 0, err
    assert json.loads(out)["after"] == card["after"]
    code, out, err = wardround(capsys, "evaluate", home)
    assert code == 0, err
    assert "Dice coefficient" in out and "surface distance, px" in out and "Dice coefficient, zeta" in out
    assert "Not judged" not in out
