"""Prototypical, matching, relation and siamese networks against their formulas written out, and what they must not see.

The formulas are loops over single shots, in float64; the networks that learn to compare are plain torch modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import algorithm
from tests.client.privacy.generated import CLASSES, FEATURES, MODELS, Identity, objective
from tests.cohorts import SilentCohort
from torch import Tensor, nn

from wardround.algorithms import Pooled
from wardround.errors import ConfigError
from wardround.meta.embedded import ABSENT, Embedding
from wardround.models import Objective
from wardround.models.head import EncoderHead
from wardround.models.scaling import no_scaling
from wardround.optimizers.adam import Adam
from wardround.questions import ClassMeans, EpisodeGradient, Shots

NAMES = ("prototypical", "matching", "relation", "siamese", "attentive")


def method_named(name: str) -> Embedding:
    method = algorithm(name)
    assert isinstance(method, Embedding)
    return method


def loss_for(name: str, prior: Tensor | None = None) -> Objective:
    """Of a perceptron of five hidden units, extended."""
    plain = objective("mlp")
    model = algorithm(name).extended(plain.model)
    return Objective(model, plain.shift, plain.scale, prior)


def somewhere(loss: Objective, seed: int = 1) -> Tensor:
    """Theta float64 [P] near the start."""
    noise = torch.randn(loss.model.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return loss.model.initial().double() + 0.3 * noise


def shots(patients: list[tuple[int, int]], seed: int) -> Shots:
    """Of patients (class, images), in float64."""
    y, images = torch.tensor([label for label, _ in patients]), torch.tensor([count for _, count in patients])
    patient = torch.repeat_interleave(torch.arange(len(patients)), images)
    x = torch.randn(len(patient), FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Shots(x, y[patient], patient, (1 / images.double())[patient])


SUPPORT = shots([(0, 1), (1, 3), (0, 2), (1, 1), (0, 1)], seed=2)  # ragged, and class 2 is missing
QUERY = shots([(1, 2), (0, 1), (2, 2), (0, 3)], seed=3)
PRIOR = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()


# --- against the formulas


def prototypical_probabilities(loss: Objective, theta: Tensor, x: np.ndarray) -> np.ndarray:
    """Snell et al., equations 1 and 2, of one query, of the classes that SUPPORT shows."""
    f = loss.embed(theta, SUPPORT.x).numpy()
    likeness = np.zeros(CLASSES)
    for k in (0, 1):
        total, weights = np.zeros(f.shape[1]), 0.0
        for embedded, label, weight in zip(f, SUPPORT.y.tolist(), SUPPORT.weight.tolist(), strict=True):
            if label == k:
                total, weights = total + weight * embedded, weights + weight
        likeness[k] = math.exp(-sum((a - b) ** 2 for a, b in zip(x, total / weights, strict=True)))
    probabilities: np.ndarray = likeness / likeness.sum()
    return probabilities


def matching_probabilities(loss: Objective, theta: Tensor, x: np.ndarray) -> np.ndarray:
    """Vinyals et al., equation 1 and section 2.1.1, of one query."""
    beta = math.exp(float(theta[-1]))
    attention = np.zeros(CLASSES)
    for g, label, weight in zip(
        loss.embed(theta, SUPPORT.x).numpy(), SUPPORT.y.tolist(), SUPPORT.weight.tolist(), strict=True
    ):
        cosine = float(x @ g) / math.sqrt(float(x @ x) * float(g @ g))
        attention[label] += weight * math.exp(beta * cosine)
    probabilities: np.ndarray = attention / attention.sum()
    return probabilities


FORMULAS: dict[str, Callable[[Objective, Tensor, np.ndarray], np.ndarray]] = {
    "prototypical": prototypical_probabilities,
    "matching": matching_probabilities,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_predictions_are_the_paper_s(name: str) -> None:
    loss, method = loss_for(name), method_named(name)
    theta = somewhere(loss)
    logits = method.predict(method.fit(theta, SUPPORT, loss), QUERY.x, loss)
    expected = [FORMULAS[name](loss, theta, x) for x in loss.embed(theta, QUERY.x).numpy()]
    np.testing.assert_allclose(logits.softmax(1).numpy(), np.stack(expected), rtol=1e-10)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_episode_s_loss_is_the_adjusted_cross_entropy_of_the_queries_that_can_be_answered(name: str) -> None:
    """A patient weighs the same whatever their images; the patient of class 2, which has no shot, weighs nothing."""
    loss = loss_for(name, PRIOR)
    theta = somewhere(loss)
    total = 0.0
    for x, label, weight in zip(
        loss.embed(theta, QUERY.x).numpy(), QUERY.y.tolist(), QUERY.weight.tolist(), strict=True
    ):
        adjusted = FORMULAS[name](loss, theta, x) * PRIOR.exp().numpy()
        if label != 2:
            total -= weight * math.log(adjusted[label] / adjusted.sum())
    got = method_named(name).episode_loss(theta, SUPPORT, QUERY, loss)
    assert float(got) == pytest.approx(total / 3, rel=1e-6)


def test_relation_scores_are_those_of_a_torch_module() -> None:
    loss, method = loss_for("relation"), method_named("relation")
    theta = somewhere(loss)
    e = loss.model.embedding_size
    g = nn.Sequential(nn.Linear(2 * e, 8), nn.ReLU(), nn.Linear(8, 1, bias=False)).double()
    nn.utils.vector_to_parameters(theta[-8 * (2 * e + 2) :], g.parameters())
    scores = method.predict(method.fit(theta, SUPPORT, loss), QUERY.x, loss)
    f = loss.embed(theta, SUPPORT.x)
    with torch.no_grad():
        for k in (0, 1):
            members = SUPPORT.y == k
            c = (SUPPORT.weight[members, None] * f[members]).sum(0) / SUPPORT.weight[members].sum()
            for i, query in enumerate(loss.embed(theta, QUERY.x)):
                torch.testing.assert_close(scores[i, k], g(torch.cat([c, query]))[0])
    assert (scores[:, 2] < ABSENT / 2).all()


def pair_network(loss: Objective, theta: Tensor) -> nn.Module:
    """The last layer of Koch et al., with theta's alpha and b."""
    network = nn.Sequential(nn.Linear(loss.model.embedding_size, 1), nn.Sigmoid()).double()
    nn.utils.vector_to_parameters(theta[-loss.model.embedding_size - 1 :], network.parameters())
    return network.requires_grad_(False)


