"""Images a second through frozen encoders, as a hospital encodes them and in batches.

    python benchmarks/encoder_step.py [--json] [--seconds 1] [--device cpu|cuda]

A hospital encodes image by image, so that no image's bits depend on the others (`wardround_client.isolated`); in
batches of 64 is what that costs. The built-in encoder, and a network of one's own with the shape of a small residual
network and random weights. One thread on the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wardround.models.encoder import BuiltinEncoder
from wardround.models.own_encoder import Description, OwnEncoder
from wardround_client.isolated import image_by_image

ONE_BY_ONE, BATCH = 8, 64
WIDTHS, SIDE_PX, FEATURES = (32, 64, 128, 256), 112, 64


def own() -> OwnEncoder:
    """Two convolutions at each of four widths."""
    generator, tensors, layers = torch.Generator().manual_seed(0), {}, []
    before = 3
    for at, width in enumerate(WIDTHS):
        for name, inputs, stride in ((f"down{at}", before, 2), (f"same{at}", width, 1)):
            tensors[f"{name}.weight"] = torch.randn(width, inputs, 3, 3, generator=generator) / (4 * inputs) ** 0.5
            layers += [{"kind": "conv", "name": name, "stride": stride, "padding": "same"}, {"kind": "relu6"}]
        before = width
    tensors["project.weight"] = torch.randn(FEATURES, before, generator=generator) / before**0.5
    layers += [{"kind": "meanpool"}, {"kind": "linear", "name": "project"}]
    said = {"schema": 2, "channels": 3, "side": SIDE_PX, "layers": layers}
    return OwnEncoder(Description.model_validate(said), FEATURES, "0" * 64, tensors)


def encoders() -> Iterator[tuple[str, Callable[[Tensor], Tensor], tuple[int, int]]]:
    """Each with its name, and channels and side of its images."""
    for size_px, channels in ((28, 1), (64, 1), (128, 3)):
        yield f"built-in, {size_px} px", BuiltinEncoder.of(size_px, channels, FEATURES), (channels, size_px)
    yield f"own, {SIDE_PX} px", own(), (3, SIDE_PX)


def per_second(encode: Callable[[Tensor], Tensor], x: Tensor, seconds: float) -> float:
    """Images, over so many seconds at least."""
    with torch.no_grad():
        encode(x)  # once before: kernels are chosen, memory is taken
        _synchronised(x)
        started, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds or not done:
            encode(x)
            _synchronised(x)
            done += len(x)
    return done / passed


def _synchronised(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def rows(device: str, seconds: float) -> Iterator[dict[str, object]]:
    """Of each encoder, one by one and in batches."""
    for name, encoder, (channels, size_px) in encoders():
        x = torch.rand(BATCH, channels, size_px, size_px, device=device)

        def alone(part: Tensor, encoder: Callable[[Tensor], Tensor] = encoder) -> Tensor:
            return image_by_image(encoder, part)

        for how, encode, images in (("image by image", alone, x[:ONE_BY_ONE]), (f"batches of {BATCH}", encoder, x)):
            found = per_second(encode, images, seconds)
            yield {"device": device, "of": name, "how": how, "images_per_s": round(found, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Images a second through frozen encoders.")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(options.device, options.seconds):
        said = f"{row['device']:4s} {row['of']:18s} {row['how']:16s} {row['images_per_s']:10} images/s"
        print(json.dumps(row) if options.json else said, flush=True)


if __name__ == "__main__":
    main()
