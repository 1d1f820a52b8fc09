"""A run's row of experience: made of the agreement and of events, and of nothing else."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wardround.config import Federation
from wardround.errors import WardroundError
from wardround.experience.file import FILE, append
from wardround.experience.row import Described, Row, settings_of
from wardround.labels import LABEL_KINDS
from wardround.text import shown
from wardround_server.events import Event, RoundEnded, whole_lines

_logger = logging.getLogger(__name__)


def row_of(federation: Federation, events: Iterable[Event], comparison: Mapping[str, Any] | None = None) -> Row | None:
    """The row of a run; None where nobody answered.

    Scores are those of the last private evaluation: noised counts over all hospitals, the model as it is shared. What a
    simulation measured exactly (`RoundEnded.training_round`), and what was answered without privacy, is no score.

    comparison: of a simulation whose patients are nobody, from its last event; it then says the scores.
    """
    rounds = [event for event in events if isinstance(event, RoundEnded)]
    declared: dict[str, int] = {}
    for event in rounds:
        declared |= {who: number for who, number in event.declared_patients.items() if number}
    private = all(event.privacy == "ON" for event in rounds)
    balance = next((event.balance for event in rounds if event.balance and event.privacy == "ON"), ())
    kind = LABEL_KINDS[federation.task.labels]
    scores, metric = _compared(comparison), kind.scored
    if comparison is None:
        scores, metric = _evaluated(rounds), kind.evaluated
        if federation.task.labels == "one":  # of which the balanced one is in the events
            metric = kind.scored
    try:
        return Row(
            task=Described.of(
                federation.task,
                list(declared.values()),
                federation.privacy.epsilon if private else None,
                encoder=federation.model.encoder_sha256 or "builtin",
                balance=[each if 0 <= each <= 1 else 0.0 for each in balance],
            ),
            settings=settings_of(federation),
            scores=scores,
            metric=metric if re.fullmatch("[A-Za-z][A-Za-z ]{0,39}", metric) else "score",
            newcomer=comparison is not None,
        )
    except ValidationError:  # nobody answered, or a number is out of all proportion
        return None


def keep(folder: Path, federation: Federation, home: Path) -> None:
    """Append the row of a run, whose events lie in its folder, to the home's file. It never ends the run."""
    try:
        row = row_of(federation, [event for _, event in whole_lines(folder / "events.jsonl")])
        if row is not None:
            append(home / FILE, row)
    except WardroundError as error:
        _logger.warning("no row of experience was kept: %s", shown(error, 500))


def _evaluated(rounds: Iterable[RoundEnded]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for event in rounds:
        found = event.accuracy if event.balanced_accuracy is None else event.balanced_accuracy
        noised = event.question == "confusion" and event.privacy == "ON" and event.training_round is None
        if noised and found is not None and isfinite(found):
            scores = {0: min(max(found, 0.0), 1.0)}  # noise may carry it beyond
    return scores


def _compared(comparison: Mapping[str, Any] | None) -> dict[int, float]:
    rows = (comparison or {}).get("rows", ())
    return {int(row["shots"]): float(row["meta"]["mean"]) for row in rows}