def test_siamese_log_odds_are_those_of_the_mean_probability_of_a_torch_module() -> None:
    loss, method = loss_for("siamese"), method_named("siamese")
    theta = somewhere(loss)
    p = pair_network(loss, theta)
    logits = method.predict(method.fit(theta, SUPPORT, loss), QUERY.x, loss)
    f = loss.embed(theta, SUPPORT.x)
    for i, query in enumerate(loss.embed(theta, QUERY.x)):
        for k in (0, 1):
            members = SUPPORT.y == k
            same = p((query - f[members]).abs()).squeeze(1)
            mean = (SUPPORT.weight[members] * same).sum() / SUPPORT.weight[members].sum()
            torch.testing.assert_close(logits[i, k], torch.logit(mean))
    assert (logits[:, 2] == ABSENT).all()


@pytest.mark.parametrize(("support", "query"), [(SUPPORT, QUERY), (QUERY, SUPPORT)], ids=["no shot", "no query"])
def test_siamese_episode_loss_is_the_binary_cross_entropy_of_all_pairs_fairly_weighed(
    support: Shots, query: Shots
) -> None:
    """torch's BCELoss a pair; patients weigh alike in a class, classes alike, same and different alike.

    Class 2 has no shot, and so its queries no part; or it has shots and no query.
    """
    loss = loss_for("siamese", PRIOR)
    theta = somewhere(loss)
    p, entropy = pair_network(loss, theta), nn.BCELoss()
    f, queries = loss.embed(theta, support.x), loss.embed(theta, query.x)
    means: dict[bool, list[Tensor]] = {True: [], False: []}
    for a, b in itertools.product((0, 1), set(support.y.tolist())):
        target = torch.tensor([float(a == b)], dtype=torch.float64)
        pairs = [(i, j) for i in torch.where(query.y == a)[0] for j in torch.where(support.y == b)[0]]
        weights = torch.stack([query.weight[i] * support.weight[j] for i, j in pairs])
        each = torch.stack([entropy(p((queries[i] - f[j]).abs()), target) for i, j in pairs])
        means[a == b].append((weights * each).sum() / weights.sum())
    expected = torch.stack(means[True]).mean() / 2 + torch.stack(means[False]).mean() / 2
    torch.testing.assert_close(method_named("siamese").episode_loss(theta, support, query, loss), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_gradient_is_the_slope_of_the_episode_s_loss(name: str) -> None:
    """Central differences in float64, in every direction of theta."""
    loss, method = loss_for(name, PRIOR), method_named(name)
    theta = somewhere(loss)

    def at(theta: Tensor) -> Tensor:
        return method.episode_loss(theta, SUPPORT, QUERY, loss)

    exact = method.gradient_of(loss)(theta, SUPPORT, QUERY)
    step = 1e-6 * torch.eye(len(theta), dtype=torch.float64)
    slopes = torch.stack([(at(theta + e) - at(theta - e)) / 2e-6 for e in step])
    torch.testing.assert_close(exact, slopes, rtol=1e-5, atol=1e-8)
    head = torch.cat([part.flatten() for part in loss.head(exact)])
    assert (head == 0).all(), "nothing is learned at the head's place"
    assert (exact != 0).sum() > (len(theta) - len(head)) / 2


# --- what must not matter


def permuted(shots: Shots) -> Shots:
    order = torch.arange(len(shots.y)).flip(0).roll(2)
    return Shots(shots.x[order], shots.y[order], shots.patient[order], shots.weight[order])


def joined(one: Shots, other: Shots) -> Shots:
    return Shots(
        torch.cat([one.x, other.x]),
        torch.cat([one.y, other.y]),
        torch.cat([one.patient, other.patient]),
        torch.cat([one.weight, other.weight]),
    )


def padded(shots: Shots) -> Shots:
    """With a row of weight 0 of each class, the missing ones too."""
    x, zeros = torch.full((CLASSES, FEATURES), 7.0, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.int64)
    return joined(shots, Shots(x, torch.arange(CLASSES), zeros, zeros.double()))


def twice_by_halves(shots: Shots) -> Shots:
    half = replace(shots, weight=shots.weight / 2)
    return joined(half, half)


PATIENTS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(1, 4)), min_size=1, max_size=6)


