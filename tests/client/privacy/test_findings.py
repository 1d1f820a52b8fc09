"""Several findings an image: what a patient counts for in private answers, and what is not asked about them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, FEATURES, cohort, examples_of, hospitals
from torch import Tensor

from wardround.errors import ConfigError
from wardround.labels.several import kind
from wardround_client.cohort.examples import Examples


def patients_of(findings: list[list[int]]) -> Examples:
    """One image each."""
    y = torch.tensor(findings).float()
    z = torch.zeros(len(y), FEATURES)
    return Examples(z, y, torch.arange(len(y)), z, CLASSES, labels=kind)


@pytest.mark.parametrize(
    ("findings", "counted"), [([0, 0, 0], [0, 0, 0]), ([0, 1, 0], [0, 1, 0]), ([1, 0, 1], [1, 0, 1])]
)
def test_up_to_two_findings_of_a_patient_count_in_full(findings: list[int], counted: list[int]) -> None:
    answer = cohort(patients_of([findings] * 500), sigma=1e-6).statistics()
    torch.testing.assert_close(answer.counts, 500.0 * torch.tensor(counted).float(), rtol=1e-3, atol=0.1)


def test_of_more_findings_each_counts_less() -> None:
    """A patient's counts have a norm of at most sqrt 2."""
    answer = cohort(patients_of([[1, 1, 1]] * 500), sigma=1e-6).statistics()
    torch.testing.assert_close(answer.counts, torch.full((3,), 500 * (2 / 3) ** 0.5), rtol=1e-3, atol=0.1)


def test_several_findings_make_the_noise_of_a_count_larger_by_sqrt_2() -> None:
    one, several = (cohort(examples_of([], findings=findings)) for findings in (False, True))
    spread, wider = (torch.stack([each.statistics().counts for _ in range(600)]).std() for each in (one, several))
    assert (wider / spread).item() == pytest.approx(2**0.5, rel=0.1)


@settings(max_examples=60)
@given(examples=hospitals(findings=True), seed=st.integers(0, 1000))
def test_no_patient_s_block_is_longer_than_one(examples: Examples, seed: int) -> None:
    """privacy.md: "per patient one block ... over ALL classes, clipped jointly"; "one vector of norm <= 1"."""
    asked, weights = cohort(examples), torch.randn(FEATURES, 6, generator=torch.Generator().manual_seed(seed))
    for rows in (asked._statistics_blocks(), asked._class_blocks(lambda z: z @ weights)[0]):
        assert rows.shape[0] == examples.patients
        assert torch.isfinite(rows).all()
        assert rows.norm(dim=1).max() <= 1


@pytest.mark.parametrize("images", [[], [1, 2]])
def test_confusion_counts_are_of_one_class_each(images: list[int]) -> None:
    """Refused for everybody alike, whoever is there: the agreement says how labels are."""

    def predict(x: Tensor) -> Tensor:
        return x[:, :CLASSES]

    with pytest.raises(ConfigError, match="evaluate_every = 0"):
        cohort(examples_of(images, findings=True)).confusion(predict)
