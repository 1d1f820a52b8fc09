"""A patient's contribution is a function of that patient alone, bit for bit (specification, "A patient alone").

Sums are exact, so the proof by test is an equality: what a sum loses when a patient leaves IS what that patient adds
alone, whatever the company, the memory, the number of threads, the width of the model and the theta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, DECLARED, Identity, cohort, times, without
from tests.questions import blocks
from torch import Tensor

from wardround.algorithms.discriminant import LENGTHS, Discriminant
from wardround.algorithms.meta_augment import MetaAugment, Varied
from wardround.algorithms.meta_weight import MetaWeight, Tabled
from wardround.config import Privacy
from wardround.labels import LABEL_KINDS
from wardround.meta.class_sums import WithSums
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import EncoderHead
from wardround.models.tabular import Tabular
from wardround.questions import Blocks, Loss, Shots, Summand
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import image_by_image
from wardround_client.privacy import private_cohort as private
from wardround_client.privacy.contribution import clipped, contribution, contributions, grid
from wardround_client.privacy.episodes import Deal
from wardround_client.privacy.per_patient import _means, clipped_sum

WIDTHS = (1, 2, 5, 13, 30, 33)
THREADS = (1, 2, 3, 16)


def logistic(width: int) -> Model:
    return Tabular.logistic(width, CLASSES)


def mlp(width: int) -> Model:
    return Tabular.mlp(width, CLASSES, 7)


def head(width: int) -> Model:
    return EncoderHead.of(Identity(width), CLASSES)


def embedded(width: int) -> Model:
    return EncoderHead.of(Identity(width), CLASSES, embedding=min(3, width))


def conv4(width: int) -> Model:
    return Conv4.of(1, width, CLASSES)


FAMILIES: dict[str, Callable[[int], Model]] = {
    "logistic": logistic,
    "mlp": mlp,
    "encoder-head": head,
    "embedded-head": embedded,
    "conv4": conv4,
}


def hostile(size: int, kind: str, seed: int, z: Tensor) -> Tensor:
    """A theta within the policy's magnitude that makes the most of a last bit."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(size, generator=generator)
    match kind:
        case "cancelling":  # pairs that cancel out but for rounding
            half = 1e6 * (2 * torch.rand((size + 1) // 2, generator=generator) - 1)
            theta = torch.stack([half, -half], 1).flatten()[:size]
        case "orthogonal":  # to a known patient, nearly
            known = z[0].flatten()
            row = 9e5 * (2 * torch.rand(len(known), generator=generator) - 1)
            for _ in range(3):
                row = row - known * (row @ known) / (known @ known).clamp_min(1e-30)
            theta[: min(size, len(row))] = row[: min(size, len(row))]
        case "huge":
            theta = 1e6 * theta.sign()
        case "subnormal":
            theta = theta * 1e-42
        case "mixed":
            theta = theta * 10.0 ** torch.randint(-40, 6, (size,), generator=generator)
    return theta.clamp(-1e6, 1e6)


KINDS = ("plain", "cancelling", "orthogonal", "huge", "subnormal", "mixed")


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hospital(
    model: Model, images: list[int], seed: int, alike: bool, place: int, variants: int = 1, labels: str = "one"
) -> Examples:
    """Patients with so many images each, in memory that begins `place` numbers behind an aligned address."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(images)
    shape = (1, 9, 9) if isinstance(model, Conv4) else (model.scaling_size,)
    z = torch.rand(n, *shape, generator=generator)
    if alike:
        z = z[:1] + 1e-6 * (z - z[:1])
    store = torch.empty(z.numel() + place)
    z = store[place:].view(z.shape).copy_(z)
    y = torch.randint(CLASSES, (n,), generator=generator)
    if labels == "survival":
        y = times(n, generator)
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images))
    others = torch.rand(n, variants - 1, *shape, generator=generator) if variants > 1 else None
    return Examples(z, y, patient, model.summary(z), CLASSES, augmented=others, labels=LABEL_KINDS[labels])


def loss_of(model: Model, scale: float, labels: str = "one") -> Objective:
    d, prior = model.scaling_size, torch.tensor([0.2, 0.3, 0.5]).log()
    return Objective(model, torch.full((d,), 0.1), torch.full((d,), scale), prior, LABEL_KINDS[labels])


def own(examples: Examples, patient: int) -> Tensor:
    return torch.nonzero(examples.patient == patient).flatten()


def sum_over(loss: Loss, theta: Tensor, examples: Examples, patients: list[int], clip_norm: float = 1.0) -> Tensor:
    most = int(examples.images.max())
    rows = torch.zeros(len(patients), most, dtype=torch.int64)
    valid = torch.zeros(len(patients), most, dtype=torch.bool)
    for place, patient in enumerate(patients):
        mine = own(examples, patient)
        rows[place, : len(mine)], valid[place, : len(mine)] = mine, True
    return clipped_sum(loss, theta, examples, rows, valid, clip_norm)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(
    width=st.sampled_from(WIDTHS),
    images=st.lists(st.integers(1, 9), min_size=2, max_size=9),
    variants=st.sampled_from([1, 1, 2, 3]),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([1.0, 1.1e-6, 30.0]),
    number=st.sampled_from(THREADS),
    alike=st.booleans(),
    place=st.integers(0, 30),
    labels=st.sampled_from(["one", "survival"]),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_what_a_sum_of_gradients_loses_is_what_the_patient_adds_alone(
    family: str,
    width: int,
    images: list[int],
    variants: int,
    kind: str,
    scale: float,
    number: int,
    alike: bool,
    place: int,
    labels: str,
    seed: int,
    data: st.DataObject,
) -> None:
    model = FAMILIES[family](width)
    examples, loss = hospital(model, images, seed, alike, place, variants, labels), loss_of(model, scale, labels)
    theta = hostile(model.layout.size, kind, seed, examples.z)
    leaves = data.draw(st.integers(0, len(images) - 1))
    fewer = without(examples, leaves)
    with threads(number):
        everyone = sum_over(loss, theta, examples, list(range(len(images))))
        others = sum_over(loss, theta, fewer, list(range(len(images) - 1)))
    alone = sum_over(loss, theta, without_all_but(examples, leaves), [0])
    assert torch.equal(everyone - others, alone)
    assert alone.norm() <= 1


def without_all_but(examples: Examples, patient: int) -> Examples:
    return examples.subset(examples.patient == patient)


def loses_what_one_of_nine_adds(
    loss: Loss, model: Model, size: int, kind: str, number: int, seed: int, variants: int = 1
) -> None:
    """What a sum over nine patients of `model`'s features loses when one leaves, at a theta of `size` numbers."""
    examples = hospital(model, [1] * 9, seed, False, seed % 7, variants)
    theta = hostile(size, kind, seed, examples.z)
    with threads(number):
        everyone = sum_over(loss, theta, examples, list(range(9)))
        others = sum_over(loss, theta, without(examples, 4), list(range(8)))
    assert torch.equal(everyone - others, sum_over(loss, theta, without_all_but(examples, 4), [0]))


@settings(max_examples=25)
@given(
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(THREADS),
    seed=st.integers(0, 999),
)
def test_so_it_is_for_the_sums_that_a_metric_is_made_of(width: int, kind: str, number: int, seed: int) -> None:
    plain = loss_of(logistic(width), 1.0)
    model = Discriminant().extended(plain.model)
    loss = WithSums(Objective(model, plain.shift, plain.scale, plain.log_prior), LENGTHS)
    loses_what_one_of_nine_adds(loss, plain.model, model.layout.size, kind, number, seed)


@settings(max_examples=25)
@given(
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(THREADS),
    seed=st.integers(0, 999),
)
def test_so_it_is_for_what_weighs_a_patient(width: int, kind: str, number: int, seed: int) -> None:
    plain = loss_of(logistic(width), 1.0)
    model = MetaWeight().extended(plain.model)
    loss = Tabled(Objective(model, plain.shift, plain.scale, plain.log_prior))
    loses_what_one_of_nine_adds(loss, plain.model, model.layout.size, kind, number, seed)


@settings(max_examples=25)
@given(
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(THREADS),
    seed=st.integers(0, 999),
)
def test_so_it_is_for_what_weighs_an_image_s_variants(width: int, kind: str, number: int, seed: int) -> None:
    plain = loss_of(logistic(width), 1.0)
    model = MetaAugment().extended(plain.model)
    loss = Varied(Objective(model, plain.shift, plain.scale, plain.log_prior, augment=("intensity",)))
    loses_what_one_of_nine_adds(loss, plain.model, model.layout.size, kind, number, seed, variants=loss.variants)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(
    width=st.sampled_from(WIDTHS),
    images=st.lists(st.integers(1, 4), min_size=2, max_size=9),
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(THREADS),
    place=st.integers(0, 30),
    labels=st.sampled_from(["one", "survival"]),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_nobody_s_block_changes_when_another_leaves(
    family: str,
    width: int,
    images: list[int],
    kind: str,
    number: int,
    place: int,
    labels: str,
    seed: int,
    data: st.DataObject,
) -> None:
    model = FAMILIES[family](width)
    examples = hospital(model, images, seed, True, place, labels=labels)
    loss = loss_of(model, 1.1e-6, labels)
    theta = hostile(model.layout.size, kind, seed, examples.z)
    leaves = data.draw(st.integers(0, len(images) - 1))
    stay = torch.tensor([patient for patient in range(len(images)) if patient != leaves])

    def added(of: Examples) -> tuple[Tensor, ...]:
        return tuple(blocks(name, cohort(of), loss, theta) for name in ("statistics", "class_means", "confusion"))

    with threads(number):
        everyone, others = added(examples), added(without(examples, leaves))
    for one, other in zip(everyone, others, strict=True):
        assert torch.equal(one[stay], other)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(
    width=st.sampled_from(WIDTHS),
    kind=st.sampled_from(KINDS),
    number=st.sampled_from(THREADS),
    place=st.integers(0, 9),
    seed=st.integers(0, 10_000),
    leaves=st.integers(0, 23),
)
def test_nobody_s_episode_changes_when_a_patient_of_another_leaves(
    family: str, width: int, kind: str, number: int, place: int, seed: int, leaves: int
) -> None:
    model = FAMILIES[family](width)
    examples, loss = hospital(model, [1] * 24, seed, True, place), loss_of(model, 1.0)
    theta = hostile(model.layout.size, kind, seed, examples.z)
    dealt = Deal(torch.arange(24) % 4, torch.arange(24) % 8 < 4)

    def after_a_step(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        step = torch.func.grad(lambda here: support.mean(loss.each(here, support.x, support.y)))(theta)
        return query.mean(loss.each(theta - 0.5 * step, query.x, query.y))

    def seen(of: Examples, deal: Deal) -> list[Tensor]:
        found: list[Tensor] = []

        def noting(vector: Tensor, limit: float) -> Tensor:
            found.append(contribution(vector, limit))
            return found[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(private, "contribution", noting)
            cohort(of)._clipped_episodes(torch.func.grad(after_a_step), theta, torch.arange(of.patients), deal)
        return found

    stay = torch.arange(24) != leaves
    with threads(number):
        everyone = seen(examples, dealt)
        fewer = seen(without(examples, leaves), Deal(dealt.episode[stay], dealt.support[stay]))
    assert len(everyone) == len(fewer) == 4
    same = [torch.equal(one, other) for one, other in zip(everyone, fewer, strict=True)]
    assert all(same[episode] for episode in range(4) if episode != leaves % 4)


@settings(max_examples=8)
@given(features=st.sampled_from([2, 7, 13, 32]), channels=st.sampled_from([1, 3]), number=st.sampled_from(THREADS))
def test_an_image_is_encoded_alike_in_any_company(features: int, channels: int, number: int) -> None:
    encoder = BuiltinEncoder.of(32, channels, features)
    x = torch.rand(9, channels, 32, 32)
    everyone = image_by_image(encoder, x)
    for chosen in (torch.arange(1, 9), torch.tensor([8]), torch.arange(8, -1, -1)):
        with threads(number):
            assert torch.equal(image_by_image(encoder, x[chosen]), everyone[chosen])
    assert image_by_image(encoder, x[:0]).shape == (0, features)


@pytest.mark.parametrize("width", [7, 13, 30])
def test_a_deep_prediction_is_the_same_in_any_company(width: int) -> None:
    model = Conv4.of(1, width, CLASSES)
    x, theta = torch.rand(20, 1, 20, 20), model.initial()

    def predict(z: Tensor) -> Tensor:
        return model.logits(theta, z, torch.zeros(1), torch.ones(1))

    everyone = image_by_image(predict, x)
    for number in THREADS:
        with threads(number):
            assert torch.equal(image_by_image(predict, x[7:]), everyone[7:])


# --- lengths, grids and sums


@settings(max_examples=200)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=30),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_a_clipped_vector_is_never_longer_than_c(values: list[float], clip_norm: float) -> None:
    vector = torch.tensor(values)
    for found in (
        clipped(vector.unsqueeze(0), clip_norm)[0],
        contribution(vector, clip_norm).double() * grid(clip_norm),
    ):
        assert torch.isfinite(found).all()
        assert found.double().norm().item() <= clip_norm


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_a_long_vector_is_not_longer_than_c_either(size: int) -> None:
    """Norms in float32 fall short by 1 % at five million numbers."""
    vector = torch.randn(size) * 3
    found = contribution(vector, 1.0).double() * grid(1.0)
    assert 1 - 1e-5 < found.norm().item() <= 1
    if size < 1_000_000:
        assert 1 - 1e-5 < clipped(vector.unsqueeze(0), 1.0)[0].norm().item() <= 1


def test_clipping_keeps_the_direction_and_leaves_short_vectors_alone() -> None:
    for values, expected in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4]), ([0.0, 0.0], [0.0, 0.0])):
        found = clipped(torch.tensor([values]), 1.0)[0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@given(
    limit=st.floats(1e-3, 1e3),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    other=st.sampled_from([0.0, 1.0, 1e30]),
)
def test_the_grid_of_contributions_is_public(limit: float, size: float, other: float) -> None:
    """It follows from the limit, not from the data: neither a patient's own numbers nor anybody else's move it."""
    assert grid(limit) <= limit * 2.0**-29
    rows = torch.rand(2, 40, dtype=torch.float64) * torch.tensor([[size], [other]], dtype=torch.float64)
    alone, together = contributions(rows[:1], limit), contributions(rows, limit)
    assert torch.equal(alone[0], together[0])
    expected = (rows[0] * min(1.0, limit / float(rows[0].norm().clamp_min(1e-300))) / grid(limit)).trunc()
    assert (alone[0] - expected).abs().max() <= 1 + 2.0**-26 * expected.abs().max()


def test_sums_of_many_are_exact_in_any_order() -> None:
    rows = torch.randn(3000, 5)
    parts = contributions(rows, 1.0)
    order = torch.randperm(3000)
    assert torch.equal(parts.sum(0), parts[order].sum(0))


@pytest.mark.parametrize("variants", [1, 2, 3])
def test_a_patient_s_images_are_weighed_by_the_patient_s_own_number(variants: int) -> None:
    """Padding to the greatest number of images, which is another's, changes no bit, not even below the grid."""
    model, images = logistic(5), [1, 3, 5, 16, 4, 7]
    examples, loss = hospital(model, images, 3, False, 0, variants), loss_of(model, 1.0)
    theta = torch.randn(model.layout.size)
    rows = torch.zeros(len(images), 16, dtype=torch.int64)
    for patient, count in enumerate(images):
        rows[patient, :count] = own(examples, patient)
    valid = torch.arange(16) < torch.tensor(images).unsqueeze(1)
    together = _means(loss, theta, examples, rows, valid)
    for patient, count in enumerate(images):
        place = slice(patient, patient + 1)
        alone = _means(loss, theta, examples, rows[place, :count], valid[place, :count])
        assert torch.equal(alone[0], together[patient])


def test_a_part_that_raises_counts_as_nothing_and_nobody_else_notices() -> None:
    model = Conv4.of(1, 4, CLASSES)
    examples, plain = hospital(model, [1] * 6, 3, False, 0), loss_of(model, 1.0)
    broken = examples.z[2].clone()

    class Raising:
        def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            if torch.equal(x[0], broken):
                raise MemoryError("4711 bytes of patient 2")
            return plain(theta, x, y)

    theta = model.initial()
    everyone = sum_over(Raising(), theta, examples, list(range(6)))
    assert torch.equal(everyone, sum_over(plain, theta, without(examples, 2), list(range(5))))

    def gradient(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        if any(torch.equal(image, broken) for image in (*support.x, *query.x)):
            raise RuntimeError("singular")
        return torch.ones_like(theta)

    asked = cohort(examples, Privacy(clip_norm=1.0))
    dealt = Deal(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([True, False] * 3))
    found = asked._clipped_episodes(gradient, torch.zeros(4), torch.arange(6), dealt)
    torch.testing.assert_close(found, torch.full((4,), 1.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_an_image_that_cannot_be_encoded_or_predicted_is_a_row_of_its_own() -> None:
    x = torch.arange(5.0).unsqueeze(1)

    def function(x: Tensor) -> Tensor:
        if float(x) == 3:
            raise ValueError("image 3")
        return torch.cat([x, x], 1)

    found = image_by_image(function, x)
    assert found[3].isnan().all() and torch.equal(found[4], torch.tensor([4.0, 4.0]))
    examples, summands = replace(hospital(logistic(1), [1] * 5, 0, False, 0), z=x), (Summand("x", (2,), 9.0),)
    rows = cohort(examples)._blocks(Blocks(summands), lambda x, y, features: function(x))
    assert rows.isfinite().all() and (rows[3] == 0).all() and (rows[4] > 0).all()


def test_an_episode_has_at_most_a_public_number_of_patients_on_either_side() -> None:
    """Whoever comes after them takes no part, however many are there; and no other episode changes for it."""
    examples = hospital(logistic(2), [1] * 300, 1, False, 0)
    asked, seen = cohort(examples, Privacy(patients_per_episode=10)), list[tuple[int, int]]()
    most = Privacy(patients_per_episode=10).side_cap(DECLARED)

    def gradient(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        seen.append((len(support.y), len(query.y)))
        return torch.zeros_like(theta)

    crowded = Deal(torch.zeros(300, dtype=torch.int64), torch.arange(300) < 200)
    asked._clipped_episodes(gradient, torch.zeros(3), torch.arange(300), crowded)
    assert seen == [(most, most)] and most < 100
