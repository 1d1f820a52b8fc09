"""What an exported file is worth: how far it is from torch, how fast it is, and its metrics on labelled patients."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from wardround_client.cohort.examples import images_of, usable_rows
from wardround_client.cohort.store import CohortStore
from wardround_client.isolated import isolation
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.kinds import at_home
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.whole_model import OUTPUT

REPEATS = 20  # of each contender, in turn
DIFFERS = 1e-3  # a probability that is further from torch's is another model's
_AT_ONCE = 64  # inputs in memory

Answer = Callable[[Tensor], Tensor]
"""Of one input [1, ...] the probabilities [k, classes]."""


@dataclass(frozen=True)
class Judgement:
    """Of one way to run a model. difference: the largest from torch's probabilities. ms: of one input, the median.

    bytes, compressed: of the file, as it is and as zlib packs it; 0 for torch. judged: a `kinds.Judged` as JSON.
    """

    difference: float
    ms: float
    bytes: int
    compressed: int
    judged: Mapping[str, Any]

    @property
    def main(self) -> tuple[str, Mapping[str, float] | None]:
        """The first metric."""
        metrics: Mapping[str, Mapping[str, float] | None] = self.judged["metrics"]
        return next(iter(metrics.items()))


@dataclass(frozen=True)
class Patients:
    """Labelled patients whom an adapted model has not seen. inputs: one at a time, in the order of the examples."""

    who: Labelled
    inputs: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, adapted: AdaptedModel, cohort: CohortStore, everybody: Labelled) -> Patients:
        """everybody: of the same cohort and task, encoded."""
        task = adapted.federation.task
        rows = usable_rows(cohort, task)
        seen = {number for number, name in enumerate(everybody.pseudonyms) if name in adapted.support}
        kept = rows.kept[[patient not in seen for patient in rows.patient.tolist()]]

        def inputs() -> Iterator[Tensor]:
            for start in range(0, len(kept), _AT_ONCE):
                yield from torch.split(images_of(cohort, kept[start : start + _AT_ONCE], torch.device("cpu"))[0], 1)

        return cls(everybody.without(adapted.support), inputs)


def by_torch(adapted: AdaptedModel) -> Answer:
    """As `predict` answers."""
    learner = adapted.learner

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            return learner.probabilities(adapted.fitted, learner.loss.model.encode(x.to(learner.theta.device))).cpu()

    return answer


def by_file(data: bytes) -> Answer:
    """As onnxruntime answers, on one thread."""
    from wardround.onnx_files.session import Session

    session = Session(data, OUTPUT)

    def answer(x: Tensor) -> Tensor:
        found = torch.from_numpy(session(x.numpy()))
        return found if found.ndim == 2 else found.flatten(2)[0].T  # of cells, row by row

    return answer


def judgements(
    adapted: AdaptedModel, patients: Patients, files: Mapping[str, bytes], step: Callable[[], None]
) -> dict[str, Judgement]:
    """torch's, and each file's. step: called after each input. Raises: DataError, when there is nobody to judge."""
    ways: dict[str, Answer] = {"torch": by_torch(adapted), **{name: by_file(data) for name, data in files.items()}}
    found: dict[str, list[Tensor]] = {name: [] for name in ways}
    with isolation():
        for x in patients.inputs():
            for name, way in ways.items():
                found[name].append(way(x))
            step()
    ms = milliseconds(ways, next(patients.inputs())) if found["torch"] else dict.fromkeys(ways, 0.0)
    tables = {name: torch.cat(each) if each else torch.zeros(0, 1) for name, each in found.items()}
    return {
        name: Judgement(
            difference=float((table - tables["torch"]).abs().max()) if len(table) else 0.0,
            ms=ms[name],
            bytes=len(files.get(name, b"")),
            compressed=len(zlib.compress(files[name], 9)) if name in files else 0,
            judged=_judged(adapted, patients.who, table),
        )
        for name, table in tables.items()
    }


def milliseconds(ways: Mapping[str, Answer], x: Tensor, repeats: int = REPEATS) -> dict[str, float]:
    """The median time of an input on one thread; all ways in turn, so that what else the machine does is the same."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with isolation():
        for _ in range(repeats):
            for name, way in ways.items():
                begun = time.perf_counter()
                way(x)
                taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: median(each) for name, each in taken.items()}


@dataclass(frozen=True)
class _Answered(Learner):
    """A learner whose answers are known: examples are numbers of rows."""

    answers: Tensor = field(kw_only=True)

    def probabilities(self, fitted: object, z: Tensor) -> Tensor:
        """The rows that z [n, 1] names."""
        return self.answers[z.flatten().long()]


def _judged(adapted: AdaptedModel, who: Labelled, answers: Tensor) -> Mapping[str, Any]:
    learner, examples = adapted.learner, who.examples
    known = _Answered(learner.algorithm, learner.loss, learner.theta, answers=answers)
    numbered = replace(examples, z=torch.arange(len(examples.z)).float().unsqueeze(1).double())
    kind, classes = at_home(learner.loss.labels), adapted.federation.task.classes
    return kind.report(known, adapted.fitted, replace(who, examples=numbered), classes).to_json()
