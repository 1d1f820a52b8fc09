"""A learned optimizer in the inner loop, an outer network that sets the inner update ("meta neural network").

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", 2016; Ravi and Larochelle,
"Optimization as a model for few-shot learning", 2017; Li and Malik, "Learning to optimize", 2017. One small network,
the same for all coordinates of the model, sees a coordinate's gradient and momentum and sets how far it moves. Its
weights phi are learned with the start theta, through the unrolled steps. As in the first two, gradients are taken not
to depend on phi (Andrychowicz et al., section 2, the dashed edges of figure 2), nor on theta: no second derivatives.
What differs, and why:

* The network sets gains, as the gates of Ravi and Larochelle do, and not the update itself:

      theta_{t+1} = theta_t - alpha (exp(a) grad_t + b m_t),   m_{t+1} = 0.9 m_t + grad_t,   m_0 = 0

  Its last layer starts at zero, where a = b = 0 is plain SGD: learning starts from the inner loop of MAML. b = 0.9
  would be SGD with momentum. And noise in phi, which privacy brings, moves no coordinate that never had a gradient.
* No LSTM: m_t and t / k are its memory, and phi is 66 numbers, since each of them is noised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.base import Episodic
from wardround.meta.local import MOMENTUM, differentiable_slope
from wardround.meta.total import positive
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.models.portable import he_uniform
from wardround.questions import FewShotLoss, Shots
from wardround.settings import LocalSteps

_HIDDEN, _INPUTS, _GAINS = 8, 5, 2
_P = 10.0


class LearnedOptimizer(Episodic):
    """A start, and the optimizer that adapts it."""

    name: str = "learned-optimizer"
    local_steps: LocalSteps = 1

    def extended(self, model: Model) -> Model:
        """With phi: a hidden layer of tanh units, and a last layer of zeros."""
        return Extended.of(
            super().extended(model),
            {
                "hidden.weight": he_uniform("learned-optimizer/hidden", (_HIDDEN, _INPUTS)),
                "hidden.bias": torch.zeros(_HIDDEN),
                "gains.weight": torch.zeros(_GAINS, _HIDDEN),
                "gains.bias": torch.zeros(_GAINS),
            },
        )

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.shots + 8 * at.through + self.local_steps * 40 * at.theta

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """theta_k: `local_steps` steps on the support. What is learned beside the model stays as it is."""
        phi = loss.extras(theta)
        model = loss.own(theta)
        m = torch.zeros_like(model)
        for t in range(self.local_steps):
            gradient = loss.own(differentiable_slope(loss.with_own(theta, model).detach(), support, loss))
            a, b = gains(phi, gradient, m, t / self.local_steps)
            model = model - self.local_learning_rate * (positive(a) * gradient + b * m)
            m = MOMENTUM * m + gradient
        return {"theta": loss.with_own(theta, model)}

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """The same at home, where every class that is present weighs the same: there is no prior to adjust by."""
        return super().adapt(theta, support.balanced(loss.classes), loss)


def gains(phi: dict[str, Tensor], gradient: Tensor, m: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """The gains a and b, [P] each, from gradient and momentum [P] and the share of the steps that are done."""
    inputs = torch.stack([*preprocessed(gradient), *preprocessed(m), torch.full_like(m, time)], dim=1)
    hidden = torch.tanh(inputs @ phi["hidden.weight"].T + phi["hidden.bias"])
    a, b = (hidden @ phi["gains.weight"].T + phi["gains.bias"]).unbind(1)
    return a, b


def preprocessed(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Its size and sign, [P] each, within [-1, 1] up to e^p: (log|g| / p, sign g), or (-1, e^p g) below e^-p.

    Andrychowicz et al. 2016, appendix A, with p = 10.
    """
    least = gradient.new_tensor(-_P).exp()
    return gradient.abs().clamp_min(least).log() / _P, (gradient / least).clamp(-1, 1)


algorithm = LearnedOptimizer
