"""Images that hospitals see through one frozen encoder: their features, and the agreements about them."""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from hospitals import Problem, Study, Target, agreed
from rows import Trial
from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.experience.rule import components
from wardround.files import write_atomically
from wardround.models import Model
from wardround.models.columns import Columns
from wardround.models.composed import Together
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import Encoder, EncoderHead, MapEncoder
from wardround.models.own_encoder import OwnEncoder
from wardround.task import Task
from wardround_client.cohort.examples import Examples

CHANNELS: Final = 3
_AT_ONCE = 32  # images, whose features are small beside what is computed on the way


@dataclass(frozen=True)
class First:
    """An encoder's first so many features, which are its greatest principal components. Implements `Encoder`."""

    encoder: Encoder
    features: int

    @property
    def fingerprint(self) -> str:
        """Of the encoder and how many are kept."""
        return hashlib.sha256(f"{self.encoder.fingerprint}/{self.features}".encode()).hexdigest()

    def __call__(self, x: Tensor) -> Tensor:
        """As of `Encoder`."""
        return self.encoder(x)[:, : self.features]


@dataclass(frozen=True)
class EncodedImages:
    """An encoder as the options say, and what a federation of its hospitals says beside a trial."""

    name: str
    label_column: str
    image_size_px: int
    choice: ModelChoice
    encoder: Encoder

    @classmethod
    def of(cls, options: argparse.Namespace, name: str, label_column: str, image_size_px: int) -> Self:
        """What the options say. Raises: ConfigError, as of the encoders."""
        return cls(name, label_column, image_size_px, *_encoder_of(options, image_size_px))

    @property
    def map_encoder(self) -> MapEncoder:
        """The encoder, for outlines. Raises: ConfigError, where its file has no maps."""
        encoder = self.encoder
        if not isinstance(encoder, BuiltinEncoder | OwnEncoder) or not encoder.map_size:
            raise ConfigError("the encoder has no maps", do="make one with `imagenet_encoder.py --maps`")
        return encoder

    def beside(self, columns: Columns) -> Self:
        """The same with a table of the same patients, whose features follow the image's."""
        shapes = (CHANNELS, self.image_size_px, self.image_size_px), (columns.features,)
        return replace(self, encoder=Together((self.encoder, columns), shapes))

    def federation(self, classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
        """What the hospitals would agree on."""
        size = self.image_size_px
        return Federation(
            name=self.name,
            task=Task(label_column=self.label_column, classes=classes, image_size_px=size, channels=CHANNELS),
            model=self.choice.model_copy(update={"embedding": trial.embedding}),
            **agreed(algorithm, trial, epsilon),
        )

    def model(self, federation: Federation) -> Model:
        """Of an agreement, without what a method learns beside it."""
        return EncoderHead.of(self.encoder, len(federation.task.classes), federation.model.embedding)


def _encoder_of(options: argparse.Namespace, image_size_px: int) -> tuple[ModelChoice, Encoder]:
    file, features = options.encoder, options.features
    if file is None:
        return ModelChoice(features=features), BuiltinEncoder.of(image_size_px, CHANNELS, features)
    if not file.is_file():
        raise ConfigError(f"there is no encoder at {file}", do="correct --encoder")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    choice = ModelChoice(encoder=file.name, encoder_sha256=sha256, features=features)
    return choice, OwnEncoder.load(file, sha256, channels=CHANNELS, features=features)


def encoded(encoder: Encoder, x: Tensor, cache: Path, console: Console) -> Tensor:
    """Features float32 [n, features] of images x; computed once, and then read."""
    return _kept(encoder, x.numpy().tobytes(), cache, console, lambda: encoder(x).numpy(), len(x))


def cached(encoder: Encoder, images: NDArray[np.uint8], cache: Path, console: Console) -> Tensor:
    """The same of images uint8 [n, channels, h, w]: float32 [n ..., features], which lie on the disk as float16."""

    def found() -> NDArray[Any]:
        parts = np.array_split(images, max(1, len(images) // _AT_ONCE))
        return np.concatenate([encoder(torch.from_numpy(part).float() / 255).numpy().astype("f2") for part in parts])

    return _kept(encoder, images.tobytes(), cache, console, found, len(images))


def _kept(
    encoder: Encoder, data: bytes, cache: Path, console: Console, compute: Callable[[], NDArray[Any]], number: int
) -> Tensor:
    name = hashlib.sha256(encoder.fingerprint.encode() + data).hexdigest()[:16]
    path = cache / f"{name}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        console.print(f"encoding {number} images, once")
        buffer = io.BytesIO()
        with torch.no_grad():
            np.save(buffer, compute())
        write_atomically(path, buffer.getvalue())
    return torch.from_numpy(np.load(path)).float()


def narrowed(study: Study, epsilon: float | None, *, of_sums: bool = False) -> tuple[Study, int]:
    """The study through the components that the rule gives for its patients, and how many. epsilon: None without
    privacy, where all are used. of_sums: see `components`.
    """
    problem = study.problem(0)
    most = next(iter(problem.cohorts.values())).z.shape[1]
    patients = sum(each.patients for each in problem.cohorts.values())
    kept = most if epsilon is None else components(most, patients, epsilon, of_sums=of_sums)
    if kept == most:
        return study, most

    def model(federation: Federation) -> Model:
        whole = study.model(federation)
        assert isinstance(whole, EncoderHead)
        embedding = min(federation.model.embedding, kept)
        return EncoderHead.of(First(whole.encoder, kept), whole.classes, embedding)

    return replace(study, problem=lambda seed: _cut(study.problem(seed), kept), model=model), kept


def _cut(problem: Problem, kept: int) -> Problem:
    return replace(
        problem,
        cohorts={name: _first(each, kept) for name, each in problem.cohorts.items()},
        targets=tuple(_target(each, kept) for each in problem.targets),
    )


def _target(target: Target, kept: int) -> Target:
    return replace(target, examples=_first(target.examples, kept))


def _first(examples: Examples, kept: int) -> Examples:
    z = examples.z[:, :kept].contiguous()
    return replace(examples, z=z, summary=z)
