"""A mistake in a TOML file is answered with the key, the nearest valid one, and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround.toml import line_of, loads

GOOD = """name = "chest"
[task]
label_column = "finding"
classes = ["none", "nodule"]

[privacy]
epsilon = 3.0
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loads(text, Federation, name="federation.toml")
    return str(caught.value)


def test_a_misspelt_key_names_itself_its_line_and_the_nearest_key() -> None:
    message = refusal(GOOD.replace("epsilon", "epsylon"))
    assert "line 7" in message
    assert "'privacy.epsylon'" in message
    assert "did you mean 'epsilon'?" in message


def test_a_misspelt_table_names_the_nearest_table() -> None:
    message = refusal(GOOD.replace("[privacy]", "[privcy]"))
    assert "line 6" in message
    assert "did you mean 'privacy'?" in message


def test_a_key_like_no_other_lists_the_valid_ones() -> None:
    message = refusal(GOOD + "zzz = 1\n")
    assert "line 8" in message
    assert "clip_norm" in message


def test_a_missing_key_is_named_with_its_table() -> None:
    message = refusal(GOOD.replace('label_column = "finding"\n', ""))
    assert "missing key 'task.label_column'" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epsilon = -1.0", "greater than or equal to 0.001"),
        ("epsilon = inf", "less than or equal to"),
        ('epsilon = "much"', "number"),
    ],
)
def test_an_impossible_value_is_shown(line: str, said: str) -> None:
    message = refusal(GOOD.replace("epsilon = 3.0", line))
    assert "line 7" in message
    assert "privacy.epsilon" in message
    assert said in message


def test_what_is_not_toml_says_where() -> None:
    assert "line 2" in refusal('name = "x"\nthis is not toml\n')


def test_every_mistake_is_told_at_once() -> None:
    message = refusal(GOOD.replace("epsilon", "epsylon").replace("classes", "clases"))
    assert "epsylon" in message
    assert "clases" in message


def test_a_missing_file_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_federation(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_federation(tmp_path / "binary.toml")


@given(st.text(max_size=200))
def test_no_text_is_answered_with_anything_but_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        loads(text, Federation)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(lambda key: key.strip()))
def test_a_key_in_quotation_marks_is_found_on_its_line(key: str) -> None:
    written = key.replace("\\", "\\\\").replace('"', '\\"')
    text = f'[a]\nfirst = 1\n[a.b]\n"{written}" = 2\nlast = 3\n'
    assert line_of(text, ["a", "b", key]) == 4
    assert line_of(text, ["a", "b", key, "0"]) == 4
    assert line_of(text, ["a", "b", "elsewhere"]) == 3 + (key == "elsewhere")
