"""Lower bounds on epsilon out of an attacker's guesses, each with a confidence. Only counts of wrong guesses enter.

An attacker sees an answer and says whether a canary was among the patients. FPR is how often it says so wrongly, FNR
how often it misses one. However it decides, privacy bounds the pair from below; a pair below the bound refutes it.

* `gaussian_mu`: mu-GDP asks FNR >= G_mu(FPR) (Dong, Roth and Su, "Gaussian differential privacy", 2022).
  The least mu that permits what was counted is the bound (Nasr et al., "Tight auditing of differentially private
  machine learning", 2023). One Gaussian answer about everybody, and any number of them, claim exactly this.
* `subsampled_mu`: the same for one Gaussian answer about a Poisson sample of a known rate.
* `any_epsilon`: (epsilon, delta)-DP asks FNR >= 1 - delta - e^epsilon FPR, and the same with the two changed over
  (Kairouz, Oh and Viswanath, "The composition theorem for differential privacy", 2015).
* `one_run_epsilon`: many canaries in one run, each with its own bit. No assumption on the mechanism, or on how canaries
  disturb each other (Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", 2023, theorem 5.2).

FPR and FNR are known up to Clopper-Pearson limits. In the first three, guesses must be independent of each other, as
they are where the noise of different numbers is: a mechanism without that breaks the claim, too. Every third
guess helps to choose the threshold, and the score where there are several; the bound comes from the rest alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri
from scipy.stats import beta

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Bound = Callable[[Floats, Floats], Floats]  # upper limits of FPR and of FNR -> a lower bound

_THRESHOLDS = 64
_SELECTION = 3  # one part in so many chooses
_LEAST_FNR = 1e-9
_GUESS_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
_GREATEST_EPSILON = 64.0


@dataclass(frozen=True)
class Evidence:
    """What trials showed.

    scores: float64 [n, columns]; the larger, the more a canary seems to be there. Each column is one way to score.
    inside: bool [n], whether it was.
    """

    scores: Floats
    inside: Bools

    def split(self) -> tuple[Evidence, Evidence]:
        """The trials that choose, and those that count."""
        chooses = np.arange(len(self.inside)) % _SELECTION == 0  # a third of every answer about many canaries
        selection, rest = (Evidence(self.scores[which], self.inside[which]) for which in (chooses, ~chooses))
        return selection, rest

    def thresholds(self, column: int) -> Floats:
        """Candidates: quantiles of all scores of a column."""
        if not len(self.scores):
            return np.zeros(1)
        return np.unique(np.quantile(self.scores[:, column], np.linspace(0, 1, _THRESHOLDS)))

    def limits(self, column: int, thresholds: Floats, error: float) -> tuple[Floats, Floats]:
        """Upper limits of FPR and FNR of "inside, because the score is above"; together wrong with at most `error`."""
        outside, inside = (np.sort(self.scores[of, column]) for of in (~self.inside, self.inside))
        false_alarms = len(outside) - np.searchsorted(outside, thresholds, side="right")
        misses = np.searchsorted(inside, thresholds, side="right")
        return (
            clopper_pearson(false_alarms, len(outside), error / 2),
            clopper_pearson(misses, len(inside), error / 2),
        )


def clopper_pearson(count: npt.NDArray[np.int64], n: int, error: float) -> Floats:
    """The upper limit of a probability that shows `count` times in n; too low with a probability of at most `error`."""
    if n == 0:
        return np.ones(len(count))
    limits: Floats = np.where(count >= n, 1.0, beta.ppf(1 - error, count + 1.0, np.maximum(n - count, 0.5)))
    return limits


def threshold_bound(evidence: Evidence, bound: Bound, error: float) -> float:
    """The bound at the threshold that looked best on trials of its own; passes the truth with at most `error`."""
    selection, rest = evidence.split()
    best, column, threshold = -np.inf, 0, np.zeros(1)
    for each in range(evidence.scores.shape[1]):
        candidates = selection.thresholds(each)
        values = bound(*selection.limits(each, candidates, error))
        if values.max() > best:
            best, column, threshold = values.max(), each, candidates[[values.argmax()]]
    return float(bound(*rest.limits(column, threshold, error))[0])


def gaussian_mu(fpr: Floats, fnr: Floats) -> Floats:
    """The least mu with G_mu(fpr) <= fnr, at least 0."""
    mu: Floats = np.maximum(0.0, -(ndtri(fpr) + ndtri(fnr)))
    return mu


def subsampled_mu(rate: float) -> Bound:
    """Of one Gaussian answer of sensitivity over noise mu about a sample of this rate: the least mu.

    With the rate q the canary is in the answer, else nothing of it is: FNR >= (1 - q) (1 - FPR) + q G_mu(FPR).
    """

    def bound(fpr: Floats, fnr: Floats) -> Floats:
        # Below 0 no mu would do: the rate itself is greater. The bound then stays large, and finite.
        sampled = np.clip((fnr - (1 - rate) * (1 - fpr)) / rate, _LEAST_FNR, 1.0)
        return gaussian_mu(fpr, sampled)

    return bound


def any_epsilon(delta: float) -> Bound:
    """Of any (epsilon, delta)-DP mechanism: the least epsilon, at least 0."""

    def bound(fpr: Floats, fnr: Floats) -> Floats:
        forth, back = ((1 - one - delta) / other for one, other in ((fnr, fpr), (fpr, fnr)))
        return np.log(np.maximum(1.0, np.maximum(forth, back)))

    return bound


def one_run_epsilon(evidence: Evidence, delta: float, error: float) -> float:
    """Canaries with fair bits of their own, guessed "inside" above one threshold and "outside" below another.

    How much to abstain is chosen on the selection, as the thresholds are. The bits that count are independent of it.
    """
    selection, rest = evidence.split()
    scores = selection.scores[:, 0]
    if not len(scores):
        return 0.0
    best, chosen = -1.0, (-np.inf, np.inf)
    for share in _GUESS_SHARES:
        low, high = np.quantile(scores, [share, 1 - share])
        for lowest in (low, -np.inf):  # or say "inside" alone
            value = _guessed(selection, lowest, high, delta, error, len(rest.inside) / len(scores))
            if value > best:
                best, chosen = value, (lowest, high)
    return _guessed(rest, *chosen, delta, error, 1.0)


def _guessed(evidence: Evidence, low: float, high: float, delta: float, error: float, times: float) -> float:
    """The bound if each count were `times` as large."""
    scores, inside = evidence.scores[:, 0], evidence.inside
    said_inside = scores >= high  # scores without noise are all alike: the thresholds themselves are guessed, too
    said_outside = (scores <= low) & ~said_inside
    right = int((said_inside & inside).sum() + (said_outside & ~inside).sum())
    guesses = int(said_inside.sum() + said_outside.sum())
    return one_run_bound(
        round(times * len(inside)), round(times * guesses), round(times * right), delta=delta, error=error
    )


def one_run_bound(canaries: int, guesses: int, right: int, *, delta: float, error: float) -> float:
    """The largest epsilon that is refuted, with at most `error`, by so many right guesses about so many canaries."""
    low, high = 0.0, _GREATEST_EPSILON
    if one_run_p_value(canaries, guesses, right, 0.0, delta) >= error:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if one_run_p_value(canaries, guesses, right, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def one_run_p_value(canaries: int, guesses: int, right: int, eps: float, delta: float) -> float:
    """Steinke et al. 2023, theorem 5.2: how likely an (eps, delta)-DP mechanism lets so many guesses be right, at most.

    Without delta, right guesses are at most those of independent coins that fall right with e^eps / (1 + e^eps). Delta
    adds 2 x canaries x delta x the greatest mean slope of the coins' tail below the count.
    """
    choose, heads = _log_choose(guesses), np.arange(guesses + 1)
    log_right = -np.log1p(np.exp(-eps))
    pmf = np.exp(choose + heads * log_right + (guesses - heads) * (log_right - eps))
    below = np.cumsum(pmf[:right][::-1])
    slope = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, float(pmf[right:].sum()) + 2 * canaries * delta * slope)


@lru_cache(maxsize=64)
def _log_choose(n: int) -> Floats:
    """Logarithms of n over 0, ..., n over n."""
    k = np.arange(n + 1)
    logs: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return logs
