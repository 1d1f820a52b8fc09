"""A federation learns; a hospital outside calls its classes otherwise, says what they are, adapts and predicts."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.story.processes import typed

from wardround.config import load_federation

pytestmark = pytest.mark.story

WORDS = {"normal": "unremarkable", "nodule": "Rundherd", "diffuse": "shadowing", "effusion": "shadowing"}
OWN = """[task]
label_column = "diagnosis"
classes = ["unremarkable", "Rundherd", "shadowing"]
"""
MAP = """
[task.same_as]
unremarkable = "normal"
Rundherd = ["nodule"]
shadowing = ["diffuse", "effusion"]
"""


@dataclass(frozen=True)
class Ward:
    """home: a hospital's, with a cohort in words of its own. practice: what the federation left."""

    home: Path
    practice: Path

    def adapt(self, own: str, *more: object, expect: int = 0) -> str:
        """With a task file -> what was said."""
        file = self.practice / "own.toml"
        file.write_text(own, encoding="utf-8")
        agreed, model = self.practice / "federation.toml", self.practice / "checkpoint.safetensors"
        given = ("--task", file, "--federation", agreed, "--model", model, "--name", "ours", "--overwrite")
        return typed("hospital", "adapt", self.home, *given, *more, expect=expect)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    """The last of the practice hospitals takes no part in learning."""
    folder = tmp_path_factory.mktemp("words")
    practice = folder / "practice"
    simulated = ("--hospitals", 3, "--rounds", 3, "--shots", 1, "--patients", "30-36")
    typed("simulate", *simulated, "--out", practice)
    images = sorted((practice / "hospitals").iterdir())[-1] / "images"
    with (images / "labels.csv").open(newline="") as file:
        key, *rows = list(csv.reader(file))
    column = key.index("finding")
    translated = [[*row[:column], WORDS[row[column]], *row[column + 1 :]] for row in rows]
    with (folder / "words.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*key[:column], "diagnosis", *key[column + 1 :]], *translated])
    typed("hospital", "init", folder / "home", "--name", "outside", "--patients", 30)
    size = load_federation(practice / "federation.toml").task.image_size_px
    taken = ("--labels", folder / "words.csv", "--size", size, "--workers", 1)
    typed("hospital", "ingest", folder / "home", images, *taken)
    return Ward(folder / "home", practice)


def test_a_map_is_declared_told_and_used_to_the_prediction(ward: Ward, tmp_path: Path) -> None:
    nothing = ward.adapt(OWN)
    assert "No class has a name of the federation's: all of the last layer is new." in nothing
    assert "What your classes look like to the federation's model" in nothing
    said = ward.adapt(OWN + MAP)
    assert "'unremarkable' from 'normal', 'Rundherd' from 'nodule', 'shadowing' from 'diffuse' and 'effusion'" in said
    assert "Nothing left this hospital" in said
    card = json.loads((ward.home / "adapted" / "ours" / "card.json").read_text())
    assert card["like"] == {"unremarkable": ["normal"], "Rundherd": ["nodule"], "shadowing": ["diffuse", "effusion"]}
    assert [each["class"] for each in card["looks_like"]] == card["classes"]
    assert all(each["patients"] == card["support_by_class"][each["class"]] for each in card["looks_like"])
    assert "ours at outside" in typed("hospital", "evaluate", ward.home)
    images = sorted((ward.practice / "hospitals").iterdir())[0] / "images"
    typed("hospital", "predict", ward.home, images, "--out", tmp_path / "answers")
    answers = json.loads((tmp_path / "answers" / "predictions.json").read_text())["patients"]
    assert {each["predicted"] for each in answers} <= {"unremarkable", "Rundherd", "shadowing"}
    assert json.loads(typed("hospital", "ledger", ward.home, "--json"))["entries"] == 0


def test_with_a_shot_a_class_nothing_is_said_of_what_it_looks_like(ward: Ward) -> None:
    said = ward.adapt(OWN, "--shots", 1)
    assert said.count("too few patients to tell") == 3
    assert "put this into the task file" not in said


def test_what_adapt_says_can_be_pasted(ward: Ward) -> None:
    """Where it is sure of nothing there is nothing to paste; noise decides."""
    said = json.loads(ward.adapt(OWN, "--json"))
    assert all({*each["like"]} <= {*WORDS} and 0 <= each["sure"] <= 1 for each in said["looks_like"])
    pasted = {each["class"]: each["like"] for each in said["looks_like"]}
    again = json.loads(ward.adapt(OWN + _table(pasted), "--json"))
    assert again["like"] == pasted


def _table(like: dict[str, Sequence[str]]) -> str:
    text = "\n[task.same_as]\n" + "".join(f'"{own}" = {json.dumps(theirs)}\n' for own, theirs in like.items())
    assert tomllib.loads(text)
    return text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"normal"', '"norml"', "did you mean 'normal'?"),
        ('"normal"', '"fracture"', "'fracture' is no class of the federation; allowed: 'normal', "),
        ('["nodule"]', '["nodule", "nodule"]', "names a class twice"),
        ("Rundherd = [", "Rundhert = [", "did you mean 'Rundherd'?"),
        ('"normal"', '"Rundherd"', "'Rundherd' is no class of the federation"),
        ('"normal"', '"nor\\u202emal"', "invisible"),
        ('"normal"', "\"normal", "not TOML"),
        ('"normal"', "{ normal = 1 }", "task.same_as.unremarkable"),
        ('shadowing = ', 'Rundherd = ', "not TOML"),
        ("[task.same_as]", "[task.same_like]", "unknown key 'task.same_like'"),
        ("[task.same_as]", "[same_as]", "own.toml"),
    ],
)  # fmt: skip
def test_a_map_that_cannot_be_meant_is_refused_in_a_sentence(ward: Ward, old: str, new: str, said: str) -> None:
    assert old in MAP
    refusal = ward.adapt(OWN + MAP.replace(old, new), expect=2)
    assert said in refusal
    assert "\u202e" not in refusal


def test_their_names_the_other_way_round_are_taken_as_declared_and_warned_about(ward: Ward) -> None:
    """A map may be nonsense and still be possible; what was learned says so, where it is sure."""
    other = MAP.replace('"normal"', '"effusion"').replace('["diffuse", "effusion"]', '["normal"]')
    said = ward.adapt(OWN + other)
    assert "'unremarkable' from 'effusion'" in said
    looks = json.loads((ward.home / "adapted" / "ours" / "card.json").read_text())
    for each in looks["looks_like"]:
        wrong = each["like"] and not {*each["like"]} & {*looks["like"][each["class"]]}
        assert (f"'{each['class']}' starts at" in said) == bool(wrong)
