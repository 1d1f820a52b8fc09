"""How well scores tell members from non-members: TPR at a low FPR, with exact intervals, the ROC curve and its area.

Carlini et al., "Membership inference attacks from first principles", 2022, section III: an attack is judged by its true
positive rate at a false positive rate so low that a positive means something; average accuracy hides that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from wardround.accountant import Answers, epsilon, gaussian_mu
from wardround_client.audit.bounds import clopper_pearson

Floats = npt.NDArray[np.float64]
Ceiling = Callable[[float], float]
"""From an FPR, the largest TPR that a promise allows."""

CONFIDENCE = 0.95
LEAST_FPR = 1e-4  # where the log-log plot begins
_CURVE_POINTS = 120
_ROUNDING = 1e-12
_DELTAS = (1e-4, 1e-3, 1e-2, 0.1)  # each costs the accountant a composition


@dataclass(frozen=True)
class Share:
    """`hits` of `trials`, with a Clopper-Pearson interval [low, high]."""

    hits: int
    trials: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, trials: int, confidence: float = CONFIDENCE) -> Share:
        """The exact binomial interval (Clopper and Pearson 1934). Raises: ValueError, unless 0 <= hits <= trials > 0.

        >>> Share.of(0, 1000).low
        0.0
        """
        if not 0 <= hits <= trials or not trials:
            raise ValueError(f"{hits} of {trials}")
        high, missed = clopper_pearson(np.array([hits, trials - hits]), trials, (1 - confidence) / 2)
        return cls(hits, trials, 1 - float(missed), float(high))

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.hits / self.trials


@dataclass(frozen=True)
class RocPoint:
    """An attack at one threshold, the score of one of the others.

    asked: the FPR that the threshold was chosen for. tpr: of the members. false_positives: of `others`, those above it.
    """

    asked: float
    tpr: Share
    false_positives: int
    others: int

    @property
    def fpr(self) -> float:
        """The probability, over the others drawn and one more, that this one more is above the threshold: exact."""
        return (self.false_positives + 1) / (self.others + 1)

    def fpr_limits(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Where the FPR of this very threshold lies: a beta distribution, as of every order statistic."""
        tail, ends = (1 - confidence) / 2, (self.false_positives + 1, self.others - self.false_positives)
        return float(beta.ppf(tail, *ends)), float(beta.ppf(1 - tail, *ends))

    @property
    def resolved(self) -> bool:
        """Whether there are enough non-members for the FPR asked; with n of them the least is 1/(n + 1)."""
        return self.fpr <= self.asked * (1 + _ROUNDING)


def tpr_at(members: Floats, others: Floats, fpr: float) -> RocPoint:
    """The attack "a member if the score is above that of the k-th highest of n others", k = floor(fpr x (n + 1)).

    One more person who took no part is then above it with a probability of k / (n + 1), whatever the distribution: the
    exactness of a conformal p-value (Bates et al., "Testing for outliers with conformal p-values", 2023). Choosing the
    threshold at which the FPR COUNTED is fpr would accuse (k + 1) / (n + 1), twice as many at k = 1. Nothing is
    interpolated, and a tie is no hit. With fewer than 1/fpr - 1 others the highest of them is the threshold.

    Args:
        members: float64 [m], the higher the more like a member.
        others: float64 [n], of people who took no part.
        fpr: in [0, 1).

    Raises: ValueError, for no members, no others, or a score that is NaN.
    """
    _check(members, others)
    rank = max(1, min(len(others), math.floor(fpr * (len(others) + 1) * (1 + _ROUNDING))))
    threshold = np.sort(others)[len(others) - rank]
    hits = Share.of(int((members > threshold).sum()), len(members))
    return RocPoint(fpr, hits, int((others > threshold).sum()), len(others))


def area(members: Floats, others: Floats) -> tuple[float, float]:
    """The area under the ROC curve, ties counting half, and its standard error.

    Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982: the error of a Mann-Whitney statistic.

    Raises: as `tpr_at`.
    """
    _check(members, others)
    ordered = np.sort(others)
    below, upto = np.searchsorted(ordered, members, "left"), np.searchsorted(ordered, members, "right")
    auc = float((below + upto).mean() / 2 / len(others))
    m, n = len(members), len(others)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (m * n)
    return auc, math.sqrt(max(variance, 0.0))


def curve(members: Floats, others: Floats, points: int = _CURVE_POINTS) -> list[tuple[float, float]]:
    """Points (FPR, TPR) of the ROC curve, each as `tpr_at` has it, about evenly spread over log FPR.

    The first lies at 1/(n + 1) or above, the last is (1, 1).

    Raises: as `tpr_at`.
    """
    _check(members, others)
    n = len(others)
    ordered, ranked = np.sort(others), np.sort(members)
    found = []
    for rank in np.unique(np.round(np.geomspace(1, n, points)).astype(int)):
        wrong, right = (int(len(of) - np.searchsorted(of, ordered[n - rank], "right")) for of in (ordered, ranked))
        found.append(((wrong + 1) / (n + 1), right / len(ranked)))
    return list(dict.fromkeys([*found, (1.0, 1.0)]))


def ceiling_of(histories: Sequence[Sequence[Answers]]) -> tuple[Ceiling, float | None]:
    """The largest TPR at an FPR that ANY attack can reach against the hospital with the least noise; and its mu.

    Where nothing was subsampled, all answers are one Gaussian mechanism and its trade-off curve is exact: TPR =
    Phi(Phi^-1(FPR) + mu) (Dong, Roth and Su, "Gaussian differential privacy", 2022, equation 6 and corollary 3.3).
    Else mu is None, and the curve is the lower envelope of the lines that (epsilon, delta) pairs give, both ways round
    (Wasserman and Zhou 2010, theorem 2.4; Kairouz, Oh and Viswanath 2015).

    The promise is about one patient added or removed, so the curve bounds an attack if every candidate was a member by
    a coin of its own. Cohorts of a fixed size differ from that by one patient in all of them.

    Args:
        histories: of each hospital, the ledger rows of the whole run.
    """
    rows = [tuple(history) for history in histories]
    if all(row.sampling_rate == 1 for history in rows for row in history):
        mu = max(gaussian_mu(history) for history in rows)
        return (lambda fpr: gaussian_tpr(mu, fpr)), mu
    pairs = [(max(epsilon(history, delta) for history in dict.fromkeys(rows)), delta) for delta in _DELTAS]
    return (lambda fpr: min(_line(eps, delta, fpr) for eps, delta in pairs)), None


def gaussian_tpr(mu: float, fpr: float) -> float:
    """Phi(Phi^-1(fpr) + mu): the trade-off curve G_mu, as power against level.

    >>> gaussian_tpr(0.0, 0.25)
    0.25
    """
    return float(ndtr(ndtri(fpr) + mu)) if 0 < fpr < 1 else float(fpr)


def _line(eps: float, delta: float, fpr: float) -> float:
    return min(1.0, math.exp(min(eps, 700.0)) * fpr + delta, 1 - math.exp(-eps) * (1 - delta - fpr))


def _check(members: Floats, others: Floats) -> None:
    if not len(members) or not len(others):
        raise ValueError(f"{len(members)} members and {len(others)} others")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("a score is NaN")
