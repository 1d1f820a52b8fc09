"""What the commands share: an encoder's file read and told apart by its name, and the file that is made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.errors import ConfigError, StorageError
from wardround.files import write_atomically
from wardround.given import ENCODER_BYTES, given_bytes
from wardround.terminal import emit, say

if TYPE_CHECKING:
    from wardround.onnx_files import Report

MADE_MODE = 0o644  # public by its nature, and to be copied


def encoder_bytes(file: Path) -> bytes:
    """Raises: ConfigError."""
    if file.suffix not in (".onnx", ".safetensors"):
        raise ConfigError(f"{file} is not an encoder file", allowed="a name that ends in .onnx or .safetensors")
    return given_bytes(file, ENCODER_BYTES, do="name an encoder's file")


def check_out(out: Path) -> None:
    """Before anything is computed. Raises: ConfigError."""
    if out.suffix != ".onnx":
        raise ConfigError(f"{out} is to be written as ONNX", do="give it a name that ends in .onnx")
    if out.exists():
        raise ConfigError(f"{out} is there already", do="choose another name, or move it away")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is not a folder", do="make it, or choose another")


def write(out: Path, data: bytes, report: Report, *, as_json: bool) -> None:
    """Write a file that was made, and say what to write into federation.toml. Raises: StorageError."""
    try:
        write_atomically(out, data)
        out.chmod(MADE_MODE)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror})", do="check the disk") from None
    lines = {"encoder": out.name, "encoder_sha256": hashlib.sha256(data).hexdigest(), "features": report.features}
    if as_json:
        emit(event="encoder", file=str(out), bytes=len(data), map_size=report.map_size, **lines)
        return
    say(f"{out}: {len(data):,} bytes. Put it beside federation.toml, and write there:")
    say("")
    say("[model]")
    for key, value in lines.items():
        say(f"{key} = {json.dumps(value)}")
