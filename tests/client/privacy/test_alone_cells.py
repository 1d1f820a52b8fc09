"""An example is a cell of an image, and the patient stays the unit: what one adds follows from its own images alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.labels.mask import kind as mask
from wardround.models import Objective
from wardround.models.composed import Cells
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import EncoderHead
from wardround.questions import Blocks, Summand
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort

CELLS, CLASSES, FEATURES = 16, 3, 5
MODEL = EncoderHead.of(Cells(BuiltinEncoder.of(16, 1, FEATURES), 4), CLASSES)
LOSS = Objective(MODEL, torch.zeros(FEATURES), torch.ones(FEATURES), None, mask)


def cohort(images: list[int], seed: int, drawn: int = 3, shown: float = 1.0) -> Examples:
    """Patients of so many images each, dealt in any order; cells of an image follow one another. shown: the share of
    cells in which there is more than the first class.
    """
    generator = torch.Generator().manual_seed(seed)
    owners = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images))
    owners = owners[torch.randperm(len(owners), generator=generator)]
    z = torch.randn(len(owners) * CELLS, FEATURES, generator=generator) * 10
    y = torch.rand(len(z), CLASSES, generator=generator)
    y /= y.sum(1, keepdim=True) * (1 + torch.rand(len(z), 1, generator=generator))  # parts are unknown
    y[torch.rand(len(z), generator=generator) > shown, 1:] = 0
    patient = owners.repeat_interleave(CELLS)
    return Examples(z, y, patient, z, CLASSES, labels=mask, cells=CELLS, drawn=drawn)


def opened(examples: Examples, images_per_patient: int = 2) -> PrivateCohort:
    privacy = Privacy(images_per_patient=images_per_patient, clip_norm=0.5)
    return PrivateCohort(examples, privacy=privacy, declared_patients=9, reserved=[Answers(1.0, 1.0, 1)])


some_images = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@given(some_images, st.integers(0, 99), st.integers(1, CELLS), st.integers(1, 3), st.sampled_from([0, 0.1, 0.5, 1]))
def test_half_of_a_patient_s_cells_show_something_and_all_are_its_own(
    images: list[int], seed: int, drawn: int, most: int, shown: float
) -> None:
    examples = cohort(images, seed, drawn, shown)
    rows, valid = opened(examples, most)._chosen(torch.arange(len(images)))
    for patient, (own, there) in enumerate(zip(rows, valid, strict=True)):
        chosen = own[there]
        assert len(chosen) == min(most, images[patient]) * drawn
        assert len(set(chosen.tolist())) == len(chosen)
        assert (examples.patient[chosen] == patient).all()
        assert len(set((chosen // CELLS).tolist())) == min(most, images[patient])
        for image in set((chosen // CELLS).tolist()):
            there = int(examples.shown[image * CELLS : (image + 1) * CELLS].sum())
            assert int(examples.shown[chosen[chosen // CELLS == image]].sum()) >= min(drawn // 2, there)


@given(some_images, st.integers(0, 99))
def test_nobody_s_block_changes_when_another_leaves(images: list[int], seed: int) -> None:
    examples = cohort(images, seed)
    summands = (Summand("counts", (CLASSES,)), Summand("z", (FEATURES,), 2.0))

    def of_images(x: Tensor, y: Tensor, features: Tensor) -> Tensor:
        return torch.cat([y.double(), features.double()], 1)

    everybody = opened(examples)._blocks(Blocks(summands), of_images)
    without = examples.subset(examples.patient != 0)
    assert torch.equal(opened(without)._blocks(Blocks(summands), of_images), everybody[1:])
    assert (everybody.norm(dim=1) <= 1).all()


@given(some_images, st.integers(0, 99), st.floats(0.1, 30))
def test_the_gradient_loses_what_the_patient_adds_alone(images: list[int], seed: int, length: float) -> None:
    from wardround_client.privacy.per_patient import clipped_sum

    examples = cohort(images, seed)
    theta = torch.randn(MODEL.layout.size, generator=torch.Generator().manual_seed(seed)) * length
    most = max(images) * CELLS
    place = torch.arange(most)
    starts = examples.images.cumsum(0) - examples.images
    valid = place < examples.images.unsqueeze(1)
    rows = examples.by_patient[(starts.unsqueeze(1) + place).clamp(max=len(examples.z) - 1)]

    def added(patients: slice) -> Tensor:
        return clipped_sum(LOSS, theta, examples, rows[patients], valid[patients], 0.5)

    assert torch.equal(added(slice(None)) - added(slice(1, None)), added(slice(0, 1)))
    assert float(added(slice(0, 1)).norm()) <= 0.5


def test_the_closed_form_of_a_gradient_is_autograd_s() -> None:
    examples, theta = cohort([2, 1], 7), torch.randn(MODEL.layout.size)
    closed = LOSS.gradients(theta, examples.z, examples.y)
    for row in range(0, len(closed), 11):
        theta = theta.detach().requires_grad_()
        one = slice(row, row + 1)
        (plain,) = torch.autograd.grad(LOSS(theta, examples.z[one], examples.y[one]), theta)
        assert torch.allclose(closed[row].float(), plain, atol=1e-5)


@given(st.integers(1, 4), st.integers(0, 20))
def test_a_cell_is_encoded_alike_in_any_company(images: int, seed: int) -> None:
    from wardround_client.isolated import image_by_image

    x = torch.rand(images, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    everything = image_by_image(MODEL.encode, x)
    assert everything.shape == (images * CELLS, FEATURES)
    assert torch.equal(image_by_image(MODEL.encode, x[-1:]), everything[-CELLS:])
