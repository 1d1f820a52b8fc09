"""The built-in encoder: raw features or maps, and public principal components. No download, no patient, no training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor

from wardround.errors import ConfigError
from wardround.models.raw import RawFeatures
from wardround.models.raw_maps import RawMaps

BASES = "public_components.safetensors"
BASES_SHA256 = "f0a9f4a3bc83454f276c05f3d97aaa977ec66a98129938c92ce1eae25ab04aa6"
MAP_BASES = "public_map_components.safetensors"
MAP_BASES_SHA256 = "57924645ed39d73199b5abbe664daee6c5ce53544d8dde320500d0e499d7171c"
GREATEST_FEATURES = 64
MAP_BATCH = 4  # images, whose raw maps are 100 MiB at most
# Features are bounded, so that one odd image can neither fill a clipped sum nor leave the range a head has seen.
GREATEST_VALUE = 6.0


@dataclass(frozen=True, eq=False)
class BuiltinEncoder:
    """Scattering and random convolutions, projected on public principal components; a pyramid, where maps are asked.

    mean float32 [D], basis float32 [D, features]; map_mean and map_basis likewise, of the maps. Its fingerprints cover
    the specification and the shipped components, not computed floats, which differ in their last bits between machines.
    """

    raw: RawFeatures
    raw_maps: RawMaps
    features: int
    fingerprint: str
    mean: Tensor = field(repr=False)
    basis: Tensor = field(repr=False)
    map_mean: Tensor = field(repr=False)
    map_basis: Tensor = field(repr=False)

    @classmethod
    def of(cls, image_size_px: int, channels: int, features: int) -> BuiltinEncoder:
        """For images of image_size_px and 1 or 3 channels.

        Raises: ConfigError: more features than the package ships, or a damaged installation.
        """
        if features > GREATEST_FEATURES:
            raise ConfigError(
                f"model.features = {features} with the built-in encoder",
                allowed=f"2 to {GREATEST_FEATURES}",
                do="lower it, or bring an encoder of your own",
            )
        raw, raw_maps = RawFeatures.of(image_size_px, channels), RawMaps.of(image_size_px, channels)
        fingerprint = _fingerprint(raw, features, BASES_SHA256)
        return cls(raw, raw_maps, features, fingerprint, *_components(raw, features), *_components(raw_maps, features))

    @property
    def map_size(self) -> int:
        """A quarter of the canonical side: 8 for images up to 44 px, 16 up to 92, 32 up to 184, else 64."""
        return self.raw_maps.size

    @property
    def map_fingerprint(self) -> str:
        """Of the maps."""
        return _fingerprint(self.raw_maps, self.features, MAP_BASES_SHA256)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features], bounded by GREATEST_VALUE."""
        projected = (self.raw(x) - self.mean.to(x.device)) @ self.basis.to(x.device)
        return projected.clamp(-GREATEST_VALUE, GREATEST_VALUE)

    def maps(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features, map_size, map_size], bounded likewise."""
        mean, basis = self.map_mean.to(x.device), self.map_basis.to(x.device)
        parts = [(self.raw_maps(part).movedim(1, -1) - mean) @ basis for part in torch.split(x.contiguous(), MAP_BATCH)]
        return torch.cat(parts).movedim(-1, 1).clamp(-GREATEST_VALUE, GREATEST_VALUE)


def _fingerprint(raw: RawFeatures | RawMaps, features: int, sha256: str) -> str:
    spec = {**raw.spec(), "components": features, "sha256": sha256, "bound": GREATEST_VALUE}
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _components(raw: RawFeatures | RawMaps, features: int) -> tuple[Tensor, Tensor]:
    """The mean [D] and basis [D, features] that are shipped for raw features or maps. Raises: ConfigError."""
    file, sha256 = (MAP_BASES, MAP_BASES_SHA256) if isinstance(raw, RawMaps) else (BASES, BASES_SHA256)
    bases, key = _bases(file, sha256), f"{raw.side}/{raw.channels}"
    return bases[f"{key}/mean"], bases[f"{key}/basis"][:, :features].clone()


@cache
def _bases(file: str, sha256: str) -> dict[str, Tensor]:
    """The shipped components. Raises: ConfigError, when their bytes are not the pinned ones."""
    data = files("wardround.models").joinpath(file).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(f"{file} of the installed wardround is damaged", do="install wardround again")
    # Into torch's own memory, whose alignment is always the same: kernels round by it.
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
