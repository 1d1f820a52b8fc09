"""`wardround encoder inspect`: what an encoder's file is, what it takes, and whether a hospital would run it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.encoder_commands._files import encoder_bytes
from wardround.terminal import Fields, emit, show

if TYPE_CHECKING:
    import torch

    from wardround.models.own_encoder import OwnEncoder


def inspect(
    file: Annotated[Path, typer.Argument(help="An .onnx or a .safetensors encoder.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Look at an encoder's file: what it is, its hash, what it takes and gives, and its speed on this machine.

    A file that a hospital would refuse is refused here in the same words (exit code 2). An ONNX file is looked at in a
    process of its own; nothing of it runs before its rules are checked.
    """
    data = encoder_bytes(file)
    found = (_onnx if file.suffix == ".onnx" else _own)(data, file)
    found = {"file": str(file), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **found}
    if as_json:
        emit(event="encoder", **found)
        return
    operators = ", ".join(f"{count} {name}" for name, count in sorted(found.pop("operators").items()))
    size, mib = found.pop("map_size"), found.pop("memory_mib")
    maps = f", maps on a grid of {size} x {size}" if size else ", no maps"
    show(
        Fields(
            {
                "file": found["file"],
                "kind": found["kind"],
                "SHA-256": found["sha256"],
                "size": f"{len(data):,} bytes, {found['parameters']:,} parameters",
                "takes": f"images of {found['channels']} x {found['side_px']} x {found['side_px']} pixels in [0, 1], "
                f"resized {found['resize']}",
                "gives": f"{found['features']} features{maps}",
                "made of": operators,
                "an image": f"{found['ms']:.1f} ms on one thread, {found['operations']:.2g} operations"
                + (f", {mib:,} MiB of memory with the program" if mib else ""),
            }
        )
    )


def _onnx(data: bytes, file: Path) -> dict[str, Any]:
    from wardround.onnx_files import look

    report = look(data, file)
    return {
        "kind": f"ONNX, operator set {report.opset}",
        "parameters": report.parameters,
        "channels": report.channels,
        "side_px": report.side,
        "resize": report.resize,
        "features": report.features,
        "map_size": report.map_size,
        "operators": report.operators,
        "operations": report.operations,
        "ms": round(report.ms, 3),
        "memory_mib": report.peak_bytes >> 20,
    }


def _own(data: bytes, file: Path) -> dict[str, Any]:
    from collections import Counter

    import torch

    from wardround.models.own_encoder import OwnEncoder

    encoder = OwnEncoder.look(file, data)
    described = encoder.description
    image = torch.zeros(1, described.channels, described.side, described.side)
    return {
        "kind": f"layers in safetensors, schema {described.version}",
        "parameters": sum(each.numel() for each in encoder.tensors.values()),
        "channels": described.channels,
        "side_px": described.side,
        "resize": described.resize,
        "features": encoder.features,
        "map_size": encoder.map_size,
        "operators": dict(Counter(layer.kind for layer in described.layers)),
        "operations": encoder.operations(image),
        "ms": round(_ms(encoder, image), 3),
        "memory_mib": 0,
    }


def _ms(encoder: OwnEncoder, image: torch.Tensor) -> float:
    import torch

    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(4):
            start = time.perf_counter()
            with torch.no_grad():
                encoder(image)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 1000 * min(times)


command = Command(
    inspect,
    panel="Look",
    place=1,
    examples=("wardround encoder inspect derm.onnx", "wardround encoder inspect derm.onnx --json"),
)
