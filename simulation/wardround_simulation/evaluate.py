"""How good a shared model is, measured without noise: only a simulation may look at patients like this."""

from __future__ import annotations

from typing import Any

import wardround_client.personalise as personalise
from wardround_client.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_server.checkpoint import State


def accuracy(hospital: Hospital, agreement: Agreement, state: State) -> float:
    """The shared model's balanced accuracy at a hospital, before any adaptation, in [0, 1]."""
    examples = hospital.examples(agreement)
    theta, shift, scale = (v.to(examples.device) for v in (state.theta, state.shift, state.scale))
    return personalise.evaluate(agreement.model, theta, examples, shift=shift, scale=scale)


def compare_shots(hospital: Hospital, agreement: Agreement, state: State, *, shots: int, seed: int) -> dict[str, Any]:
    """k-shot balanced accuracy from the meta-learned and from a fresh model, for k = 1 and k = shots.

    Returns:
        What comparison.json holds: hospital, repeats, chance, and rows of {shots, meta, fresh}, each {mean, low, high}.
    """
    examples, model = hospital.examples(agreement), agreement.model
    theta, shift, scale = (v.to(examples.device) for v in (state.theta, state.shift, state.scale))
    scores = personalise.compare(
        model,
        theta,
        model.initial().detach().to(examples.device),
        examples,
        shift=shift,
        scale=scale,
        shots=sorted({1, shots}),
        seed=seed,
    )
    rows: dict[int, dict[str, Any]] = {}
    for score in scores:
        start = "meta" if score.start == "meta-learned" else "fresh"
        low, high = max(0.0, score.mean - score.half_width), min(1.0, score.mean + score.half_width)
        row = rows.setdefault(score.shots, {"shots": score.shots})
        row[start] = {"mean": score.mean, "low": low, "high": high}
    return {
        "hospital": hospital.config.hospital.name,
        "repeats": scores[0].repeats,
        "chance": 1 / model.classes,
        "rows": list(rows.values()),
    }
