"""The training of a whole run on canaries: every round, with the run's own noise, rate and clip norm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from wardround.accountant import Answers, rows_for
from wardround_client.audit.bounds import Evidence
from wardround_client.audit.canaries import (
    Bench,
    coins,
    orthogonal,
    patients,
    sampled_score,
)
from wardround_client.audit.experiments import CANARIES, Experiment, evidence_of

_LEAST_RUNS = 60  # of one canary each
_SAMPLED_COMPANIONS = 48  # enough that an episode lacks a support or a query only once in some hundred times


def whole_run(bench: Bench) -> Experiment | None:
    """Of the question that the run trains with; None where it trains with none."""
    rows = tuple(row for plan in bench.schedule.rounds if plan.trains for row in rows_for(bench.calibration, plan))
    if bench.schedule.times("gradient"):
        return _gradients(bench, rows)
    if bench.schedule.times("episode_gradient"):
        return _episodes(bench, rows)
    return None


def _gradients(bench: Bench, rows: tuple[Answers, ...]) -> Experiment:
    """Many canaries at once, each along a direction of its own and in the cohort with probability 1/2."""
    rate, sigma = bench.calibration.sampling_rate, bench.calibration.noise_multiplier("gradient")
    steps = bench.schedule.times("gradient")
    runs = max(1, bench.trials // steps)
    loss, theta = bench.canary_loss(), torch.zeros(CANARIES, device=bench.device)

    def collect() -> Evidence:
        scores, inside = [], []
        for _ in range(runs):
            bits = coins(CANARIES)
            examples = orthogonal(bits, bench.device)
            score = torch.zeros(CANARIES, dtype=torch.float64)
            for plan in bench.schedule.rounds:
                if plan.question != "gradient":
                    continue
                cohort = bench.in_round(plan, examples)
                for _ in range(plan.times):
                    answer = cohort.gradient(loss, theta).cpu() * bench.per_clip_norm(rate)
                    score += sampled_score(answer, rate, sigma)
                bench.tick(plan.times)
            scores.append(score)
            inside.append(bits)
        return evidence_of([torch.cat(scores)], np.concatenate(inside))

    return Experiment("run", "the whole training gives more away than agreed", rows, collect, runs * steps)


def _episodes(bench: Bench, rows: tuple[Answers, ...]) -> Experiment:
    """One canary a run, for an episode's gradient has one direction: each run is one trial.

    There are two episodes whatever the agreement says: how many there are moves no price, and two are quicker.
    """
    rate, sigma = bench.calibration.sampling_rate, bench.calibration.noise_multiplier("episode_gradient")
    steps = bench.schedule.times("episode_gradient")
    runs = max(_LEAST_RUNS, 4 * bench.trials // steps)
    expected = bench.privacy.expected_patients(bench.declared_patients)
    two = replace(
        bench,
        privacy=bench.privacy.model_copy(update={"patients_per_episode": max(2, math.ceil(expected / 2))}),
    )
    episodes = two.privacy.episodes(two.declared_patients)
    companions = math.ceil(_SAMPLED_COMPANIONS / rate)
    loss, theta = bench.canary_episode(), torch.zeros(2, device=bench.device)
    x = torch.zeros(companions + 1, 2)
    x[companions, 0] = 1.0
    worlds = patients(x[:companions], bench.device), patients(x, bench.device)
    # Without the canary every episode is at -C; with it one is at +C. In units of what the canary adds, from there.
    unit = episodes / (2 * bench.privacy.clip_norm)

    def collect() -> Evidence:
        inside, scores = coins(runs), []
        for bit in inside:
            score = 0.0
            for plan in bench.schedule.rounds:
                if plan.question != "episode_gradient":
                    continue
                cohort = two.in_round(plan, worlds[int(bit)])
                for _ in range(plan.times):
                    answer = cohort.episode_gradient(loss, theta)[:1].cpu() * unit + episodes / 2
                    score += float(sampled_score(answer, rate, sigma))
                bench.tick(plan.times)
            scores.append(score)
        return evidence_of([torch.tensor(scores, dtype=torch.float64)], inside)

    return Experiment("run", "the whole training gives more away than agreed", rows, collect, runs * steps)
