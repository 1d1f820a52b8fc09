"""A text from outside is a text, wherever a program shows it: on a screen, in a log, in a spreadsheet, in a page."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Column, Table
from rich.text import Text

from wardround.logs import OneLine
from wardround.screen import Screen
from wardround.text import is_plain, shown
from wardround.web.escaped import escape
from wardround_client.intake.spreadsheet import harmless

ODD = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\x1b\0\r\n\t\b\x07\x7f\x85\x9b\x9d\u2028\u202e\u2066\u200b\ufe0f\u3164[]/:;=+-@|'\"<>&\\"),
    ),
    max_size=60,
)
OWN = re.compile("\x1b\\[[0-9;]*m")  # colours and weights, which the program itself sets
CONTROL = {"Cc", "Cf", "Zl", "Zp", "Cs"}


def drawn(*renderables: object, **options: object) -> str:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, width=80, color_system="truecolor")
    screen.print(*renderables, **options)  # type: ignore[arg-type]
    return OWN.sub("", out.getvalue())


def controls(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in CONTROL} - {"\n"}


@given(ODD)
def test_a_line_is_one_line_and_no_control(text: str) -> None:
    told = drawn(f"Approved: {text}.", soft_wrap=True)
    assert controls(told) == set()
    assert told.count("\n") == 1
    assert told == f"Approved: {shown(text, 40_000)}.\n"


@given(ODD, ODD, ODD)
def test_cells_titles_and_styled_texts_are_no_control(title: str, cell: str, styled: str) -> None:
    table = Table(Column(title), Column(overflow="fold"), title=title, caption=cell)
    table.add_row(cell, Text(styled, style="bold red"))
    assert controls(drawn(table)) == set()
    assert controls(drawn(Text(styled, style="yellow"), soft_wrap=True)) == set()


@pytest.mark.parametrize(
    "text", ["[red]no[/red]", "no[/b]", "[link=file:///etc/passwd]x[/]", ":warning:", "[/]", "\\[b]"]
)
def test_markup_is_letters(text: str) -> None:
    assert drawn(text) == text + "\n"
    table = Table(Column(text), title=text)
    table.add_row(text)
    assert drawn(table).count(text) == 3


def test_the_style_of_the_program_itself_stays() -> None:
    out = io.StringIO()
    Screen(file=out, force_terminal=True, color_system="standard").print(Text("odd\x1b[2J", style="yellow"))
    assert out.getvalue() == "\x1b[33modd\\x1b[2J\x1b[0m\n"


@given(ODD, ODD)
def test_a_log_has_one_line_for_an_event(text: str, raised: str) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(OneLine())
    log = logging.Logger("hospital")
    log.addHandler(handler)
    log.warning("refused: %s", text)
    assert out.getvalue().count("\n") == 1
    try:
        raise ValueError(raised)
    except ValueError:
        log.exception("a round failed: %s", text)
    lines = out.getvalue().split("\n")
    assert controls(out.getvalue()) == set()
    assert [line[:4] for line in lines[2:-1]] == ["    "] * (len(lines) - 3)  # only events begin at the margin
    assert lines[1].endswith(shown(f"a round failed: {text}", 4000))


@given(ODD)
def test_a_cell_is_never_a_formula_and_has_no_control(text: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerow([harmless(text), harmless(3.5)])
    line = out.getvalue()
    assert controls(line) == set()
    assert line.count("\n") == 1
    (cells,) = csv.reader(io.StringIO(line))
    for separator in (",", ";", "|"):  # as spreadsheets of other countries cut it
        for part in cells[0].split(separator) if separator != "," else cells[:1]:
            assert not part.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert cells[1] == "3.5"


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", " =1+1", "\xa0=1", "\uff1d1", "a;=1+1", "\t=1", "@SUM(A1)", "a|-1"]
)
def test_known_formulas_begin_with_an_apostrophe(text: str) -> None:
    cell = str(harmless(text))
    assert cell.startswith("'") or re.search(r"[;|]'", cell)


@given(ODD)
def test_a_page_shows_the_text(text: str) -> None:
    told = escape(text)
    assert not set(told) & set("<>\"'")
    assert controls(told) == set()


@given(ODD)
def test_plain_is_what_is_shown_as_it_is(text: str) -> None:
    assert is_plain(text) <= (shown(text, len(text)) == text)
    assert not is_plain(text + " ")
    assert not is_plain("\ufe0f" + text)


def test_a_pile_of_marks_is_written_out() -> None:
    assert is_plain("e\u0301")
    assert not is_plain("e" + "\u0301" * 30)
    assert len(shown("e" + "\u0301" * 30)) > 100