@pytest.mark.parametrize("change", [permuted, padded, twice_by_halves])
@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_padding_nor_duplicates_matter(name: str, change: Callable[[Shots], Shots]) -> None:
    method, loss = method_named(name), loss_for(name, PRIOR)

    @settings(max_examples=25)
    @given(PATIENTS, PATIENTS, st.integers(0, 1000))
    def never(support_patients: list[tuple[int, int]], query_patients: list[tuple[int, int]], seed: int) -> None:
        theta, support, query = somewhere(loss, seed), shots(support_patients, seed), shots(query_patients, seed + 1)
        one, other = (
            method.predict(method.fit(theta, each, loss), query.x, loss) for each in (support, change(support))
        )
        torch.testing.assert_close(one, other)
        assert torch.isfinite(one).all()
        missing = support.shares(CLASSES).sum(0) == 0
        assert (one[:, missing] < ABSENT / 2).all()
        assert (one[:, ~missing] > ABSENT / 2).all()
        slope = method.gradient_of(loss)
        torch.testing.assert_close(slope(theta, support, query), slope(theta, change(support), change(query)))

    never()


def test_a_class_of_many_patients_weighs_no_more_in_siamese_pairs() -> None:
    loss, method = loss_for("siamese"), method_named("siamese")
    theta = somewhere(loss)
    more = replace(QUERY, weight=torch.where(QUERY.y == 0, 5 * QUERY.weight, QUERY.weight))
    one, other = (method.episode_loss(theta, SUPPORT, query, loss) for query in (QUERY, more))
    torch.testing.assert_close(one, other)


