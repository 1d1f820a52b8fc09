"""A class is suggested for a slip of the pen, and not for another short word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from wardround.planes import UNKNOWN, plane_of
from wardround.task import Task
from wardround_client.cohort.labels import label_counts, nearest

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FINDINGS = (
    *("nodule", "mass", "effusion", "atelectasis", "cardiomegaly", "consolidation", "edema", "emphysema", "fibrosis"),
    *("hernia", "infiltration", "pneumonia", "pneumothorax", "bone", "stone", "tone", "lung", "nose", "abnormal"),
    *("anomaly", "nodes", "normally", "benign", "nevus", "atypical"),
)
NOTHING = (
    *("none", "None", "NONE", "no", "No", "nil", "0", "1", "-", "n/a", "NA", "no_finding", "negative", "neg", "normal"),
    *("Normal", "unremarkable", "keine", "aucune", "absent", "clear", "nothing", "false", "typical", "no finding"),
)
long_words = st.text(LETTERS, min_size=6, max_size=14)


def test_a_word_for_nothing_is_no_misspelt_finding() -> None:
    assert {(cell, name) for cell in NOTHING for name in FINDINGS if nearest(cell, [name])} == set()


@given(cell=st.text(LETTERS + "0123456789+- ", max_size=5), name=st.text(LETTERS + "0123456789+- ", max_size=5))
def test_short_words_are_the_same_or_not(cell: str, name: str) -> None:
    same = "".join(cell.replace("-", " ").split()) == "".join(name.replace("-", " ").split())
    assert same or nearest(cell, [name]) is None


@given(word=long_words, data=st.data())
def test_a_slip_behind_the_first_letter_of_a_long_word_is_recognised(word: str, data: st.DataObject) -> None:
    at, letter = data.draw(st.integers(1, len(word) - 2)), data.draw(st.sampled_from(LETTERS))
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + letter + word[at:],
        word[:at] + letter + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )
    for slip in slips:
        assert nearest(slip, ["other", word]) == word
        assert nearest(f"left {slip}", ["right " + word, "left " + word]) == "left " + word


@given(word=long_words, other=long_words)
def test_words_that_differ_in_more_are_not(word: str, other: str) -> None:
    assume(abs(len(word) - len(other)) > 1 or sum(a != b for a, b in zip(word, other, strict=False)) > 5)
    assume(sorted(word)[:-1] != sorted(other)[:-1] and len(set(word) ^ set(other)) > 2)
    assert nearest(word, [other]) is None


@given(word=long_words, one=st.sampled_from(["1", "2", "i", "ii", "a", "b"]), other=st.sampled_from(["3", "iii", "c"]))
def test_grades_are_not_taken_for_each_other(word: str, one: str, other: str) -> None:
    assert nearest(f"{word} {one}", [f"{word} {other}"]) is None
    assert nearest(f"{word}1", [f"{word}2"]) is None and nearest(f"{word}+", [f"{word}-"]) is None


@given(name=st.text(LETTERS + LETTERS.upper() + " ", min_size=1, max_size=12).filter(str.strip))
@pytest.mark.parametrize("said", [str.upper, str.lower, lambda s: f"  {s} ", lambda s: s.replace(" ", "_")])
def test_case_and_blanks_never_matter(name: str, said: object) -> None:
    assert callable(said) and nearest(said(name), [name]) == name


CLASSES = ("background", "lesion", "vessel")
shown_classes = st.lists(st.sampled_from([*CLASSES, "unknown"]), min_size=1, max_size=4)


@given(images=st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), shown_classes)), max_size=8))
@pytest.mark.parametrize("labels", ["mask", "points"])
def test_patients_are_counted_by_what_their_masks_show(images: list[tuple[int, list[str] | None]], labels: str) -> None:
    inputs = np.full((len(images), 2, 2, 2), UNKNOWN, np.uint16)
    for plane, (_, there) in zip(inputs[:, -1], images, strict=True):
        for pixel, name in enumerate(there or []):
            plane.flat[pixel] = UNKNOWN if name == "unknown" else plane_of(np.array(CLASSES.index(name)), 7)
    store: Any = SimpleNamespace(
        inputs=inputs,
        patients=np.array([patient for patient, _ in images], np.int64),
        labels=lambda column: [None if there is None else "marked" for _, there in images],
    )
    counts = label_counts(store, Task(label_column="m", classes=CLASSES, labels=labels, image_size_px=32))
    assert counts.unknown == {} and counts.classes == {
        name: len({patient for patient, there in images if there and name in there}) for name in CLASSES
    }
