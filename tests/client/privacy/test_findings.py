"""Several findings an image: what a patient counts for in private answers, and what is not asked about them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, FEATURES, cohort, examples_of, hospitals, objective
from tests.questions import blocks, parts
from torch import Tensor

from wardround.labels.several import kind
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort


def patients_of(findings: list[list[int]]) -> Examples:
    """One image each."""
    y = torch.tensor(findings).float()
    z = torch.zeros(len(y), FEATURES)
    return Examples(z, y, torch.arange(len(y)), z, CLASSES, labels=kind)


LOSS = objective("logistic", findings=True)


def counted_by(asked: PrivateCohort, findings: bool = True) -> Tensor:
    return parts("statistics", asked, objective("logistic", findings), torch.zeros(LOSS.model.layout.size))["counts"]


@pytest.mark.parametrize(
    ("findings", "counted"), [([0, 0, 0], [0, 0, 0]), ([0, 1, 0], [0, 1, 0]), ([1, 0, 1], [1, 0, 1])]
)
def test_up_to_two_findings_of_a_patient_count_in_full(findings: list[int], counted: list[int]) -> None:
    counts = counted_by(cohort(patients_of([findings] * 500), sigma=1e-6))
    torch.testing.assert_close(counts, 500.0 * torch.tensor(counted).float(), rtol=1e-3, atol=0.1)


def test_of_more_findings_each_counts_less() -> None:
    """A patient's counts have a norm of at most sqrt 2."""
    counts = counted_by(cohort(patients_of([[1, 1, 1]] * 500), sigma=1e-6))
    torch.testing.assert_close(counts, torch.full((3,), 500 * (2 / 3) ** 0.5), rtol=1e-3, atol=0.1)


def test_several_findings_make_the_noise_of_a_count_larger_by_sqrt_2() -> None:
    counts = [
        torch.stack([counted_by(cohort(examples_of([], findings=findings)), findings) for _ in range(250)])
        for findings in (False, True)
    ]
    spread, wider = (each.square().mean().sqrt() for each in counts)  # of nobody: the mean is known to be 0
    rel = 7 / math.sqrt(counts[0].numel())  # a quotient of two standard deviations, each off by 1 / sqrt(2 n)
    assert rel < 2**0.5 - 1 and (wider / spread).item() == pytest.approx(2**0.5, rel=rel)


@given(examples=hospitals(findings=True), seed=st.integers(0, 1000))
def test_no_patient_s_block_is_longer_than_one(examples: Examples, seed: int) -> None:
    """P18, P19: "per patient one block ... over ALL classes, clipped jointly"; "one vector of norm <= 1"."""
    theta = torch.randn(LOSS.model.layout.size, generator=torch.Generator().manual_seed(seed))
    for question in ("statistics", "class_means"):
        rows = blocks(question, cohort(examples), LOSS, theta)
        assert rows.shape[0] == examples.patients
        assert torch.isfinite(rows).all()
        assert rows.norm(dim=1).max() <= 1
