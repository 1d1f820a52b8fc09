"""Text from outside, as it may be shown: on a terminal, in a log, a CSV, a report or an error.

A name that somebody else wrote can hold an escape sequence that repaints the screen, a line break that forges a line of
a log, a mark that turns the reading direction around (Boucher and Anderson, "Trojan Source", 2023), or a megabyte.
Whatever shows such text shows `shown(text)`; whatever a person approves has no such text at all (`is_plain`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

LONGEST = 200  # characters, where nothing else is said
# Cc, Cf: control and format characters, bidirectional marks among them. Cs: halves of pairs. Co, Cn: private use and
# unassigned, which a font may draw as anything. Zl, Zp: line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that nothing is drawn for: Unicode's Default_Ignorable_Code_Point, and the empty braille.
_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
_MOST_MARKS = 4  # on one letter; a pile of them is drawn over the lines above and below


def shown(text: object, limit: int = LONGEST) -> str:
    r"""The text on one line, every invisible character written out (\x1b, \u202e), cut to `limit` characters.

    What was cut is said: "a long na... (1,204 characters)".
    """
    whole = str(text)
    escaped = "".join(_letters(whole[: limit + 1]))
    if len(whole) <= limit and len(escaped) <= 2 * limit:
        return escaped
    return f"{escaped[:limit]}... ({len(whole):,} characters)"


def capital(text: str) -> str:
    """The same with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def counted(count: int, one: str, several: str = "") -> str:
    """1 patient, 2 patients; 1 study, 2 studies."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def is_plain(text: str) -> bool:
    """Whether every character of the text is one that a reader sees, or a single blank between two that he sees."""
    return bool(text) and text == " ".join(text.split()) and shown(text, len(text)) == text


def _letters(text: str) -> Iterator[str]:
    marks = 0
    for letter in text:
        marks = marks + 1 if unicodedata.category(letter) in ("Mn", "Me") else 0
        yield _escaped(letter, marks > _MOST_MARKS)


def _escaped(letter: str, piled: bool) -> str:
    category = unicodedata.category(letter)
    seen = category not in _UNSHOWN and category != "Zs" and letter not in _EMPTY
    if letter == " " or (seen and not piled):
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
