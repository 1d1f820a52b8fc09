"""Mistakes as somebody might make them, planted into the code that answers. Each is undone by pytest's monkeypatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import wardround_client.audit.walls as walls
import wardround_client.round as round_module
from wardround import elementary
from wardround.errors import DataError
from wardround.questions import Loss, Shots
from wardround.schedule import RoundPlan
from wardround_client.cohort import examples
from wardround_client.cohort.examples import Examples
from wardround_client.hospital import Hospital
from wardround_client.privacy import contribution, episodes, mechanism, per_patient
from wardround_client.privacy import private_cohort as cohort
from wardround_client.privacy.episodes import Deal
from wardround_client.privacy.ledger import Ledger
from wardround_client.refusal import refused

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Bug:
    """plant: does it. found_by: the experiment that has to find it. trials: with so many.

    conv4: whether it needs a convolutional model.
    """

    plant: Callable[[Patch], None]
    found_by: str
    trials: int
    conv4: bool = False


def noise_off(patch: Patch) -> None:
    patch.setattr(mechanism, "noised", lambda total, std: total.float())


def noise_halved(patch: Patch) -> None:
    noised = mechanism.noised
    patch.setattr(mechanism, "noised", lambda total, std: noised(total, std / 2))


def noise_by_its_variance(patch: Patch) -> None:
    """Some libraries take a variance where others take a standard deviation; this one's root is taken needlessly."""
    noised = mechanism.noised
    patch.setattr(mechanism, "noised", lambda total, std: noised(total, std**0.5))


def clipped_by_image(patch: Patch) -> None:
    """Every image's gradient is clipped, and a patient's are added."""
    clipped_sum = per_patient.clipped_sum

    def wrong(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor, clip_norm: float) -> Tensor:
        images = rows[valid].unsqueeze(1)
        return clipped_sum(loss, theta, examples, images, torch.ones_like(images, dtype=torch.bool), clip_norm)

    patch.setattr(cohort, "clipped_sum", wrong)


def _gradients(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor) -> Tensor:
    """Float64 [patients, P], by plain autograd."""
    theta = theta.detach().requires_grad_()
    losses = (loss(theta, examples.z[row[kept]], examples.y[row[kept]]) for row, kept in zip(rows, valid, strict=True))
    return torch.stack([torch.autograd.grad(each, theta)[0] for each in losses]).double()


def sum_then_clip(patch: Patch) -> None:
    """The batch's gradient is clipped, as one does against exploding gradients."""

    def wrong(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor, clip_norm: float) -> Tensor:
        return contribution.clipped(_gradients(loss, theta, examples, rows, valid).sum(0, keepdim=True), clip_norm)[0]

    patch.setattr(cohort, "clipped_sum", wrong)


def seeded(patch: Patch) -> None:
    """For reproducible runs."""

    def wrong(size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(42))

    patch.setattr(mechanism, "standard_normal", wrong)


def seeded_by_round(patch: Patch) -> None:
    """A cohort object is made for each round, and seeds torch as it is made."""
    init = cohort.PrivateCohort.__init__

    def wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(7)
        init(self, *args, **kwargs)

    patch.setattr(cohort.PrivateCohort, "__init__", wrong)
    from_the_global_generator(patch)


def from_the_global_generator(patch: Patch) -> None:
    """Whoever can set torch's seed, or sees some of its numbers, has the noise."""
    patch.setattr(mechanism, "standard_normal", lambda size: torch.randn(size, dtype=torch.float64))


def one_number_of_noise(patch: Patch) -> None:
    """Broadcast over the whole vector."""
    normal = mechanism.standard_normal
    patch.setattr(mechanism, "standard_normal", lambda size: normal(1).repeat(size))


def dealt_by_image(patch: Patch) -> None:
    """Images are dealt into episodes, so that a patient with several is in several."""
    deal = episodes.deal

    def wrong(examples: Examples, rows: Tensor, valid: Tensor, dealt: Deal, most: int) -> Iterator[tuple[Shots, Shots]]:
        images = rows[valid].unsqueeze(1)
        again = deal(len(images), int(dealt.episode.max()) + 1, 0.5)
        return episodes.episodes_of(examples, images, torch.ones_like(images, dtype=torch.bool), again)

    patch.setattr(cohort, "episodes_of", wrong)