# --- where there is little to learn from


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("support", "query"),
    [([(0, 2), (0, 1)], [(0, 1), (1, 2)]), ([(0, 1), (1, 1)], [(2, 3)])],
    ids=["one class has shots", "no query has a shot of its class"],
)
def test_an_episode_that_can_tell_nothing_apart_has_no_gradient(
    name: str, support: list[tuple[int, int]], query: list[tuple[int, int]]
) -> None:
    loss = loss_for(name, PRIOR)
    slope = method_named(name).gradient_of(loss)
    gradient = slope(somewhere(loss), shots(support, 4), shots(query, 5))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", NAMES)
def test_without_class_means_no_class_is_likelier_before_there_is_a_shot(name: str) -> None:
    loss, method = loss_for(name), method_named(name)
    theta = somewhere(loss)
    weight, bias = loss.head(theta)
    fresh = loss.with_head(theta, torch.zeros_like(weight), torch.zeros_like(bias))
    probabilities = method.predict(method.unadapted(fresh, loss), QUERY.x, loss).softmax(1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / CLASSES))


@pytest.mark.parametrize("name", NAMES)
def test_class_means_are_shots_like_others(name: str) -> None:
    """Before there is a shot they are the support; at home each counts for `adapt_prior` patients. A class of noise
    alone has no mean."""
    loss, method = loss_for(name), method_named(name)
    theta = somewhere(loss)
    typical = shots([(0, 1), (1, 1)], seed=6)
    sums = torch.cat([3 * loss.embed(theta, typical.x), torch.ones(1, 5, dtype=torch.float64)])
    theta = method.with_means(theta, ClassMeans(sums, torch.tensor([3.0, 3.0, 0.4])), loss)

    def predicted_from(support: Shots) -> Tensor:
        return method.predict(method.fit(theta, support, loss), QUERY.x, loss)

    unadapted = method.predict(method.unadapted(theta, loss), QUERY.x, loss)
    torch.testing.assert_close(unadapted, predicted_from(typical))

    adapted = method.model_copy(update={"adapt_prior": 2.5}).adapt(theta, SUPPORT, loss)
    together = joined(SUPPORT, replace(typical, weight=2.5 * typical.weight))
    torch.testing.assert_close(method.predict(adapted, QUERY.x, loss), predicted_from(together))


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_of_zero_have_a_finite_gradient(name: str) -> None:
    loss = loss_for(name)
    theta = torch.cat([torch.zeros(loss.model.body_size), loss.model.initial()[loss.model.body_size :]]).double()
    gradient = method_named(name).gradient_of(loss)(theta, SUPPORT, QUERY)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["matching", "siamese"])
def test_what_rounds_to_no_probability_still_has_a_logit_and_a_gradient(name: str) -> None:
    """Attention of exp(-800) and mean probabilities of 1 - exp(-300) are 0 and 1 in float32."""
    loss, method = loss_for(name), method_named(name)
    theta = loss.model.initial().clone()
    theta[loss.model.layout.size - (1 if name == "matching" else 6) :] = 6.0 if name == "matching" else -200.0
    far = Shots(torch.tensor([[9.0] * FEATURES, [-9.0] * FEATURES]), torch.arange(2), torch.arange(2), torch.ones(2))
    logits = method.predict(method.fit(theta, far, loss), far.x, loss)
    assert ABSENT / 2 < float(logits[:, :2].min()) < float(logits[:, :2].max()) - 100
    wrong = replace(far, y=1 - far.y)
    gradient = method.gradient_of(loss)(theta, far, wrong)
    assert torch.isfinite(gradient).all()
    assert gradient.norm() > 0.1


