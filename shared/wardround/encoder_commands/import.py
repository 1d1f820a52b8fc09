"""`wardround encoder import`: a public network, from a library that the user has, as one ONNX encoder."""  # noqa: N999

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.encoder_commands._files import check_out, write
from wardround.errors import ConfigError
from wardround.text import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PICTURES, PORTION = 400, 25
MOST_PICTURES, PICTURE_BYTES = 5000, 64 << 20
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="timm:NAME, torchvision:NAME, or a Hugging Face folder with config.json and safetensors.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(help="File of the network's weights (.safetensors, .pth): for timm and torchvision."),
    ] = None,
    features: Annotated[int, typer.Option(help="How many components are kept.", min=2, max=4096)] = 96,
    side: Annotated[int, typer.Option(help="Side of the network's images, pixels.", min=32, max=1024)] = 128,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of PUBLIC pictures to fit the components on; without it, synthetic ones."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an encoder of a public network. Its stages are tapped, pooled by mean, spread and maximum, and projected.

    NO PATIENT OF A HOSPITAL of the federation may be in --pictures, nor in what the network was trained on: the promise
    of privacy covers what hospitals add to the head, and not what the encoder has seen.

    timm, torchvision and transformers are not part of wardround: install the one that holds your network. Nothing is
    downloaded.
    """
    check_out(out)
    from wardround.onnx_files import installed

    installed(out)
    import torch

    from wardround.onnx_files.export import exported
    from wardround.onnx_files.tapped import Tapped, projected

    network, mean, std = _network(source, weights)
    torch.set_num_threads(1)  # so that the same machine makes the same bytes
    drawn = _folder(pictures, side) if pictures else _synthetic(side)
    encoder = projected(Tapped(network, side, mean, std), drawn, features)
    data, report = exported(encoder, channels=3, side=side, resize="bicubic", path=out)
    write(out, data, report, as_json=as_json)


def _network(source: str, weights: Path | None) -> tuple[nn.Module, Any, Any]:
    """The network with its weights, and the mean and deviation of the pixels that it was trained on."""
    library, named, name = source.partition(":")
    if not named:
        return _hugging_face(Path(source), weights)
    if library not in ("timm", "torchvision"):
        raise ConfigError(
            f"there are no networks of {shown(library)}", allowed="timm:NAME, torchvision:NAME, or a folder"
        )
    if weights is None:
        raise ConfigError(f"{source} without weights is noise", do="name their file with --weights")
    mean, std = IMAGENET
    try:
        if library == "timm":
            timm = _library("timm")
            network = timm.create_model(name, pretrained=False)
            said = getattr(network, "pretrained_cfg", {})
            mean, std = said.get("mean", mean), said.get("std", std)
        else:
            network = _library("torchvision.models").get_model(name, weights=None)
    except ConfigError:
        raise
    except Exception as error:  # another's code
        raise ConfigError(f"{library} makes no {shown(name)} ({_said(error)})", do="correct the name") from None
    _load(network, weights)
    return network, mean, std


def _hugging_face(folder: Path, weights: Path | None) -> tuple[nn.Module, Any, Any]:
    import json

    if weights is not None or not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} is not a Hugging Face folder"
            if weights is None
            else "--weights with a folder, which has its own",
            allowed="a folder with config.json and model.safetensors, timm:NAME or torchvision:NAME",
        )
    transformers = _library("transformers")
    mean, std = IMAGENET
    try:
        network = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        settings = folder / "preprocessor_config.json"
        if settings.is_file():
            said = json.loads(settings.read_text())
            mean, std = said.get("image_mean", mean), said.get("image_std", std)
    except Exception as error:  # another's code
        raise ConfigError(f"{folder}: transformers cannot load it ({_said(error)})") from None
    return network, mean, std


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{package} cannot be imported ({_said(error)})", do=f"pip install {package}, or bring another network"
        ) from None


def _load(network: nn.Module, file: Path) -> None:
    """Weights that fit all of the network but its classifier. Raises: ConfigError."""
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        raise ConfigError(f"{file}: no such file", do="correct --weights")
    try:
        # The restricted unpickler runs no code of the file.
        loaded: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        own = network.state_dict()
        fitting = {name: each for name, each in loaded.items() if name in own and each.shape == own[name].shape}
    except Exception as error:  # of any file
        raise ConfigError(
            f"{file} holds no weights ({_said(error)})", do="name a .safetensors or a .pth file"
        ) from None
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    head = {name.partition(".")[0] for name in (*own,)[-2:]}
    if [name for name in missing if name.partition(".")[0] not in head]:
        raise ConfigError(
            f"{file} does not fit the network: of its {len(own)} tensors {len(missing)} are missing, as {missing[0]}",
            do="name the weights of this very network",
        )
    network.load_state_dict(fitting, strict=False)


def _synthetic(side: int) -> Iterator[Tensor]:
    from wardround.models.public import images

    for at in range(0, PICTURES, PORTION):
        yield images(PORTION, side, 3, f"encoder/{side}/{at}")


def _folder(folder: Path, side: int) -> Iterator[Tensor]:
    """The first MOST_PICTURES pictures, in the order of their names. Raises: ConfigError."""
    import numpy as np
    import torch
    from PIL import Image

    from wardround.models.from_outside import resized

    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", do="correct --pictures")
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
    if not files:
        raise ConfigError(f"{folder} holds no pictures", allowed=", ".join(sorted(ENDINGS)))
    part: list[Tensor] = []
    for number, file in enumerate(files[:MOST_PICTURES]):
        try:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:  # of any file
            raise ConfigError(f"{file} is not a picture ({_said(error)})", do="take it out of the folder") from None
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        part.append(resized(x, side, "bilinear"))
        if len(part) == PORTION or number + 1 == min(len(files), MOST_PICTURES):
            yield torch.cat(part)
            part = []


def _said(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", 200)


command = Command(
    import_,
    panel="Make",
    place=1,
    examples=(
        "wardround encoder import timm:efficientnet_lite0 --weights lite0.pth lite0.onnx",
        "wardround encoder import ./dinov2-small --side 224 --features 128 dino.onnx",
    ),
)
