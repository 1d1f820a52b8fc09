"""What encoders from outside share: a pinned file, images of its size, and an error's reason in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from wardround.errors import ConfigError
from wardround.given import ENCODER_BYTES, given_bytes
from wardround.text import shown


def pinned(path: Path, sha256: str, data: bytes | None) -> bytes:
    """The file's bytes, `data` where they were read already, if they are the agreed ones. Raises: ConfigError."""
    if data is None:
        data = given_bytes(path, ENCODER_BYTES, do="put the encoder beside federation.toml")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"{path} has SHA-256 {found}",
            allowed=f"model.encoder_sha256 = {sha256}",
            do="use the file that the consortium agreed on",
        )
    return data


def resized(x: Tensor, side: int, resize: str) -> Tensor:
    """Images [n, c, h, w] in [0, 1] -> [n, c, side, side] in [0, 1].

    resize: "bilinear", which averages over the pixels that one covers where an image shrinks, or "bicubic", which does
    not, for images that grow.
    """
    if x.shape[-2:] == (side, side):
        return x
    bilinear = resize == "bilinear"
    x = interpolate(x, (side, side), mode=resize, antialias=bilinear, align_corners=False)
    return x if bilinear else x.clamp(0, 1)  # only bicubic overshoots


def reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "description"
        return shown(f"{where}: {first['msg'].removeprefix('Value error, ')}")
    return shown(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
