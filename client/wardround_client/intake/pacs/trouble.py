"""What can go wrong with a PACS, in words. It crosses a pipe, so it is plain data."""

from __future__ import annotations

from typing import Literal, NamedTuple

from wardround.errors import FederationError


class Trouble(NamedTuple):
    """kind: what is done about it.

    "away": nobody answers; "busy": it asks for patience (HTTP 429 and 503, out of resources). Both are tried again, and
    then the pull stops. "refused": this hospital, or its settings, are not accepted; "full": the disk here took no more
    of what it gives; it stops at once. "broken": the answer makes no sense or does not end; it is tried again, and then
    what was asked for is set aside. "absent": the PACS does not have it. what: one sentence, without what a patient
    would be known by. do: what a person does. after_s: when the PACS wants to be asked again, or 0.
    """

    kind: Literal["away", "busy", "refused", "broken", "absent", "full"]
    what: str
    do: str = ""
    after_s: float = 0.0


class TroubleError(Exception):
    """Raised where a PACS is talked to."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        super().__init__(trouble.what)


class PacsError(FederationError):
    """The PACS did not give everything that was asked for."""


def trouble(
    kind: Literal["away", "busy", "refused", "broken", "absent", "full"], what: str, do: str = "", after_s: float = 0.0
) -> TroubleError:
    """To be raised."""
    return TroubleError(Trouble(kind, what, do, after_s))
