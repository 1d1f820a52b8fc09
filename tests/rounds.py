"""Rounds for tests of hospitals: an agreement about a table of two columns, honest requests, and replies as read."""

from __future__ import annotations

import numpy as np

from wardround.schedule import QUESTIONS
from wardround.wire import RequestHeader, RoundReply, RoundRequest, Vector
from wardround_client.consent.agreement import Agreement

RUN = "spring"
TWO_COLUMNS = """
[task]
label_column = "y"
classes = ["no", "yes"]
kind = "table"
features = ["a", "b"]
[model]
family = "logistic"
"""


def request(
    agreement: Agreement,
    number: int,
    *,
    run: str = RUN,
    theta: float | Vector = 0.0,
    shift: float | Vector = 0.0,
    scale: float | Vector = 1.0,
) -> bytes:
    """An honest request, but for the numbers that are named."""
    model = agreement.model
    return RoundRequest(
        RequestHeader(run=run, federation=agreement.federation.digest, round=number),
        np.full(model.layout.size, theta, np.float32),
        np.full(model.scaling_size, shift, np.float32),
        np.full(model.scaling_size, scale, np.float32),
    ).pack()


def read(agreement: Agreement, blob: bytes, number: int, *, run: str = RUN) -> RoundReply:
    """The reply to a round's question, checked as the coordinator does. Raises: MessageError."""
    question = QUESTIONS[agreement.schedule[number].question]
    size = question.layout(agreement.federation, agreement.model).size
    return RoundReply.unpack(blob, run=run, round=number, size=size)