def support_of_one_and_query_of_another(patch: Patch) -> None:
    """Two draws a patient: in which episode's support, and in which episode's query."""

    def wrong(examples: Examples, rows: Tensor, valid: Tensor, dealt: Deal, most: int) -> Iterator[tuple[Shots, Shots]]:
        numbers = int(dealt.episode.max()) + 1
        query_of = (mechanism.uniform(len(rows)) * numbers).long()
        for number in range(numbers):
            support, query = dealt.episode == number, query_of == number
            if bool(support.any()) and bool(query.any()):
                both = (episodes._shots(examples, rows[side], valid[side]) for side in (support, query))
                yield next(both), next(both)

    patch.setattr(cohort, "episodes_of", wrong)


def _tensor_forgotten(patch: Patch, numbers: slice, *, scaled: bool) -> None:
    """The norm is taken of everything but these numbers of theta, which are scaled with the rest or not at all."""

    def wrong(loss: Loss, theta: Tensor, examples: Examples, rows: Tensor, valid: Tensor, clip_norm: float) -> Tensor:
        whole = _gradients(loss, theta, examples, rows, valid)
        forgotten = torch.zeros_like(whole)
        forgotten[:, numbers] = whole[:, numbers]
        factors: Tensor = (clip_norm / (whole - forgotten).norm(dim=1)).clamp_max(1)
        return factors @ whole if scaled else factors @ (whole - forgotten) + forgotten.sum(0)

    patch.setattr(cohort, "clipped_sum", wrong)


def bias_not_clipped(patch: Patch) -> None:
    _tensor_forgotten(patch, slice(-4, None), scaled=False)


def norm_without_the_bias(patch: Patch) -> None:
    _tensor_forgotten(patch, slice(-4, None), scaled=True)


def norm_without_the_weights(patch: Patch) -> None:
    _tensor_forgotten(patch, slice(0, -4), scaled=True)


def convolution_not_clipped(patch: Patch) -> None:
    _tensor_forgotten(patch, slice(0, 9 * 8), scaled=False)


def sampled_twice(patch: Patch) -> None:
    """The union of two samples is taken for one."""
    sample = mechanism.poisson_sample
    patch.setattr(
        mechanism, "poisson_sample", lambda n, rate: torch.unique(torch.cat([sample(n, rate), sample(n, rate)]))
    )


def statistics_by_image(patch: Patch) -> None:
    """Counts and moments are added over images; so are the cells of an evaluation, and embeddings."""

    def wrong(self: Examples, values: Tensor) -> Tensor:
        return values.new_zeros(self.patients, values.shape[1]).index_add_(0, self.patient, values)

    patch.setattr(Examples, "patient_means", wrong)
    patch.setattr(cohort, "clipped", lambda rows, limit: rows)
    patch.setattr(cohort, "_sum", lambda blocks: blocks.sum(0))


