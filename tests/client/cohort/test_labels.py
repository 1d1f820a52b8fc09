"""A class is suggested for a slip of the pen, and not for another short word."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from wardround_client.cohort.labels import nearest

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
