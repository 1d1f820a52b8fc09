"""How good the shared model is at the hospitals, without a shot: as the label kind counts, in a confusion matrix."""

from __future__ import annotations

from torch import Tensor

from wardround.config import Federation, Privacy
from wardround.labels import LABEL_KINDS
from wardround.models import Model
from wardround.questions import Findings, L, OfImages, Point, Pool, Summand, SumQuestion


class Confusion(SumQuestion):
    """See `LabelKind.judgement`; a patient weighs at most 1."""

    described = "what of each class is taken for which, summed over patients"

    def share(self, privacy: Privacy) -> float:
        """As agreed."""
        return privacy.evaluation_share

    def due(self, after: int, federation: Federation) -> bool:
        """After every so many training rounds."""
        return federation.rounds.evaluates(after)

    def summands(self, federation: Federation, model: Model) -> tuple[Summand, ...]:
        """One stretch for each that the label kind names, which together are at most 1 long."""
        judgement = LABEL_KINDS[federation.task.labels].judgement(model.classes)
        return tuple(Summand(name, shape) for name, shape in judgement.tensors) if judgement else ()

    def of_images(self, at: Point) -> OfImages:
        """Predictions of the shared model."""
        algorithm, loss = at.federation.algorithm, at.loss
        fitted = algorithm.unadapted(at.theta, loss)

        def judged(x: Tensor, y: Tensor, features: Tensor) -> Tensor:
            return loss.labels.judge(algorithm.predict(fitted, x, loss), y, loss.classes)

        return judged

    def learn(self, pool: Pool, learned: L, federation: Federation, model: Model) -> tuple[L, Findings]:
        """Estimates of all hospitals together and of each."""
        labels = LABEL_KINDS[federation.task.labels]
        by_hospital = zip(pool.hospitals, pool.matrix, strict=True)
        return learned, {
            "score": labels.evaluated,
            **labels.scores(pool.matrix.sum(0), model.classes),
            "accuracy_by_hospital": {
                who: labels.scores(judged, model.classes)["accuracy"] for who, judged in by_hospital
            },
        }


question = Confusion()
