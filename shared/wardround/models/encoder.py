"""The built-in encoder: raw features, then public principal components. No download, no patient, no training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import safetensors.torch
from torch import Tensor

from wardround.errors import ConfigError
from wardround.models.raw import RawFeatures

BASES = "public_components.safetensors"
BASES_SHA256 = "f0a9f4a3bc83454f276c05f3d97aaa977ec66a98129938c92ce1eae25ab04aa6"
GREATEST_FEATURES = 64
# Features are bounded, so that one odd image can neither fill a clipped sum nor leave the range a head has seen.
GREATEST_VALUE = 6.0


@dataclass(frozen=True, eq=False)
class BuiltinEncoder:
    """Scattering and random convolutions, projected on public principal components of unit variance.

    mean float32 [D], basis float32 [D, features]. Its fingerprint covers the specification and the shipped
    components, not computed floats, which differ in their last bits between machines.
    """

    raw: RawFeatures
    features: int
    fingerprint: str
    mean: Tensor = field(repr=False)
    basis: Tensor = field(repr=False)

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
        raw = RawFeatures.of(image_size_px, channels)
        bases = _bases()
        key = f"{raw.side}/{channels}"
        spec = {**raw.spec(), "components": features, "sha256": BASES_SHA256, "bound": GREATEST_VALUE}
        fingerprint = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        return cls(raw, features, fingerprint, bases[f"{key}/mean"], bases[f"{key}/basis"][:, :features].clone())

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features], bounded by GREATEST_VALUE."""
        projected = (self.raw(x) - self.mean.to(x.device)) @ self.basis.to(x.device)
        return projected.clamp(-GREATEST_VALUE, GREATEST_VALUE)


@cache
def _bases() -> dict[str, Tensor]:
    """The shipped components. Raises: ConfigError, when their bytes are not the pinned ones."""
    data = files("wardround.models").joinpath(BASES).read_bytes()
    if hashlib.sha256(data).hexdigest() != BASES_SHA256:
        raise ConfigError(f"{BASES} of the installed wardround is damaged", do="install wardround again")
    # Into torch's own memory, whose alignment is always the same: kernels round by it.
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
