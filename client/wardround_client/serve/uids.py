"""UIDs of results: a function of the study, the model and the hospital's secret, so that a result has one UID for ever.

Whoever does not have the secret cannot know them before they are sent.
"""

from __future__ import annotations

from wardround_client.intake.pseudonyms import Pseudonyms


def uid(pseudonyms: Pseudonyms, study: bytes, model: str, what: str) -> str:
    """A UID made of a UUID (PS3.5 B.2) of version 8 (RFC 9562).

    study: pseudonym. model: digest. what: which of the objects, or of their series.
    """
    number = int.from_bytes(pseudonyms.exact("result", f"{study.hex()} {model} {what}")[:16], "big")
    number = number & ~(0xF << 76) | (8 << 76)
    number = number & ~(0x3 << 62) | (2 << 62)
    return f"2.25.{number}"


def series_uid(pseudonyms: Pseudonyms, study: bytes, model: str, kind: str) -> str:
    """Of all objects of one kind: sr, seg or heatmap."""
    return uid(pseudonyms, study, model, f"series of {kind}")
