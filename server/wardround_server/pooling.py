"""What the answers that are no deltas teach: sums over patients, pooled so that a hospital can only count as itself."""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.labels import LabelKind
from wardround.meta.embedded import LEAST_PATIENTS
from wardround.models.scaling import pool_statistics
from wardround.questions import ClassMeans, Statistics
from wardround.reach import EXCESS
from wardround.rules import Rule
from wardround.rules.mean import Mean


def scaling(answers: Tensor, declared: Tensor, classes: int, rule: Rule, labels: LabelKind) -> tuple[Tensor, Tensor]:
    """Shift and scale, float32 [d] each, from the statistics [hospitals, classes + 2 d].

    The mean pools the sums, so that a hospital weighs as many patients as it has. Another rule is given each hospital's
    moments of ONE patient, by declared patients, of whom its noised counts say how many there are, within EXCESS.
    """
    counted = labels.patients(answers[:, :classes], declared)
    if isinstance(rule, Mean):
        return pool_statistics(Statistics.unpack(answers.sum(0), classes), counted.sum())
    patients = torch.minimum(torch.maximum(counted, declared / EXCESS), declared * EXCESS)
    pooled = rule(answers / patients.unsqueeze(1), declared) * declared.sum()
    return pool_statistics(Statistics.unpack(pooled, classes), declared.sum())


def class_means(answers: Tensor, classes: int, rule: Rule) -> ClassMeans:
    """The federation's sums and counts, from those of the hospitals [hospitals, classes (e + 1)].

    The mean adds them up. Another rule is given the means of one class at a time, of hospitals that have patients of
    it, by their counts: a class that a few hospitals alone have is as safe as those few.
    """
    pooled = ClassMeans.unpack(answers.sum(0), classes)
    if isinstance(rule, Mean):
        return pooled
    counts, sums = answers[:, :classes], answers[:, classes:].view(len(answers), classes, -1)
    robust = pooled.sums.clone()
    for each in range(classes):
        there = counts[:, each] >= LEAST_PATIENTS
        if there.any():
            patients = counts[there, each]
            robust[each] = rule(sums[there, each] / patients.unsqueeze(1), patients) * patients.sum()
    return ClassMeans(robust, torch.where(counts >= LEAST_PATIENTS, counts, 0.0).sum(0))
