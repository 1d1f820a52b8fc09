"""FedRep: Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", 2021; FedPer (Arivazhagan et al., 2019) before it. Hospitals share a body, and each keeps a head of its own.

In a round of the paper a hospital solves for its head h at the body that arrived, and then takes steps of the body at
that head (algorithm 1):

    h <- argmin F(body, h),   body <- body - eta dF(body, h)/d body, k times;   the body alone is sent

As published this cannot be private: h is fitted to all patients without noise, so that the body's gradient of ONE
patient depends on all others through h, and no clipping bounds what one of them does. So here the head is made of
private answers alone. Beside the body's gradient, in the same clipped vector, a patient adds its standardised features
to its class's sum and one to its class's count (`wardround.meta.class_sums`); from the hospital's OWN noised sums, all
that it has sent in this run and its ledger remembers, follow shrunken class means m_k, and from these and the body B
that arrived the head in closed form, by linear discriminant analysis as in `centroids`:

    c_k = B m_k,   w_k = d c_k,   b_k = -d |c_k|^2 / 2

It is post-processing, and a round costs what FedAvg's costs, not k + 1 times that, as private steps of a head would. In
a hospital's first round no class is known, the head is zero and the body rests. A head with other answers would do as
well; the means are those that cost nothing more.

That the head never leaves hides nothing here: whoever knows the noised sums can compute it. What FedRep is for is that
hospitals may differ in it. The place of the head in theta holds the one that follows from the sums of all hospitals;
at home the head alone is fine-tuned, from that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.algorithms import Fitted, Pooled, State
from wardround.errors import ConfigError
from wardround.meta import stand_ins
from wardround.meta.base import headless
from wardround.meta.class_sums import linear_term, parts, with_places
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.head import HeadAlone
from wardround.meta.local import descend
from wardround.models.base import Model
from wardround.models.objective import Objective
from wardround.optimizers import Optimizer
from wardround.questions import Cohort, FewShotLoss, Shots

# Beside a body's gradient, which is about 1 long (`BodyAndSums`).
LENGTHS = stand_ins.LENGTHS


class FedRep(FineTuned):
    """A shared body, and a head for each hospital."""

    needs_embedding = True
    one_class_each = True
    remembers = True
    of_classes = ("sums", "counts")

    name: str = "fedrep"

    def extended(self, model: Model) -> Model:
        """With sums of features beside the model. Raises: ConfigError, when it has no body, or makes its features."""
        model = super().extended(model)
        if model.hidden == "deep":
            raise ConfigError(
                f"algorithm.name = {self.name!r} makes heads of sums of features, and the model makes these itself",
                allowed='model.family "encoder-head" with an embedding, or "mlp"',
                do='take one of these, or algorithm.name = "anil"',
            )
        return with_places(model, model.scaling_size, LENGTHS)

    @property
    def answers_per_round(self) -> int:
        """The steps of the body: one private gradient each."""
        return self.local_steps

    def inner_after(self, sent: Tensor, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The body's way in `local_steps` private steps, and sums, float32 [P]; zero at the head's place."""
        assert isinstance(loss, Objective)
        own = with_head_of(sent, theta, loss)
        asked = BodyAndSums(loss, float(loss.head(own)[0].norm()))
        w = descend(own, cohort, asked, steps=self.local_steps, learning_rate=self.local_learning_rate)
        return headless(w - own, loss)

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The body and the sums go on, and a head for everybody follows from them."""
        state, theta = super().outer(state, theta, pooled, loss, optimizer)
        assert isinstance(loss, Objective)
        return state, with_head_of(theta, theta, loss)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """A head that is fine-tuned on the support; the body stays."""
        alone = HeadAlone(theta, loss)
        return {"theta": alone.around(self.tuned(alone.own(), alone.embedded(support), alone))}


def with_head_of(sums: Tensor, theta: Tensor, loss: Objective) -> Tensor:
    """Theta float32 [P] with the head that follows from its body and from the places of a vector like it."""
    means, d = stand_ins.class_means(sums, loss), loss.model.scaling_size
    c = loss.embed(theta, stand_ins.encoded(loss, means.means)) * means.known.to(theta.dtype).unsqueeze(1)
    head = torch.cat([(d * c).flatten(), -d * c.square().sum(1) / 2])
    head = torch.nan_to_num(head, nan=0.0, posinf=0.0, neginf=0.0)
    return loss.with_head(theta, head[: -loss.classes].view_as(c), head[-loss.classes :])


@dataclass(frozen=True)
class BodyAndSums:
    """The loss as a function of the body alone, and what a patient adds to the sums. Implements `ElementaryLoss`.

    length: of the head's weight, by which the loss is divided, so that a gradient of the body is about 1 long.
    """

    loss: Objective
    length: float

    @property
    def elementary(self) -> bool:
        """Where the loss is."""
        return self.loss.elementary

    @property
    def factor(self) -> float:
        """Of the loss; a head of zeros has none."""
        return 1 / self.length if self.length > 0 else 0.0

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        f = self.loss.standardised(x)
        added = parts(f, self.loss.labels.targets(y, self.loss.classes).double(), LENGTHS)
        found = self.factor * self.loss.gradients(theta, x, y)
        found[:, self.loss.model.body_size :] = 0.0
        found[:, -added.shape[1] :] = -added
        return found

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m] -> float32 []."""
        weight, bias = self.loss.head(theta)
        body_alone = self.loss.with_head(theta, weight.detach(), bias.detach())
        shown = self.loss.labels.targets(y, self.loss.classes)
        added = linear_term(self.loss.extras(theta), self.loss.standardised(x).float(), shown, LENGTHS)
        return (self.factor * self.loss.each(body_alone, x, y) - added).mean()


algorithm = FedRep
