"""The search for what must not leave finds it, in every encoding that it claims to know."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st
from tests.story.recorder import encodings, found

NOISE = bytes(range(256)) * 4


@given(st.binary(min_size=6, max_size=40), st.binary(max_size=7), st.binary(max_size=7))
def test_a_secret_is_found_in_any_company(secret: bytes, before: bytes, after: bytes) -> None:
    whole = before + secret + after
    for crossed in (whole, whole.hex().encode(), base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
        assert found(NOISE + crossed, secret)


def test_text_is_found_in_utf_16() -> None:
    assert found(NOISE + "PAT-0042".encode("utf-16"), b"PAT-0042")


@given(st.binary(min_size=6, max_size=40))
def test_no_form_is_so_short_that_chance_would_find_it(secret: bytes) -> None:
    assert min(map(len, encodings(secret))) >= 6
