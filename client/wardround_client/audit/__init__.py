"""Does the code keep its promise? An audit of the real answers, on canaries instead of patients.

An accountant says from above what answers cost. The audit says from below what an attacker who sees everything can
tell, with a confidence: a lower bound on epsilon that passes the claim refutes it. It runs `PrivateCohort` itself, on
invented patients; no real one is read, no ledger is opened, nothing leaves.

Sources: Nasr et al., "Tight auditing of differentially private machine learning", 2023 (white-box canaries); Steinke,
Nasr and Jagielski, "Privacy auditing with one (1) training run", 2023 (many canaries in a run).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from wardround.accountant import Answers, epsilon, run_epsilon
from wardround.errors import ConfigError
from wardround_client.audit.bounds import (
    Evidence,
    any_epsilon,
    gaussian_mu,
    one_run_epsilon,
    subsampled_mu,
    threshold_bound,
)
from wardround_client.audit.canaries import Bench
from wardround_client.audit.experiments import Experiment, single_answers
from wardround_client.audit.report import AuditReport, AuditRow
from wardround_client.audit.walls import beside_the_noise
from wardround_client.audit.whole_run import whole_run
from wardround_client.consent.agreement import Agreement
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import OpenCohort

__all__ = ["DEFAULT_TRIALS", "LEAST_TRIALS", "AuditReport", "AuditRow", "audit"]

DEFAULT_TRIALS = 2000
LEAST_TRIALS = 200

Progress = Callable[[str, int, int], None]  # experiment, answers so far, answers in all


def audit(
    terms: Agreement,
    *,
    declared_patients: int,
    delta: float,
    trials: int = DEFAULT_TRIALS,
    confidence: float = 0.95,
    only: Collection[str] = (),
    open_cohort: OpenCohort = PrivateCohort,
    device: torch.device | str = "cpu",
    progress: Progress = lambda name, done, total: None,
) -> AuditReport:
    """Run all experiments on what an agreement asks of a hospital.

    Args:
        terms: the agreement.
        declared_patients: of the hospital.
        delta: of the hospital.
        trials: about how many answers each experiment asks for; more make the bounds sharper.
        confidence: that all lower bounds together are below the truth; each gets its share of the error (Bonferroni).
        only: names of experiments; none for all. The error is shared among all of them all the same.
        open_cohort: makes what is audited.
        device: where its gradients are computed.
        progress: called after each answer.

    Returns:
        The report. A refuted claim raises nothing here: see `AuditReport.check`.

    Raises: ConfigError, for impossible trials, confidence or names.
    """
    if trials < LEAST_TRIALS:
        raise ConfigError(f"an audit of {trials} trials", allowed=f"at least {LEAST_TRIALS}")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"a confidence of {confidence}", allowed="at least 0.5 and below 1")
    started, done, total, running = time.monotonic(), 0, 0, ""

    def tick(answers: int) -> None:
        nonlocal done
        done += answers
        progress(running, done, total)

    bench = Bench(
        federation=terms.federation,
        model=terms.model,
        schedule=terms.schedule,
        calibration=terms.calibration,
        privacy=terms.federation.privacy,
        declared_patients=declared_patients,
        delta=delta,
        trials=trials,
        open_cohort=open_cohort,
        device=torch.device(device),
        tick=tick,
    )
    run, singles = whole_run(bench), list(single_answers(bench))
    experiments = [*([run] if run else []), *singles]
    error = (1 - confidence) / (len(experiments) + bool(run))
    beside = beside_the_noise(bench, terms)
    _known([*(experiment.name for experiment in experiments), *(attack.name for attack in beside)], only)
    experiments = [experiment for experiment in experiments if not only or experiment.name in only]
    beside = [attack for attack in beside if not only or attack.name in only]
    total = sum(each.answers for each in experiments) + sum(each.answers for each in beside)
    rows = []
    for experiment in experiments:
        running = experiment.name
        evidence = experiment.collect()
        rows.append(_row(experiment, evidence, delta, error))
        if experiment is run:
            rows.append(_one_run_row(experiment, evidence, delta, error))
    for attack in beside:
        running = attack.name
        rows.append(attack.make())
    claimed = run_epsilon(terms.calibration, terms.schedule, len(terms.schedule) - 1, delta)
    return AuditReport(claimed, delta, confidence, tuple(rows), time.monotonic() - started)


def _known(names: list[str], only: Collection[str]) -> None:
    """Raises: ConfigError."""
    if unknown := sorted(set(only) - set(names)):
        raise ConfigError(f"no experiment of this agreement is called {', '.join(unknown)}", allowed=", ".join(names))


def _row(experiment: Experiment, evidence: Evidence, delta: float, error: float) -> AuditRow:
    """The sharpest bound that what is claimed of the experiment's answers permits."""
    rates = {row.sampling_rate for row in experiment.rows}
    answers = sum(row.count for row in experiment.rows)
    if rates == {1.0}:
        mu = threshold_bound(evidence, gaussian_mu, error)
        bound, assumes = _gaussian_epsilon(mu, 1.0, delta), "Gaussian noise"
    elif answers == 1:
        (rate,) = rates
        mu = threshold_bound(evidence, subsampled_mu(rate), error)
        bound, assumes = _gaussian_epsilon(mu, rate, delta), "Gaussian noise, the agreed sampling rate"
    else:
        bound, assumes = threshold_bound(evidence, any_epsilon(delta), error), "independent guesses"
    return _result(experiment, evidence, bound, assumes, delta)


def _one_run_row(experiment: Experiment, evidence: Evidence, delta: float, error: float) -> AuditRow:
    row = _result(experiment, evidence, one_run_epsilon(evidence, delta, error), "nothing", delta)
    return replace(row, name="one_run", answers=0, tests="the same, by a bound that assumes nothing")


def _result(experiment: Experiment, evidence: Evidence, bound: float, assumes: str, delta: float) -> AuditRow:
    return AuditRow(
        name=experiment.name,
        tests=experiment.tests,
        assumes=assumes,
        claimed_epsilon=epsilon(experiment.rows, delta),
        lower_bound_epsilon=bound,
        guesses=len(evidence.split()[1].inside),
        answers=experiment.answers,
    )


def _gaussian_epsilon(mu: float, rate: float, delta: float) -> float:
    """What one Gaussian answer of sensitivity over noise mu costs."""
    return epsilon([Answers(1 / mu, rate, 1)], delta) if mu > 1e-6 else 0.0
