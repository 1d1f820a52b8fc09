"""What a federation agrees on: federation.toml as a frozen model.

Everything in it is public. A hospital approves the whole file, by hash, and runs its own approved copy: no
number of it travels with a round.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wardround.toml import Section, load

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Family = Literal["encoder-head", "conv4", "logistic", "mlp"]


class Task(Section):
    """What is diagnosed, from what.

    label_column: the column of the labels CSV; classes: its values, in the order of the model's outputs.
    image_size_px: images are resized to image_size_px x image_size_px; channels: 1 (grey) or 3 (RGB).
    features: for a table, the names of the columns; empty for images. centre, spread: for each column a public guess of
    a usual value and of how far values lie apart (age: 55 and 15), from textbooks and never from patients; private
    statistics mend the guess, and are bounded in its units. Empty: 0 and 1.
    """

    label_column: str
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=256)]
    kind: Literal["image", "table"] = "image"
    image_size_px: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: Literal[1, 3] = 1
    features: tuple[str, ...] = ()
    centre: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    spread: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a value twice")
        if (self.kind == "table") != bool(self.features):
            raise ValueError("features names the columns of a table, and a table needs them")
        for name, values in (("centre", self.centre), ("spread", self.spread)):
            if len(values) not in (0, len(self.features)):
                raise ValueError(f"{name} holds {len(values)} numbers for {len(self.features)} features")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (channels, image_size_px, image_size_px), or (features,)."""
        if self.kind == "table":
            return (len(self.features),)
        return (self.channels, self.image_size_px, self.image_size_px)


class ModelChoice(Section):
    """The network. family: encoder-head (frozen public encoder, private head; the default), conv4, logistic or mlp.

    encoder: "builtin", or the name of a safetensors file beside federation.toml that the consortium brings, pinned by
    encoder_sha256.
    features: how many public principal components of the encoder's output the head sees.
    width: channels of conv4, hidden units of mlp.
    """

    family: Family = "encoder-head"
    encoder: Annotated[str, Field(pattern=r"^(builtin|[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors)$")] = "builtin"
    encoder_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    features: Annotated[int, Field(ge=2, le=4096)] = 32
    width: Annotated[int, Field(ge=1, le=1024)] = 64

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.encoder != "builtin" and not self.encoder_sha256:
            raise ValueError("an encoder of your own needs encoder_sha256, so that nobody can exchange it")
        return self


class AlgorithmChoice(Section):
    """The meta-learner and its hospital half: `local_steps` steps of `local_learning_rate` a round."""

    name: Literal["reptile", "fomaml", "maml", "fedavg"] = "reptile"
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 1
    local_learning_rate: Positive = 1.0


class OuterOptimizer(Section):
    """The coordinator's optimizer over the weighted mean delta. momentum: SGD; beta1, beta2, tau: Adam and Yogi."""

    optimizer: Literal["sgd", "adam", "yogi"] = "sgd"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3
    weighting: Literal["declared", "uniform"] = "declared"


class Privacy(Section):
    """What the whole run costs each hospital, and how each answer is made.

    epsilon: for the whole run, at each hospital's own delta. clip_norm: C, the L2 bound of one patient's gradient.
    patients_per_step: expected patients in a Poisson sample (rate = this / declared patients, at most 1); 0: everyone.
    images_per_patient: m, images drawn of each sampled patient. patients_per_episode: expected patients of a few-shot
    episode, for algorithms that learn from episodes; support_share: how likely each is in its support.
    statistics_share, evaluation_share: parts of epsilon for the class counts and feature statistics, and for all
    evaluations together.
    """

    epsilon: Positive = 8.0
    clip_norm: Positive = 1.0
    patients_per_step: Annotated[int, Field(ge=0)] = 0
    images_per_patient: Annotated[int, Field(ge=1, le=1024)] = 1
    patients_per_episode: Annotated[int, Field(ge=2)] = 20
    support_share: Fraction = 0.5
    statistics_share: Fraction = 0.15
    evaluation_share: Fraction = 0.15

    def expected_patients(self, declared_patients: int) -> int:
        """Patients expected in a sample of a hospital that declares so many."""
        return min(self.patients_per_step or declared_patients, declared_patients)

    def episodes(self, declared_patients: int) -> int:
        """Few-shot episodes of a sample: a public number, at least 1."""
        return max(1, round(self.expected_patients(declared_patients) / self.patients_per_episode))


class Rounds(Section):
    """rounds: training rounds. A round ends when all have replied, or at deadline_s if `quorum` hospitals have.

    evaluate_every: ask for private confusion counts after every so many rounds; 0: never (it costs epsilon).
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 20
    quorum: Annotated[int, Field(ge=1)] = 2
    deadline_s: Positive = 120.0
    evaluate_every: Annotated[int, Field(ge=0)] = 0


class Federation(Section):
    """federation.toml."""

    name: Name
    task: Task
    model: ModelChoice = ModelChoice()
    algorithm: AlgorithmChoice = AlgorithmChoice()
    outer: OuterOptimizer = OuterOptimizer()
    privacy: Privacy = Privacy()
    rounds: Rounds = Rounds()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        tabular = self.model.family in ("logistic", "mlp")
        if tabular != (self.task.kind == "table"):
            raise ValueError(f"model.family {self.model.family!r} does not fit task.kind {self.task.kind!r}")
        return self

    def canonical(self) -> str:
        """Every value, defaults included, as JSON with sorted keys: the same text for the same agreement."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical()`, 64 hex digits: the name under which a hospital approves this agreement."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def load_federation(path: Path) -> Federation:
    """Read federation.toml. Raises: ConfigError."""
    return load(path, Federation)
