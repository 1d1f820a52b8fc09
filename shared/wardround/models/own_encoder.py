"""An encoder that a consortium brings: a convolutional network in one safetensors file, pinned by SHA-256.

The file holds tensors and a description, never code. Its metadata has one key, "wardround", with JSON:

    {"schema": 2, "channels": 3, "side": 112, "resize": "bicubic", "copies": ["h", "v", "hv"],
     "layers": [{"kind": "conv", "name": "stem", "stride": 2, "padding": "same"},
                {"kind": "relu6"},
                {"kind": "keep", "name": "block"},
                {"kind": "conv", "name": "deep", "padding": [1, 1, 1, 1], "groups": 32},
                {"kind": "add", "name": "block"},
                {"kind": "tap"},
                {"kind": "linear", "name": "project"}]}

docs/encoders.md explains every key and kind. Schema 1 knows conv with one number of padding, affine, relu, maxpool,
meanpool and linear, resizes "bilinear", makes no copies, and does not bound its features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self
from weakref import WeakValueDictionary

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.nn import functional

from wardround.errors import ConfigError
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.from_outside import pinned, reason, resized
from wardround.toml import Section

LARGEST_HEADER = 1 << 20  # bytes of the file's JSON
# What one image may take, checked on shapes alone before anything is computed: seconds, and 4 GiB over all maps.
MOST_OPERATIONS, MOST_NUMBERS = 5 * 10**11, 1 << 30
MAPS = "maps.weight"  # the tensor that projects the tapped maps; a file that holds none gives none
MOST_MAP_NUMBERS = 1 << 25  # of one image's maps after projection: 128 MiB
BATCH = 8  # whose maps the allocator keeps: larger ones go back to the system and come anew
# One copy of the weights, however many hospitals a process holds: a fingerprint says that they are the same.
_held: WeakValueDictionary[tuple[str, int, int], OwnEncoder] = WeakValueDictionary()
_FLIPS = {"h": (-1,), "v": (-2,), "hv": (-2, -1)}
_SCHEMA_2 = {"relu6", "keep", "add", "tap"}

Pixels = Annotated[int, Field(ge=0, le=16)]


class Layer(Section):
    """One layer of the description; which keys count depends on its kind."""

    kind: Literal["conv", "affine", "relu", "relu6", "maxpool", "meanpool", "linear", "keep", "add", "tap"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    stride: Annotated[int, Field(ge=1, le=8)] = 1
    padding: Pixels | tuple[Pixels, Pixels, Pixels, Pixels] | Literal["same"] = 0
    groups: Annotated[int, Field(ge=1, le=4096)] = 1
    size: Annotated[int, Field(ge=2, le=8)] = 2

    def apply(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The output of a layer that remembers nothing: all but keep, add and tap.

        Raises: KeyError, RuntimeError or ValueError, when tensors are missing or do not fit.
        """
        if self.kind == "relu":
            return x.relu()
        if self.kind == "relu6":
            return functional.relu6(x)
        if self.kind == "meanpool":
            return x.mean((-2, -1))
        if self.kind == "maxpool":
            return functional.max_pool2d(x, self.size)
        weight, bias = tensors[f"{self.name}.weight"], tensors.get(f"{self.name}.bias")
        if self.kind == "conv":
            return self._convolved(x, weight, bias)
        if self.kind == "linear":
            return functional.linear(x, weight, bias)
        shape = (-1, *[1] * (x.ndim - 2))
        return x * weight.view(shape) + (0 if bias is None else bias.view(shape))

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right, top, bottom = self._sides(x, weight)
        if (left, top) != (right, bottom):
            x, left, top = functional.pad(x, (left, right, top, bottom)), 0, 0
        return functional.conv2d(x, weight, bias, self.stride, (top, left), 1, self.groups)

    def _sides(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Padding left, right, top and bottom, pixels."""
        if isinstance(self.padding, tuple):
            return self.padding
        if isinstance(self.padding, int):
            return (self.padding,) * 4
        (left, right), (top, bottom) = (_same(x.shape[axis], weight.shape[axis], self.stride) for axis in (-1, -2))
        return left, right, top, bottom


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, so that ceil(size / stride) outputs fit (TensorFlow, tf.nn, "Notes on padding")."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Description(Section):
    """The JSON of the file's metadata."""

    # pydantic keeps the name `schema` for itself.
    version: Annotated[Literal[1, 2], Field(alias="schema")]
    channels: Literal[1, 3]
    side: Annotated[int, Field(ge=8, le=1024)]
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    copies: Annotated[tuple[Literal["h", "v", "hv"], ...], Field(max_length=3)] = ()
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.copies)) < len(self.copies):
            raise ValueError(f"copies {list(self.copies)} name one twice")
        new = {layer.kind for layer in self.layers} & _SCHEMA_2
        padded = any(not isinstance(layer.padding, int) for layer in self.layers)
        if self.version == 1 and (new or padded or self.copies or self.resize != "bilinear"):
            raise ValueError(
                "schema 1 has none of relu6, keep, add, tap, other paddings, copies, bicubic: say schema 2"
            )
        return self

    @property
    def last_tap(self) -> int:
        """Which layer it is, or -1."""
        return max((at for at, layer in enumerate(self.layers) if layer.kind == "tap"), default=-1)

    def resized(self, x: Tensor) -> Tensor:
        """[n, c, h, w] in [0, 1] -> [n, c, side, side] in [0, 1]."""
        return resized(x, self.side, self.resize)

    def outputs(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """All layers: [n, channels, side, side] -> what the last one gives; errors as of `with_maps`."""
        return self.with_maps(x, tensors)[0]

    def with_maps(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All layers: [n, channels, side, side] -> what the last one gives, and the map of each tap.

        Raises: KeyError, RuntimeError or ValueError, when tensors or maps are missing or do not fit.
        """
        kept: dict[str, Tensor] = {}
        taps: list[Tensor] = []
        maps: list[Tensor] = []
        numbers = 0
        for at, layer in enumerate(self.layers):
            if layer.kind == "keep":
                kept[layer.name] = x
            elif layer.kind == "add":
                x = _sum(x, kept[layer.name])
            elif layer.kind == "tap":
                deviation, mean = torch.std_mean(x, (-2, -1), correction=0)
                taps += [mean, deviation]
                maps.append(x)
                x = torch.cat(taps, 1) if at == self.last_tap else x
            else:
                x = layer.apply(x, tensors)
            numbers += x.numel() // max(1, len(x))
            if numbers > MOST_NUMBERS:
                raise ValueError(f"the maps of one image hold more than {MOST_NUMBERS:,} numbers")
        return x, maps


def _sum(x: Tensor, kept: Tensor) -> Tensor:
    if x.shape != kept.shape:
        raise ValueError(f"a map of {list(kept.shape[1:])} is added to one of {list(x.shape[1:])}")
    return x + kept


@dataclass(frozen=True, eq=False)
class OwnEncoder:
    """A consortium's encoder. fingerprint: the file's SHA-256.

    map_size: of the first tapped map, onto whose grid the others are interpolated; 0: the file projects none.
    """

    description: Description
    features: int
    fingerprint: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    map_size: int = 0

    @classmethod
    def load(cls, path: Path, sha256: str, *, channels: int, features: int, data: bytes | None = None) -> OwnEncoder:
        """Read `path`, which must have this hash, take images of `channels` and give `features` numbers.

        data: the file's bytes, where they were read already; `path` is then only how errors call it.

        Raises: ConfigError: missing, another hash, not this schema, or tensors that do not fit together.
        """
        data = pinned(path, sha256, data)
        if held := _held.get((sha256, channels, features)):
            return held
        return _held.setdefault((sha256, channels, features), cls._read(path, data, channels, features))

    @classmethod
    def look(cls, path: Path, data: bytes) -> OwnEncoder:
        """For its own channels, with as many features as it gives; arguments and errors as of `load`."""
        return cls._read(path, data, None, None)

    @classmethod
    def _read(cls, path: Path, data: bytes, channels: int | None, features: int | None) -> OwnEncoder:
        try:
            length = int.from_bytes(data[:8], "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes, at most {LARGEST_HEADER:,} are allowed")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            description = Description.model_validate_json(metadata["wardround"])
            loaded = {name: tensor.float().clone() for name, tensor in load_safetensors(data).items()}
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"{path}: not an encoder file ({reason(error)})",
                do="see docs/encoders.md for the schema",
            ) from None
        channels = channels or description.channels
        encoder = cls(description, features or 0, hashlib.sha256(data).hexdigest(), loaded)
        encoder = replace(encoder, features=encoder._check(path, channels))
        return replace(encoder, map_size=encoder._checked_maps(path, channels)) if MAPS in loaded else encoder

    def _check(self, path: Path, channels: int) -> int:
        """How many features it gives. Raises: ConfigError."""
        if channels not in (1, self.description.channels):
            raise ConfigError(
                f"{path} takes {self.description.channels} channels, the task has {channels}",
                do="change task.channels, or bring another encoder",
            )
        image = torch.zeros(1, channels, self.description.side, self.description.side)
        try:
            operations = self.operations(image)
            if operations > MOST_OPERATIONS:
                raise ConfigError(
                    f"{path} takes {operations:.2g} operations an image",
                    allowed=f"at most {MOST_OPERATIONS:.0e}",
                    do="bring a smaller encoder",
                )
            output = self(image)
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(f"{path}: its layers do not fit together ({reason(error)})") from None
        wanted = (1, self.features or output.shape[-1])
        if tuple(output.shape) != wanted:
            raise ConfigError(
                f"{path} gives {list(output.shape[1:])} features, model.features is {self.features}",
                do="set model.features to what the encoder gives",
            )
        if not output.isfinite().all():
            raise ConfigError(f"{path} gives features that are not finite numbers", do="bring another encoder")
        return output.shape[1]

    def _checked_maps(self, path: Path, channels: int) -> int:
        """The side of their grid. Raises: ConfigError."""
        try:
            maps = self.maps(torch.zeros(1, channels, self.description.side, self.description.side))
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(f"{path}: {MAPS} does not fit its taps ({reason(error)})") from None
        if maps.shape[1] != self.features or not maps.isfinite().all():
            raise ConfigError(
                f"{path} gives maps of {maps.shape[1]} channels"
                if maps.isfinite().all()
                else f"{path} gives no numbers",
                allowed=f"finite numbers, as many channels as features ({self.features})",
                do="bring another encoder",
            )
        return maps.shape[2]

    def operations(self, image: Tensor) -> int:
        """Floating point operations of one image, by shapes alone."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self(image.to("meta"))
        return int(counter.get_total_flops())

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features]; with schema 2, bounded by GREATEST_VALUE.

        One channel will do for an encoder of 3, and is repeated.
        """
        tensors = {name: tensor.to(x.device) for name, tensor in self.tensors.items()}
        return torch.cat([self._batch(part, tensors) for part in torch.split(x.contiguous(), BATCH)])

    @property
    def map_fingerprint(self) -> str:
        """The file's as well."""
        return self.fingerprint

    def maps(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features, map_size, map_size], bounded.

        The maps of all taps on one grid, standardised and projected by the file's `maps.weight` [features, channels of
        all taps] and `maps.bias`; the mean over the copies, each turned back.
        """
        tensors = {name: tensor.to(x.device) for name, tensor in self.tensors.items()}
        return torch.cat([self._maps(part, tensors) for part in torch.split(x.contiguous(), BATCH)])

    def _maps(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        described = self.description
        return self.both(described.resized(x).expand(-1, described.channels, -1, -1), tensors)[1]

    def both(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features and maps of images of the file's own side and channels, by its tensors on their device."""
        described, turns = self.description, [(), *(_FLIPS[copy] for copy in self.description.copies)]
        features, maps = x.new_zeros(()), x.new_zeros(())
        for turn in turns:
            found, tapped = described.with_maps(x.flip(turn) if turn else x, tensors)
            projected = _projected(tapped, tensors)
            features, maps = features + found, maps + (projected.flip(turn) if turn else projected)
        return self._bounded(features / len(turns)), (maps / len(turns)).clamp(-GREATEST_VALUE, GREATEST_VALUE)

    def _batch(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        described = self.description
        x = described.resized(x).expand(-1, described.channels, -1, -1)
        total = described.outputs(x, tensors)
        for copy in described.copies:
            total = total + described.outputs(x.flip(_FLIPS[copy]), tensors)
        return self._bounded(total / (1 + len(described.copies)))

    def _bounded(self, features: Tensor) -> Tensor:
        return features if self.description.version == 1 else features.clamp(-GREATEST_VALUE, GREATEST_VALUE)


def _projected(maps: list[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """Maps [n, c, h, w] of all taps -> their projection [n, features, h, w] on the grid of the first.

    Projected before they are interpolated, which is the same and takes a fraction of the memory.
    """
    weight, size = tensors[MAPS][:, :, None, None], maps[0].shape[-2:]
    if len(weight) * size.numel() > MOST_MAP_NUMBERS:
        raise ValueError(f"its maps hold more than {MOST_MAP_NUMBERS:,} numbers")
    if size[0] != size[1]:
        raise ValueError(f"its maps are {size[0]} x {size[1]}, not square")
    total = weight.new_zeros(()) if (bias := tensors.get("maps.bias")) is None else bias[:, None, None]
    for each, part in zip(maps, torch.split(weight, [each.shape[1] for each in maps], 1), strict=True):
        total = total + functional.interpolate(
            functional.conv2d(each, part), size, mode="bilinear", align_corners=False
        )
    return total
