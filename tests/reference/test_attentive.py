"""The attentive method beside torch's own attention, and beside matching networks, as which it starts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, Identity
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from wardround.algorithms import Fitted
from wardround.algorithms.attentive import SCALE, Attentive, corrected, recalled
from wardround.algorithms.matching import BETA, Matching
from wardround.models import Objective
from wardround.models.head import EncoderHead
from wardround.models.scaling import no_scaling
from wardround.questions import Shots

EMBEDDING = 8
HEADS, A_HEAD = 4, 2


def loss_for(method: Attentive | Matching, size: int = EMBEDDING) -> Objective:
    return Objective(method.extended(EncoderHead.of(Identity(size), CLASSES, embedding=size)), *no_scaling(size))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def support(patients: list[tuple[int, int]], seed: int, size: int = EMBEDDING) -> Shots:
    """Of patients (class, images), in float64."""
    y, images = torch.tensor([label for label, _ in patients]), torch.tensor([count for _, count in patients])
    patient = torch.repeat_interleave(torch.arange(len(patients)), images)
    return Shots(random(len(patient), size, seed=seed), y[patient], patient, (1 / images.double())[patient])


def written(loss: Objective, seed: int) -> Tensor:
    """Theta float64 [P] that is far from the start: O reads."""
    learned = {name: each + random(*each.shape, seed=seed) for name, each in loss.extras(loss.model.initial()).items()}
    return loss.with_extras(loss.model.initial().double(), **learned)


def by_torch(u: Tensor, memory: Fitted, learned: Fitted) -> Tensor:
    """One read, of `scaled_dot_product_attention` a head: images weigh through its mask."""
    weight, y = memory["shares"].sum(1), memory["shares"].argmax(1)
    value = torch.cat([memory["shots"], memory["means"][y]], 1) @ learned["V"].T
    heads = []
    for part in torch.arange(HEADS * A_HEAD).view(HEADS, A_HEAD):
        q, k = u @ learned["Q"][part].T, memory["shots"] @ learned["K"][part].T
        mask = weight.log().expand(len(u), -1)
        heads.append(scaled_dot_product_attention(q, k, value[:, part], attn_mask=mask, scale=HEADS * BETA))
    return torch.cat(heads, 1)


Patients = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(1, 3)), min_size=1, max_size=6)


@settings(max_examples=40)
@given(Patients, st.integers(0, 1000))
def test_a_read_is_torch_s_attention_and_the_prediction_is_the_formula(
    patients: list[tuple[int, int]], seed: int
) -> None:
    method = Attentive()
    loss = loss_for(method)
    theta, shots, queries = written(loss, seed), support(patients, seed), random(5, EMBEDDING, seed=seed + 1)
    fitted, learned = method.fit(theta, shots, loss), loss.extras(theta)
    u = normalize(loss.embed(theta, queries), dim=1)
    expected = by_torch(u, fitted, learned)
    torch.testing.assert_close(recalled(u, fitted, learned), expected)

    probabilities = method.predict(fitted, queries, loss).softmax(1)
    for i in range(len(queries)):
        corrected_query = normalize(u[i] + SCALE * learned["O"] @ expected[i], dim=0)
        attention = torch.zeros(CLASSES, dtype=torch.float64)
        for j, label in enumerate(shots.y.tolist()):
            s = fitted["shots"][j : j + 1]
            key = normalize(s[0] + SCALE * learned["O"] @ by_torch(s, fitted, learned)[0], dim=0)
            attention[label] += shots.weight[j] * (learned["log_beta"].exp() * corrected_query @ key).exp()
        torch.testing.assert_close(probabilities[i], attention / attention.sum())


@settings(max_examples=25)
@given(Patients, st.integers(0, 1000))
def test_a_memory_has_no_order_and_a_query_is_read_alone(patients: list[tuple[int, int]], seed: int) -> None:
    method = Attentive()
    loss = loss_for(method)
    theta, shots, queries = written(loss, seed), support(patients, seed), random(4, EMBEDDING, seed=seed + 1)
    order = torch.randperm(len(shots.y), generator=torch.Generator().manual_seed(seed))
    one, other = (method.predict(method.fit(theta, each, loss), queries, loss) for each in (shots, shots[order]))
    torch.testing.assert_close(one, other)
    alone = torch.cat([method.predict(method.fit(theta, shots, loss), each.unsqueeze(0), loss) for each in queries])
    torch.testing.assert_close(one, alone)


@settings(max_examples=25)
@given(Patients, st.integers(0, 1000), st.sampled_from([3, EMBEDDING, 40]))
def test_it_starts_as_matching_networks_whatever_reads(patients: list[tuple[int, int]], seed: int, size: int) -> None:
    """Also with any Q, K and V, as long as O has learned nothing."""
    attentive, matching = Attentive(), Matching()
    ours, theirs = loss_for(attentive, size), loss_for(matching, size)
    theta = ours.model.initial().double()
    shots, queries = support(patients, seed, size), random(5, size, seed=seed + 1)
    expected = matching.predict(matching.fit(theirs.model.initial().double(), shots, theirs), queries, theirs)
    torch.testing.assert_close(attentive.predict(attentive.fit(theta, shots, ours), queries, ours), expected)
    noisy = {name: each + random(*each.shape, seed=seed) for name, each in ours.extras(theta).items() if name in "QKV"}
    theta = ours.with_extras(theta, **noisy)
    torch.testing.assert_close(attentive.predict(attentive.fit(theta, shots, ours), queries, ours), expected)


def test_noise_in_what_reads_does_little_harm() -> None:
    """Of 0.1 a number, in all of Q, K, V and O: an embedding is turned by far less than classes lie apart."""
    method, size = Attentive(), 40
    loss = loss_for(method, size)
    shots = support([(k, 1) for k in (0, 0, 1, 1, 2)], 0, size)
    turned = []
    for seed in range(20):
        start = loss.extras(loss.model.initial().double())
        noisy = {name: each + 0.1 * random(*each.shape, seed=seed) for name, each in start.items()}
        theta = loss.with_extras(loss.model.initial().double(), **noisy)
        fitted = method.fit(theta, shots, loss)
        u = normalize(random(30, size, seed=seed), dim=1)
        turned.append((corrected(u, fitted, noisy) * u).sum(1))
    assert float(torch.cat(turned).min()) > 0.99


def test_a_pass_at_home_asks_for_no_gradient() -> None:
    method = Attentive()
    loss = loss_for(method)
    with torch.inference_mode():
        shots = support([(0, 1), (1, 2), (2, 1)], 1)
        fitted = method.adapt(loss.model.initial().double(), shots, loss)
        assert method.predict(fitted, shots.x, loss).isfinite().all()


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_a_class_without_a_mean_or_a_shot_is_no_memory(unknown: int) -> None:
    """Its place in the memory holds zeros, which nobody reads."""
    method = Attentive(adapt_prior=3.0)
    loss = loss_for(method)
    theta = written(loss, 5)
    means = random(CLASSES, EMBEDDING, seed=6)
    known = torch.ones(CLASSES, dtype=torch.float64)
    known[unknown] = 0
    shots = support([(k, 1) for k in range(CLASSES) if k != unknown], 7)
    queries = random(4, EMBEDDING, seed=8)
    found = []
    for there in (means * known.unsqueeze(1), means):
        fitted = method.adapt(loss.with_head(theta, there, known), shots, loss)
        found.append(method.predict(fitted, queries, loss)[:, known > 0])
    torch.testing.assert_close(*found)
