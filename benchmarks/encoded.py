"""Images that hospitals see through one frozen encoder: their features, and the agreements about them."""

from __future__ import annotations

import argparse
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from hospitals import agreed
from rows import Trial
from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.files import write_atomically
from wardround.models import Model
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import Encoder, EncoderHead
from wardround.models.own_encoder import OwnEncoder
from wardround.task import Task

CHANNELS: Final = 3


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
    name = hashlib.sha256(encoder.fingerprint.encode() + x.numpy().tobytes()).hexdigest()[:16]
    path = cache / f"{name}.npy"
    if not path.exists():
        console.print(f"encoding {len(x)} images, once")
        with torch.no_grad():
            z = encoder(x)
        buffer = io.BytesIO()
        np.save(buffer, z.numpy())
        write_atomically(path, buffer.getvalue())
    return torch.from_numpy(np.load(path))
