"""Membership inference on a released model: how well can an attacker tell who took part?

pool.py     candidates: the patients who took part, and strangers of the same kind
shadows.py  models of the same kind, trained without a candidate
attacks.py  a score for every candidate, five ways
roc.py      TPR at a low FPR, intervals, curves, and the ceiling that the promise sets
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wardround.accountant import rows_for
from wardround_client.round import OpenCohort
from wardround_simulation.membership import roc
from wardround_simulation.membership.attacks import (
    Floats,
    Overlaps,
    Released,
    calibrated,
    evidence,
    loss,
)
from wardround_simulation.membership.pool import LEAST_OTHERS, Candidates, twin_pools
from wardround_simulation.membership.roc import Share
from wardround_simulation.membership.shadows import shadow_runs
from wardround_simulation.sites import Step

__all__ = ["FPRS", "SHADOWS", "LEAST_OTHERS", "Candidates", "Released", "infer", "twin_pools"]

FPRS = (0.001, 0.01)
SHADOWS = 16  # 96 find no more (measured on the embedded federation)
SURE = 0.999  # of each end of the intervals by which a promise is judged
ATTACKING, SHADOWING = "attacking", "shadow runs"

LOSS = ("loss", "Loss of the model", "holds the released model")
CALIBRATED = (
    "calibrated",
    "Loss, calibrated",
    "holds the released model, and trains models of its own without the candidate",
)
INNER = ("deltas", "Deltas, one by one", "saw every delta of every hospital, and holds the candidate's images")
CANDIDATES = ("candidates", "Deltas, all at once", "saw every delta, and holds the images of every candidate")
EVERYONE = (
    "everyone-else",
    "Deltas, all but one known",
    "saw every delta, and knows about everybody else whether they took part",
)


@dataclass(frozen=True)
class _Scores:
    """One attack's scores over all pools."""

    name: str
    label: str
    adversary: str
    members: Floats
    others: Floats


def infer(
    pools: Sequence[Candidates],
    released: Released,
    open_cohort: OpenCohort,
    *,
    step: Step,
    shadows: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run every attack, and set the promise beside it.

    Args:
        pools: one for each hospital that took part.
        released: what the run gave away.
        open_cohort: how the run's cohorts were opened, so that shadow runs are like it.
        step: is told how far the work is.
        shadows: how many shadow runs; None: SHADOWS for small models, none for networks that take minutes each.
        seed: of the shadows' draws.

    Returns:
        What membership.json holds: numbers of people; the ceiling (None without privacy); for each attack its
        adversary, its area under the curve, TPR at each of FPRS with Clopper-Pearson intervals, and its ROC curve; and
        what was left out, with the reason.
    """
    begun = time.monotonic()
    small = pools[0].agreement.federation.model.family != "conv4"
    runs = (SHADOWS if small else 0) if shadows is None else shadows
    attacks = [_split(LOSS, pools, [loss(pool, released) for pool in pools])]
    left_out: dict[str, str] = {}
    if runs > 1:
        trained = shadow_runs(pools, open_cohort, runs=runs, seed=seed, told=lambda *done: step(SHADOWING, *done))
        found = [calibrated(pool, released, trained, place) for place, pool in enumerate(pools)]
        attacks.append(_split(CALIBRATED, pools, found))
    else:
        left_out[CALIBRATED[1]] = "a shadow run of this model takes too long"
    seen = []
    for done, pool in enumerate(pools, start=1):
        seen.append(evidence(pool, released))
        step(ATTACKING, done, len(pools))
    known = [each for each in seen if each is not None]
    if len(known) == len(pools):
        attacks.append(_split(INNER, pools, [each.inner_product() for each in known]))
        attacks.append(_split(CANDIDATES, pools, [each.candidates() for each in known]))
        attacks.append(_split(EVERYONE, pools, [each.everyone_else() for each in known]))
    else:
        why = "the algorithm's answers are not sums over single patients, or the cohorts are too large"
        left_out |= {label: why for _, label, _ in (INNER, CANDIDATES, EVERYONE)}
    return _told(pools, released, attacks, left_out, known, runs) | {"seconds": round(time.monotonic() - begun, 3)}


def _told(
    pools: Sequence[Candidates],
    released: Released,
    attacks: Sequence[_Scores],
    left_out: dict[str, str],
    known: Sequence[Overlaps],
    runs: int,
) -> dict[str, Any]:
    ceiling, mu = _ceiling(pools) if released.private else (None, None)
    others = len(attacks[0].others)
    return {
        "members": len(attacks[0].members),
        "non_members": others,
        "resolution": 1 / (others + 1),
        "confidence": roc.CONFIDENCE,
        "shadow_runs": runs,
        "rounds_used": min((each.rounds for each in known), default=0),
        "rounds": pools[0].agreement.schedule.times("gradient"),
        "ceiling": None
        if ceiling is None
        else {
            "mu": mu,
            "tpr": [[fpr, ceiling(fpr)] for fpr in FPRS],
            "curve": [[fpr, ceiling(fpr)] for fpr in np.geomspace(roc.LEAST_FPR, 1, 81).tolist()],
        },
        "attacks": [_measured(attack, ceiling) for attack in attacks],
        "left_out": left_out,
    }


def _measured(attack: _Scores, ceiling: roc.Ceiling | None) -> dict[str, Any]:
    auc, error = roc.area(attack.members, attack.others)
    points = []
    for fpr in FPRS:
        point = roc.tpr_at(attack.members, attack.others, fpr)
        # The promise is broken if even the least TPR passes what the greatest FPR allows. Many attacks are judged, and
        # patients share the run's noise: an alarm asks for more than the intervals that are shown.
        least, (_, most) = Share.of(point.tpr.hits, point.tpr.trials, SURE).low, point.fpr_limits(SURE)
        passes = ceiling is not None and least > ceiling(most)
        low, high = point.fpr_limits()
        points.append(
            {
                "fpr_asked": fpr,
                "resolved": point.resolved,
                "false_positives": point.false_positives,
                "fpr": point.fpr,
                "fpr_low": low,
                "fpr_high": high,
                "tpr": point.tpr.rate,
                "tpr_low": point.tpr.low,
                "tpr_high": point.tpr.high,
                "passes_the_promise": passes,
            }
        )
    return {
        "name": attack.name,
        "label": attack.label,
        "adversary": attack.adversary,
        "auc": auc,
        "auc_standard_error": error,
        "points": points,
        "roc": [list(corner) for corner in roc.curve(attack.members, attack.others)],
    }


def _ceiling(pools: Sequence[Candidates]) -> tuple[roc.Ceiling, float | None]:
    """From the rows that stand in the hospitals' ledgers for the whole run."""
    agreements = [pool.agreement for pool in pools]
    return roc.ceiling_of(
        [[row for plan in a.schedule.rounds for row in rows_for(a.calibration, plan)] for a in agreements]
    )


def _split(what: tuple[str, str, str], pools: Sequence[Candidates], scores: Sequence[Floats]) -> _Scores:
    masks = [pool.is_member.numpy() for pool in pools]
    return _Scores(
        *what,
        members=np.concatenate([score[mask] for score, mask in zip(scores, masks, strict=True)]),
        others=np.concatenate([score[~mask] for score, mask in zip(scores, masks, strict=True)]),
    )