# --- where learning starts, and that it learns


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_an_embedding_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"learns an embedding"):
        algorithm(name).extended(MODELS["logistic"])


def test_siamese_believes_at_the_start_that_what_is_equal_is_the_same_and_what_is_not_is_not() -> None:
    """Embeddings of unit variance after the model's gain: 98 % either way, on the average."""
    loss = unlearned("siamese", 64)
    theta = loss.model.initial()
    x = torch.randn(200, 64)
    learned = loss.extras(theta)
    f = loss.embed(theta, x)
    unrelated = (f[:100] - f[100:]).abs() @ learned["alpha"] + learned["b"]
    assert float(learned["b"].sigmoid()) == pytest.approx(0.98, abs=0.005)
    assert 0.005 < float(unrelated.sigmoid().mean()) < 0.02


def test_relation_starts_as_a_distance() -> None:
    """0 where a query is the class mean, well below elsewhere, and the same from either side."""
    loss, method = unlearned("relation", 64), method_named("relation")
    theta = loss.model.initial()
    apart = []
    for _ in range(50):
        three = Shots(torch.randn(3, 64), torch.arange(3), torch.arange(3), torch.ones(3))
        scores = method.predict(method.fit(theta, three, loss), three.x, loss)
        torch.testing.assert_close(scores.diag(), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(scores, scores.T)
        apart.append(scores[~torch.eye(3, dtype=torch.bool)])
    assert -4 < float(torch.cat(apart).mean()) < -2.5
    assert float(torch.cat(apart).max()) < -0.1


def unlearned(name: str, features: int) -> Objective:
    """Of a linear embedding that is the identity at the start."""
    model = EncoderHead.of(Identity(features), CLASSES, embedding=features)
    return Objective(algorithm(name).extended(model), *no_scaling(features))


@dataclass
class Clusters(SilentCohort):
    """Episodes of new classes. Three directions of ten tell them apart; the others are ten times as wide as a class."""

    generator: torch.Generator
    rotation: Tensor

    def __iter__(self) -> Iterator[tuple[Shots, Shots]]:
        while True:
            centres = 0.5 * torch.randn(CLASSES, 3, generator=self.generator)
            yield self._around(centres, 3), self._around(centres, 8)

    def _around(self, centres: Tensor, patients: int) -> Shots:
        y = torch.arange(CLASSES).repeat(patients)
        x = torch.randn(len(y), 10, generator=self.generator)
        x = torch.cat([centres[y] + 0.1 * x[:, :3], x[:, 3:]], dim=1) @ self.rotation
        return Shots(x, y, torch.arange(len(y)), torch.ones(len(y)))

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        return gradient(theta, *next(iter(self)))


@pytest.mark.parametrize("name", NAMES)
def test_learning_finds_what_tells_classes_apart(name: str) -> None:
    """By the outer step of a run, without privacy; the measure is the accuracy on new classes (chance 1/3)."""
    generator = torch.Generator().manual_seed(0)
    clusters = Clusters(generator, torch.linalg.qr(torch.randn(10, 10, generator=generator))[0])
    judged = [episode for episode, _ in zip(clusters, range(40), strict=False)]
    method, loss = method_named(name), unlearned(name, 10)
    optimizer = Adam(learning_rate=0.03)

    def accuracy(theta: Tensor) -> float:
        right = []
        for support, query in judged:
            fitted = method.adapt(theta, support, loss)
            right.append((method.predict(fitted, query.x, loss).argmax(1) == query.y).float().mean())
        return float(torch.stack(right).mean())

    theta = loss.model.initial()
    before, state = accuracy(theta), method.start(theta, loss, optimizer)
    for _ in range(200):
        delta = method.inner(theta, clusters, loss)
        state, theta = method.outer(state, theta, Pooled(delta), loss, optimizer)
    assert before < 0.5
    assert accuracy(theta) > 0.85
