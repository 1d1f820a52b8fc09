"""A support that is read as a memory: attentive few-shot learning, without a gradient step at home.

Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016, write shots and labels into a memory that a
query reads by cosine attention. SNAIL (Mishra et al., "A Simple Neural Attentive Meta-Learner", 2018) reads it by
attention with learned projections, attentive neural processes (Kim et al., 2019) by cross-attention that knows no
order, and FEAT (Ye et al., 2020) adapts embeddings to the task by it. Patients have no order, so this is the form that
a set wants. With unit embeddings s_i of the shots, w_i the weight of an image and m_k the mean of class k's s_i:

    a_hi(u) = softmax over i of (log w_i + tau (Q u)_h . (K s_i)_h)        a head h reads the memory
    u*      = u + O [sum_i a_hi(u) (V (s_i, m_y_i))_h, all h] / 10         what was read corrects u
    P(y = k | u) = sum over i of class k of softmax_i(log w_i + beta cos(u*, s_i*))

Shots are corrected as queries are, s_i* once for all queries, and a query is read alone. Labels enter as the class's
mean beside a shot, not as a number of the class, so that diseases nobody has seen are read like all others.

O starts at zero and Q, K and V where they select: the method starts as matching networks (`matching`). Noise in Q, K
and V does nothing as long as O has not learned to use them, and noise in O a tenth of what it would do.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import normalize

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.algorithms.matching import BETA, LEAST_NORM, log_sums
from wardround.meta.embedded import ABSENT, Embedding, class_means
from wardround.meta.total import positive
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import FewShotLoss

HEADS = 4
# Numbers of all heads' keys together, at most.
WIDTH = 32
# At 1, episodes of a few shots teach O their noise faster than the embedding learns.
SCALE = 0.1


class Attentive(Embedding):
    """Cross-attention over the support, which corrects what is compared."""

    affine = False
    compares = True

    name: str = "attentive"

    def extended(self, model: Model) -> Model:
        """With Q, K [a, e], V [a, 2e], O [e, a], log beta. Raises: ConfigError, when it has no body to embed with."""
        model = super().extended(model)
        e, a = model.embedding_size, min(WIDTH, model.embedding_size)
        select = torch.eye(a, e)
        learned = {
            "Q": select,
            "K": select,
            "V": torch.cat([torch.zeros(a, e), select], 1),
            "O": torch.zeros(e, a),
            "log_beta": torch.tensor(BETA).log(),
        }
        return Extended.of(model, learned)

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + at.rows * (at.rows * (9 * at.classes + 12 * HEADS) + 24 * (at.embedding + WIDTH))

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """The memory, and what it makes of the shots in it."""
        s = normalize(embedded, dim=1, eps=LEAST_NORM)
        memory = {"shots": s, "shares": shares, "means": class_means(s, shares)}
        return {"theta": theta, "corrected": corrected(s, memory, loss.extras(theta)), **memory}

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """Log P(y = k | u) up to what all classes share, float32 [n, classes]; [n, shots, classes] of memory."""
        learned = loss.extras(fitted["theta"])
        u = normalize(loss.embed(fitted["theta"], x), dim=1, eps=LEAST_NORM)
        scores = positive(learned["log_beta"]) * corrected(u, fitted, learned) @ fitted["corrected"].T
        return log_sums(scores, fitted["shares"])


def corrected(u: Tensor, memory: Fitted, learned: Fitted) -> Tensor:
    """u* of unit vectors u [n, e], of length 1 again: float32 [n, e]."""
    return normalize(u + SCALE * recalled(u, memory, learned) @ learned["O"].T, dim=1, eps=LEAST_NORM)


def recalled(u: Tensor, memory: Fitted, learned: Fitted) -> Tensor:
    """What queries u [n, e] read: float32 [n, a], the heads one after another.

    memory: "shots" [m, e], "shares" [m, classes], the weight of each in its class, and "means" [classes, e]. A shot of
    no weight is not read.
    """
    shares = memory["shares"]
    heads = gcd(HEADS, len(learned["Q"]))
    weight = shares.sum(1)
    of_class = shares / weight.clamp_min(1e-6).unsqueeze(1) @ memory["means"]
    values = torch.cat([memory["shots"], of_class], 1) @ learned["V"].T

    def parts(each: Tensor) -> Tensor:
        """[n, a] -> [heads, n, a / heads]."""
        return each.view(len(each), heads, -1).transpose(0, 1)

    # A head sees 1 / heads of a vector's squared length.
    scores = heads * BETA * parts(u @ learned["Q"].T) @ parts(memory["shots"] @ learned["K"].T).transpose(1, 2)
    there = weight > 0
    attention = (scores + torch.where(there, weight, 1.0).log()).where(there, ABSENT).softmax(2)
    return (attention @ parts(values)).transpose(0, 1).flatten(1)


algorithm = Attentive
