"""Models: what is frozen and public, and what hospitals train together."""

from __future__ import annotations

from pathlib import Path

from wardround.config import Federation
from wardround.models.base import Model
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import EncoderHead, MapEncoder
from wardround.models.objective import Objective
from wardround.models.own_encoder import OwnEncoder
from wardround.models.tabular import Tabular

__all__ = ["MapEncoder", "Model", "Objective", "build_encoder", "build_model"]


def build_model(federation: Federation, base: Path | None = None, weights: bytes | None = None) -> Model:
    """The model that a federation agreed on; `base` is the folder of a relative `model.encoder` (default: here).

    weights: the bytes of that file, where they were read already.

    Raises: ConfigError: an encoder file that is missing, not the pinned one, or does not fit the task.
    """
    task, choice = federation.task, federation.model
    classes = len(task.classes)
    if choice.family == "logistic":
        return Tabular.logistic(len(task.features), classes, centre=task.centre, spread=task.spread)
    if choice.family == "mlp":
        return Tabular.mlp(len(task.features), classes, choice.width, centre=task.centre, spread=task.spread)
    if choice.family == "conv4":
        return Conv4.of(task.channels, choice.width, classes)
    return EncoderHead.of(build_encoder(federation, base, weights), classes, choice.embedding)


def build_encoder(federation: Federation, base: Path | None = None, weights: bytes | None = None) -> MapEncoder:
    """The frozen encoder of an agreement whose model has one; arguments and errors as of `build_model`."""
    task, choice = federation.task, federation.model
    if choice.encoder == "builtin":
        return BuiltinEncoder.of(task.image_size_px, task.channels, choice.features)
    return OwnEncoder.load(
        (base or Path()) / choice.encoder,
        choice.encoder_sha256,
        channels=task.channels,
        features=choice.features,
        data=weights,
    )
