"""Models: what is frozen and public, and what hospitals train together."""

from __future__ import annotations

from pathlib import Path

from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.models.base import Model
from wardround.models.columns import BOUND, Columns, Projected
from wardround.models.composed import Cells, Slices, Together
from wardround.models.conv4 import Conv4
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import Encoder, EncoderHead, MapEncoder
from wardround.models.objective import Objective
from wardround.models.onnx_encoder import OnnxEncoder
from wardround.models.own_encoder import OwnEncoder
from wardround.models.tabular import Tabular
from wardround.task import Example

__all__ = ["MapEncoder", "Model", "Objective", "build_encoder", "build_model", "picture_encoder"]


def build_model(federation: Federation, base: Path | None = None, weights: bytes | None = None) -> Model:
    """The model that a federation agreed on; `base` is the folder of a relative `model.encoder` (default: here).

    weights: the bytes of that file, where they were read already.

    Raises: ConfigError: an encoder file that is missing, not the pinned one, or does not fit the task.
    """
    task, choice = federation.task, federation.model
    classes = len(task.classes)
    if choice.family == "logistic":
        return Tabular.logistic(Columns.of(task), classes)
    if choice.family == "mlp":
        return Tabular.mlp(Columns.of(task), classes, choice.width)
    if choice.family == "projection":
        return EncoderHead.of(Projected(Columns.of(task, BOUND), choice.features), classes, choice.embedding)
    if choice.family == "conv4":
        return Conv4.of(task.channels, choice.width, classes)
    return EncoderHead.of(build_encoder(federation, base, weights), classes, choice.embedding)


def build_encoder(federation: Federation, base: Path | None = None, weights: bytes | None = None) -> Encoder:
    """The frozen encoder of an agreement whose model has one; arguments and errors as of `build_model`."""
    task, choice, folder = federation.task, federation.model, base or Path()

    def of(example: Example) -> Encoder:
        picture = picture_encoder(choice, example, folder, weights)
        return Slices(picture) if example.kind == "volume" else picture

    if task.inputs:
        parts = [Columns.of(each, BOUND) if each.kind == "table" else of(each) for each in task.inputs]
        return Together(tuple(parts), tuple(each.input_shape for each in task.inputs))
    if not task.dense:
        return of(task)
    picture = picture_encoder(choice, task, folder, weights)
    if not picture.map_size:
        raise ConfigError(
            f'labels = "{task.labels}" with the encoder {choice.encoder}, which has no maps',
            do="bring an encoder with maps, or leave model.encoder out: the built-in one has them",
        )
    return Cells(picture, task.image_size_px // task.cell_px)


def picture_encoder(choice: ModelChoice, example: Example, base: Path, weights: bytes | None = None) -> MapEncoder:
    """Of one image, as the choice says. base: the folder of a relative `encoder`. Raises: ConfigError."""
    if choice.encoder == "builtin":
        return BuiltinEncoder.of(example.image_size_px, example.channels, choice.features)
    path = base / choice.encoder
    kind = OnnxEncoder if path.suffix == ".onnx" else OwnEncoder
    return kind.load(path, choice.encoder_sha256, channels=example.channels, features=choice.features, data=weights)
