"""Relation networks: Sung, Yang, Zhang, Xiang, Torr and Hospedales, "Learning to Compare: Relation Network for Few-Shot
Learning", 2018.

A small network g, learned beside the embedding f, says how much a query x_j relates to each class (equation 1):

    r_kj = g([c_k, f(x_j)]),   g(z) = w . relu(W z + h)

What differs from the paper, and why:

* c_k is the MEAN of the embedded shots of class k; the paper's sum (section 3.2) would tell a class by its number of
  shots where that is ragged.
* r is a logit under the cross entropy of every other method here; the paper has a sigmoid and a squared error (equation
  2). So one loss serves all, the hospital's prior is adjusted for alike, and the bias of the last layer, which would
  move the logits of all classes together, is not there.
* g is linear layers on embedding vectors; the paper's convolutions compare maps, which a frozen encoder does not give.
* g starts as minus a distance along random directions v, sum_h |v_h . (c_k - f(x_j))| / 2, and not at random: a private
  run, of a few dozen noised steps, is too short to find out that comparing is what it is for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.embedded import Embedding, absent, class_means
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.models.portable import he_uniform
from wardround.questions import FewShotLoss

# Units between the two layers, as in the paper (section 3.4).
HIDDEN = 8


class Relation(Embedding):
    """A learned comparison of a query with class means."""

    affine = False
    compares = True

    name: str = "relation"

    def extended(self, model: Model) -> Model:
        """With g beside the model. Raises: ConfigError, when it has no body to embed with."""
        model = super().extended(model)
        v = model.embedding_gain * he_uniform("relation", (HIDDEN // 2, model.embedding_size))
        difference = torch.cat([v, -v], dim=1)
        g = {
            "W": torch.cat([difference, -difference]),
            "h": torch.zeros(HIDDEN),
            "w": torch.full((HIDDEN,), -((2 / HIDDEN) ** 0.5)),
        }
        return Extended.of(model, g)

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + 64 * at.rows * at.classes

    def solve(self, theta: Tensor, embedded: Tensor, shares: Tensor, loss: FewShotLoss) -> Fitted:
        """c_k, and which classes there are."""
        return {"theta": theta, "means": class_means(embedded, shares), "absent": absent(shares)}

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """r_kj, float32 [n, classes]; W z is the sum of a class' part and a query's."""
        g = loss.extras(fitted["theta"])
        of_class, of_query = g["W"].tensor_split(2, dim=1)
        f = loss.embed(fitted["theta"], x)
        hidden = relu((f @ of_query.T).unsqueeze(1) + fitted["means"] @ of_class.T + g["h"])
        return hidden @ g["w"] + fitted["absent"]


algorithm = Relation