def summed_in_an_order_of_the_batch(patch: Patch) -> None:
    """As a matrix product of a library may: which number is added first follows from how many rows there are."""

    def wrong(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first, *others = (x.unsqueeze(1) * weight).float().roll(len(x), -1).unbind(-1)
        for term in others:
            first = first + term
        return first.double() + bias

    patch.setattr(elementary, "linear", wrong)


def predicted_in_one_batch(patch: Patch) -> None:
    """The same for predictions: all images at once, rounded by how many they are."""

    def wrong(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        found = function(*inputs)
        return found.roll(len(found) % 2, 1) if found.dim() == 2 else found

    patch.setattr(examples, "image_by_image", wrong)


def centred_by_the_batch(patch: Patch) -> None:
    """Batch normalisation: everybody's statistics are less the mean of all."""
    means = Examples.patient_means
    patch.setattr(
        Examples, "patient_means", lambda self, values: 9 * (means(self, values) - means(self, values).mean(0))
    )


def an_exception_passes(patch: Patch) -> None:
    """What cannot be computed for somebody is raised, and the wall has a hole."""

    def passing(otherwise: Tensor, function: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
        return function(*args, **named)

    def strict(rows: Tensor, limit: float) -> Tensor:
        if not bool(rows.isfinite().all()):
            raise ValueError("not finite")
        return contributions(rows, limit)

    contributions = contribution.contributions
    for module in (cohort, per_patient):
        patch.setattr(module, "or_else", passing)
        patch.setattr(module, "contributions", strict)
    patch.setattr(contribution, "contributions", strict)
    no_wall(patch)


def no_wall(patch: Patch) -> None:
    """The answer about somebody is computed where an exception becomes a refusal."""
    ask = round_module.ask

    class Refused(BaseException):
        pass

    def asked(plan: RoundPlan, cohort_: Any, *rest: Any) -> Tensor:
        try:
            return ask(plan, cohort_, *rest)
        except Exception as error:
            raise Refused from error

    def answered(hospital: Any, blob: bytes, open_cohort: Any = cohort.PrivateCohort) -> bytes:
        try:
            return answer(hospital, blob, open_cohort)
        except Refused as error:
            return refused(hospital.config.hospital, None, ValueError(str(error)), named=False)

    answer = round_module.answer
    patch.setattr(round_module, "ask", asked)
    patch.setattr(walls, "answer", answered)


def a_patient_too_odd_is_refused(patch: Patch) -> None:
    """A check of the data, well meant, behind the reservation or before it."""

    def checked(self: Examples) -> Examples:
        if not bool(self.z.isfinite().all()):
            raise DataError("an image holds numbers that are not finite")
        found: Examples = nobody(self)
        return found

    nobody = Examples.nobody.fget  # type: ignore[attr-defined]
    patch.setattr(Examples, "nobody", property(checked))


def always_the_first(patch: Patch) -> None:
    """A reservation that was found is handed out like one that was made."""
    reserve = Ledger.reserve
    patch.setattr(Ledger, "reserve", lambda self, **named: replace(reserve(self, **named), first=True))


def forgotten_on_a_full_disk(patch: Patch) -> None:
    """The one reply is not kept, and what is reserved is computed anew."""
    always_the_first(patch)
    patch.setattr(Hospital, "unreleased", property(lambda self: {}, lambda self, value: None), raising=False)


BUGS = {
    "noise off": Bug(noise_off, "run", 200),
    "noise halved": Bug(noise_halved, "run", 200),
    "the root of the noise": Bug(noise_by_its_variance, "run", 200),
    "clipping per image instead of per patient": Bug(clipped_by_image, "images", 600),
    "sum, then clip": Bug(sum_then_clip, "companions", 1000),
    "a seed": Bug(seeded, "repeat", 200),
    "a seed for each round": Bug(seeded_by_round, "repeat", 200),
    "a generator that anybody may seed": Bug(from_the_global_generator, "repeat", 200),
    "one number of noise for all": Bug(one_number_of_noise, "repeat", 200),
    "a patient in several episodes by images": Bug(dealt_by_image, "episodes", 600),
    "a patient in the support of one episode and in the query of another": Bug(
        support_of_one_and_query_of_another, "episodes", 1500
    ),
    "the bias is not clipped": Bug(bias_not_clipped, "model", 400),
    "the norm forgets the bias": Bug(norm_without_the_bias, "tensor", 400),
    "the norm forgets the weights": Bug(norm_without_the_weights, "model", 1000),
    "a convolution is not clipped": Bug(convolution_not_clipped, "model", 400, conv4=True),
    "statistics count images": Bug(statistics_by_image, "statistics", 600),
    "prototypes count images": Bug(statistics_by_image, "class_means", 600),
    "evaluations count images": Bug(statistics_by_image, "confusion", 600),
    "sums in an order that the batch decides": Bug(summed_in_an_order_of_the_batch, "alone", 200),
    "predictions that the batch decides": Bug(predicted_in_one_batch, "alone", 200),
    "means that everybody is part of": Bug(centred_by_the_batch, "alone", 200),
    "an exception passes the wall": Bug(an_exception_passes, "refusals", 200),
    "an odd patient is refused": Bug(a_patient_too_odd_is_refused, "refusals", 200),
    "a reservation that is first again": Bug(always_the_first, "retries", 200),
    "a full disk makes it compute again": Bug(forgotten_on_a_full_disk, "retries", 200),
}
SAMPLING_BUGS = {
    "sampled twice": Bug(sampled_twice, "sampling", 500),
    "noise halved": Bug(noise_halved, "sampling", 500),
}
