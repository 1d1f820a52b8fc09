"""How good a shared model is, measured without noise: only a simulation may look at patients like this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wardround.errors import DataError
from wardround.labels import LABEL_KINDS
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.personal.before_after import before_and_after
from wardround_client.personal.kinds import fitted_to
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner, compare
from wardround_server.checkpoint import State

SAME = 1e-6  # of probabilities that do not differ


def learner(agreement: Agreement, state: State, device: torch.device, theta: Tensor | None = None) -> Learner:
    """The federation's method at a state, or at another theta with the state's scaling."""
    parts = (v.to(device) for v in (state.theta if theta is None else theta, state.shift, state.scale))
    return Learner.of(agreement.federation, agreement.model, *parts)


def measured(hospital: Hospital, agreement: Agreement, state: State) -> float | None:
    """The shared model's `LabelKind.score` at a hospital, before any adaptation, in [0, 1].

    None while the model says the same of every image, as one does whose class means nobody has given yet, or whose head
    is made at home: its score would be that of a constant, and tell nothing of what was learned.
    """
    examples = hospital.examples(agreement)
    shared = learner(agreement, state, examples.device)
    fitted = shared.unadapted()
    said = shared.probabilities(fitted, examples.z)
    if len(said) and float((said - said[0]).abs().max()) < SAME:
        return None
    return shared.score(fitted, examples)


def compare_shots(
    hospital: Hospital,
    agreement: Agreement,
    state: State,
    *,
    shots: int,
    seed: int,
    step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """k-shot scores from the meta-learned and from a fresh model, for k = 0, 1 and shots.

    The fresh start gets the federation's feature scaling too, which can only favour it. Without shots there is nothing
    to draw, and no interval over draws.

    Returns:
        What comparison.json holds: hospital, repeats, score (its name), chance (None for overlaps of masks), rows of
        {shots, meta, fresh}, each {mean, low, high}, and the new-hospital card of one draw.
    """
    examples, model = hospital.examples(agreement), agreement.model
    learners = {
        "meta": learner(agreement, state, examples.device),
        "fresh": learner(agreement, state, examples.device, model.initial().detach()),
    }
    kind = LABEL_KINDS[agreement.federation.task.labels]
    scores = compare(learners, examples, shots=sorted({0, 1, shots}), seed=seed, step=step)
    rows: dict[int, dict[str, Any]] = {}
    for score in scores:
        low, high = max(0.0, score.mean - score.half_width), min(1.0, score.mean + score.half_width)
        row = rows.setdefault(score.shots, {"shots": score.shots})
        row[score.start] = {"mean": score.mean, "low": low, "high": high}
    return {
        "hospital": hospital.config.hospital.name,
        "repeats": scores[-1].repeats,
        "score": kind.scored,
        "chance": kind.chance(model.classes),
        "rows": list(rows.values()),
        "card": _card(hospital, agreement, learners["meta"], shots, seed),
    }


def _card(hospital: Hospital, agreement: Agreement, meta: Learner, shots: int, seed: int) -> dict[str, Any]:
    """The new-hospital card, or why there is none: somebody's own folders may hold one class only."""
    task = agreement.federation.task
    try:
        cohort, examples = hospital.patients.cohort(), hospital.examples(agreement)
        everybody, _ = Labelled.of(cohort, task, agreement.model, meta.theta.device, examples=examples)
        support, query = everybody.split(shots, seed)
        card = before_and_after(
            meta,
            fitted_to(meta, support),
            classes=task.classes,
            support=support,
            query=query,
        )
    except DataError as error:
        return {"skipped": str(error)}
    return {"shots": shots, **card}
