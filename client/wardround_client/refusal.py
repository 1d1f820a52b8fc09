"""What leaves where a round is not answered: words that say nothing of a patient."""

from __future__ import annotations

import numpy as np

from wardround.errors import MessageError, PolicyRefusal, WardroundError
from wardround.wire import Refusal, ReplyHeader, RequestHeader, RoundReply
from wardround_client.config import Identity


def refused(who: Identity, header: RequestHeader | None, error: Exception, *, named: bool) -> bytes:
    """A packed reply: the rule, what was asked and what is allowed, all of it public; of other errors only the kind.

    Args:
        who: the hospital that refuses.
        header: of the request, as far as it could be read.
        error: why.
        named: whether it was raised before anything of the cohort was looked at; else its words stay here as well.
    """
    refusal = Refusal(error="InternalError")
    if isinstance(error, PolicyRefusal) and named:
        refusal = Refusal(
            error="PolicyRefusal", rule=error.rule[:128], asked=_said(error.asked), allowed=_said(error.allowed)
        )
    elif isinstance(error, MessageError) and named:
        refusal = Refusal(error="MessageError", asked=_said(error.what), allowed=_said(error.allowed))
    elif isinstance(error, WardroundError):
        refusal = Refusal(error=type(error).__name__)
    return RoundReply(
        ReplyHeader(
            run=header.run if header else "unknown",
            round=header.round if header else 0,
            hospital=who.name,
            declared_patients=who.declared_patients,
            epsilon=0.0,
            refusal=refusal,
        ),
        np.zeros(0, np.float32),
    ).pack()


def _said(text: str) -> str:
    """A text as a refusal may hold it: short, and one byte a character whatever the sender wrote."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text[:256])
