"""An encoder that a consortium brings: a sequential convolutional network in one safetensors file, pinned by SHA-256.

The file holds tensors and a description, never code. Its metadata has one key, "wardround", with JSON:

    {"schema": 1, "channels": 3, "side": 64,
     "layers": [{"kind": "conv", "name": "conv0", "stride": 1, "padding": 1, "groups": 1},
                {"kind": "affine", "name": "norm0"},
                {"kind": "relu"},
                {"kind": "maxpool", "size": 2},
                {"kind": "meanpool"},
                {"kind": "linear", "name": "project"}]}

conv: NAME.weight [outputs, inputs / groups, k, k], NAME.bias [outputs] if present. affine: NAME.weight and NAME.bias
[channels], x weight + bias a channel (a frozen batch normalisation folds into it). meanpool: mean over the image, once;
after it only linear, relu and affine fit. linear: NAME.weight [outputs, inputs], NAME.bias.

Images are resized to side x side. The last layer's outputs are the features: `model.features` must be their number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.nn import functional

from wardround.errors import ConfigError
from wardround.toml import Section

LIMIT_BYTES = 1 << 30
BATCH = 16


class Layer(Section):
    """One layer of the description; which keys count depends on its kind."""

    kind: Literal["conv", "affine", "relu", "maxpool", "meanpool", "linear"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    stride: Annotated[int, Field(ge=1, le=8)] = 1
    padding: Annotated[int, Field(ge=0, le=16)] = 0
    groups: Annotated[int, Field(ge=1, le=4096)] = 1
    size: Annotated[int, Field(ge=2, le=8)] = 2

    def apply(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """This layer's output. Raises: KeyError, RuntimeError or ValueError, when tensors are missing or do not fit."""
        if self.kind == "relu":
            return x.relu()
        if self.kind == "meanpool":
            return x.mean((-2, -1))
        if self.kind == "maxpool":
            return functional.max_pool2d(x, self.size)
        weight, bias = tensors[f"{self.name}.weight"], tensors.get(f"{self.name}.bias")
        if self.kind == "conv":
            return functional.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)
        if self.kind == "linear":
            return functional.linear(x, weight, bias)
        shape = (-1, *[1] * (x.ndim - 2))
        return x * weight.view(shape) + (0 if bias is None else bias.view(shape))


class Description(Section):
    """The JSON of the file's metadata."""

    # pydantic keeps the name `schema` for itself.
    version: Annotated[Literal[1], Field(alias="schema")]
    channels: Literal[1, 3]
    side: Annotated[int, Field(ge=8, le=1024)]
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=256)]


@dataclass(frozen=True, eq=False)
class OwnEncoder:
    """A consortium's encoder. fingerprint: the file's SHA-256."""

    description: Description
    features: int
    fingerprint: str
    tensors: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def load(cls, path: Path, sha256: str, *, channels: int, features: int) -> OwnEncoder:
        """Read `path`, which must have this hash, take images of `channels` and give `features` numbers.

        Raises: ConfigError: missing, another hash, not this schema, or tensors that do not fit together.
        """
        data = _pinned(path, sha256)
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            description = Description.model_validate_json(metadata["wardround"])
            loaded = {name: tensor.float() for name, tensor in load_safetensors(data).items()}
        except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not an encoder file ({type(error).__name__}: {str(error).splitlines()[0]})",
                do="see docs on bringing an encoder for the schema",
            ) from None
        encoder = cls(description, features, sha256, loaded)
        encoder._check(path, channels)
        return encoder

    def _check(self, path: Path, channels: int) -> None:
        if self.description.channels != channels:
            raise ConfigError(
                f"{path} takes {self.description.channels} channels, the task has {channels}",
                do="change task.channels, or bring another encoder",
            )
        try:
            output = self(torch.zeros(1, channels, self.description.side, self.description.side))
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(f"{path}: its layers do not fit together ({str(error).splitlines()[0]})") from None
        if tuple(output.shape) != (1, self.features):
            raise ConfigError(
                f"{path} gives {list(output.shape[1:])} features, model.features is {self.features}",
                do="set model.features to what the encoder gives",
            )

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features]."""
        tensors = {name: tensor.to(x.device) for name, tensor in self.tensors.items()}
        with torch.no_grad():
            return torch.cat([self._batch(part, tensors) for part in torch.split(x.contiguous(), BATCH)])

    def _batch(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        side = self.description.side
        if x.shape[-2:] != (side, side):
            x = functional.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        for layer in self.description.layers:
            x = layer.apply(x, tensors)
        return x


def _pinned(path: Path, sha256: str) -> bytes:
    """The file's bytes, if they are the agreed ones. Raises: ConfigError."""
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise ConfigError(f"{path} is larger than {LIMIT_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the encoder cannot be read ({error.strerror})", do="put it beside federation.toml"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"{path} has SHA-256 {found}",
            allowed=f"model.encoder_sha256 = {sha256}",
            do="use the file that the consortium agreed on",
        )
    return data
