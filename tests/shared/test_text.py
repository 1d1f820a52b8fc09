"""Text from outside is shown so that nobody's terminal, log or eye is deceived."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.text import is_plain, shown


@given(st.text(max_size=400), st.integers(1, 300))
def test_whatever_the_text_what_is_shown_is_one_short_line_of_visible_characters(text: str, limit: int) -> None:
    seen = shown(text, limit)
    assert len(seen) <= 2 * limit + 30
    assert all(letter == " " or unicodedata.category(letter)[0] not in "CZ" for letter in seen)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"]), min_size=1, max_size=60))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text
    assert is_plain(text)


@pytest.mark.parametrize(
    "text",
    ["", " a", "a ", "a  b", "a\nb", "a\x1b[2J", "a\u202eb", "a\u200bb", "a\u2028b", "\ud800", "a\u00a0b", "\x00"],
)
def test_what_a_reader_does_not_see_is_not_plain(text: str) -> None:
    assert not is_plain(text)


def test_what_was_cut_is_said() -> None:
    assert shown("x" * 5000, 10) == "xxxxxxxxxx... (5,000 characters)"
