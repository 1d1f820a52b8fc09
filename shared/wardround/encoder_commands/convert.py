"""`wardround encoder convert`: an encoder of our own layers, written as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.encoder_commands._files import check_out, encoder_bytes, write
from wardround.errors import ConfigError


def convert(
    file: Annotated[Path, typer.Argument(help="A .safetensors encoder.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Write a .safetensors encoder as ONNX, with the same features up to rounding, and within -6 and 6.

    Agreements that name the old file go on with it: another file is another agreement.
    """
    check_out(out)
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file} is not an encoder of our own layers", allowed="a name that ends in .safetensors")
    data = encoder_bytes(file)
    from wardround.models.own_encoder import OwnEncoder
    from wardround.onnx_files.convert import OwnModule
    from wardround.onnx_files.export import exported

    encoder = OwnEncoder.look(file, data)
    described = encoder.description
    written, report = exported(
        OwnModule(encoder), channels=described.channels, side=described.side, resize=described.resize, path=out
    )
    write(out, written, report, as_json=as_json)


command = Command(
    convert, panel="Make", place=2, examples=("wardround encoder convert derm96.safetensors derm96.onnx",)
)
