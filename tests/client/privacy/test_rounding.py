"""Rounding is part of sensitivity: a patient who leaves changes nobody else's numbers, not even in their last bits.

privacy.md: "Floating-point Gaussian noise is attackable in principle" speaks of the noise; the same holds for the sum.
With weights of a million that cancel out, a last bit becomes a whole gradient, or another prediction.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.client.privacy.generated import CLASSES, MODELS, cohort, input_shape, objective, without
from torch import Tensor

from wardround.models import Objective
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround.models.tabular import Tabular
from wardround.questions import Shots
from wardround_client.batches import in_even_batches
from wardround_client.episodes import Deal
from wardround_client.examples import Examples
from wardround_client.privacy import mechanism
from wardround_client.privacy.cohort import PrivateCohort

WIDE, HIDDEN = 64, 16
SIZES = (2, 3, 4, 5, 9, 17, 33, 65, 130)


def crafted(known: Tensor, seed: int) -> Tensor:
    """A multilayer perceptron whose hidden units are exactly 0 at a known patient but for rounding, times a million."""
    generator = torch.Generator().manual_seed(seed)
    model = Tabular.mlp(WIDE, CLASSES, HIDDEN)
    first = 1e6 * (2 * torch.rand(HIDDEN, WIDE, generator=generator) - 1)
    scaled = known / WIDE**0.5
    last = torch.randn(CLASSES, HIDDEN, generator=generator)
    tensors = (first, -(first @ scaled), last, torch.zeros(CLASSES))
    return model.layout.pack(dict(zip((name for name, _ in model.layout.tensors), tensors, strict=True)))


def hospital(size: int, seed: int) -> Examples:
    """Patient 0 comes and goes; the adversary knows all the others, who are alike."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(1, WIDE, generator=generator).repeat(size, 1)
    z[0] = torch.rand(WIDE, generator=generator)
    y = torch.ones(size, dtype=torch.int64)
    return Examples(z, y, torch.arange(size), z, CLASSES)


def worlds(size: int, seed: int) -> tuple[PrivateCohort, PrivateCohort, Tensor]:
    examples = hospital(size, seed)
    return cohort(examples), cohort(without(examples, 0)), crafted(examples.z[1], seed)


@pytest.mark.parametrize("size", SIZES)
def test_a_theta_made_of_cancellation_moves_a_sum_of_gradients_by_no_more_than_c(size: int) -> None:
    loss = Objective(Tabular.mlp(WIDE, CLASSES, HIDDEN), torch.zeros(WIDE), torch.ones(WIDE))
    for seed in range(20):
        with_, without_, theta = worlds(size, seed)
        one = with_._clipped_gradients(loss, theta, torch.arange(size))
        other = without_._clipped_gradients(loss, theta, torch.arange(size - 1))
        assert (one - other).norm() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_it_turns_nobody_else_s_prediction(size: int) -> None:
    model = Tabular.mlp(WIDE, CLASSES, HIDDEN)
    for seed in range(20):
        with_, without_, theta = worlds(size, seed)
        predict = partial(model.logits, theta, shift=torch.zeros(WIDE), scale=torch.ones(WIDE))
        one, other = with_._confusion_blocks(predict), without_._confusion_blocks(predict)
        assert torch.equal(one[1:], other)
        assert torch.equal(with_._class_blocks(predict)[0][1:], without_._class_blocks(predict)[0])


@pytest.mark.parametrize("model", [Conv4.of(1, 16, 4), Conv4.of(3, 64, 4)])
def test_a_prediction_is_the_same_to_the_last_bit_whoever_else_is_there(model: Conv4) -> None:
    theta, d = model.initial(), model.scaling_size
    x = torch.rand(70, model.channels, 20, 20)

    def predict(z: Tensor) -> Tensor:
        return model.logits(theta, z, torch.zeros(d), torch.ones(d))

    everyone = in_even_batches(predict, x)
    for chosen in (torch.arange(1, 70), torch.arange(3), torch.tensor([69]), torch.arange(69, -1, -1)):
        assert torch.equal(in_even_batches(predict, x[chosen]), everyone[chosen])
    assert in_even_batches(predict, x[:0]).shape == (0, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoded_image_is_the_same_to_the_last_bit_whoever_else_is_there(channels: int) -> None:
    encoder = BuiltinEncoder.of(32, channels, 16)
    x = torch.rand(40, channels, 32, 32)
    everyone = in_even_batches(encoder, x, 16)
    for chosen in (torch.arange(1, 40), torch.arange(3), torch.tensor([39]), torch.arange(39, -1, -1)):
        assert torch.equal(in_even_batches(encoder, x[chosen], 16), everyone[chosen])


@pytest.mark.parametrize("name", MODELS)
def test_other_episodes_are_the_same_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode is computed by itself, in its own size: nobody outside it has part in it."""
    model, loss = MODELS[name], objective(name)
    z = torch.rand(24, *input_shape(name))
    examples = Examples(z, torch.arange(24) % CLASSES, torch.arange(24), model.summary(z), CLASSES)
    dealt = Deal(torch.arange(24) % 4, torch.arange(24) % 8 < 4)

    def query_loss(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        return query.mean(loss.each(theta, query.x, query.y)) + support.mean(loss.each(theta, support.x, support.y))

    slope = torch.func.grad(query_loss)

    def clipped(kept: Tensor) -> list[Tensor]:
        """Each episode's own, in the order of their numbers."""
        seen: list[Tensor] = []
        clip = mechanism.clip

        def noting(vector: Tensor, clip_norm: float) -> Tensor:
            seen.append(clip(vector, clip_norm))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(mechanism, "clip", noting)
            part = Deal(dealt.episode[kept], dealt.support[kept])
            cohort(examples)._clipped_episodes(slope, model.initial() + 0.1, torch.arange(24)[kept], part)
        return seen

    everyone, fewer = clipped(torch.arange(24) < 24), clipped(torch.arange(24) != 7)  # 7 is in episode 3
    assert len(everyone) == len(fewer) == 4
    assert [torch.equal(one, other) for one, other in zip(everyone, fewer, strict=True)] == [True, True, True, False]
