"""`wardround encoder`: a consortium makes a file of a public network, converts an old one, and anybody looks at it."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save, save_file
from tests.onnx_graphs import graph
from tests.shared.test_models_maps import LAYERS, tensors
from torch import Tensor, nn

from wardround.encoder_commands import app
from wardround.errors import ConfigError
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.onnx_encoder import OnnxEncoder
from wardround.models.own_encoder import OwnEncoder
from wardround.models.public import images
from wardround.onnx_files.tapped import Tapped, pooled


class Small(nn.Module):
    """A convolutional network of three resolutions, and a classifier that nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.Hardswish())
        self.deeper = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.GELU(), nn.Dropout(0.5))
        self.head = nn.Linear(10, 4)
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.deeper(self.deep(self.stem(x))).mean((2, 3)))
        return found


class Vision(nn.Module):
    """A transformer of four blocks, with a token of the class before those of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 1, 12))
        layer = [nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, activation="gelu") for _ in range(4)]
        self.blocks = nn.ModuleList(layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command, with a library that makes two networks."""
    made: dict[str, Any] = {"small": Small, "vision": Vision}
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda name, pretrained: made[name]()))
    monkeypatch.setattr(import_module("wardround.encoder_commands.import"), "PICTURES", 50)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), standalone_mode=False)

    return invoke


def weights(network: nn.Module, name: str) -> None:
    save_file(network.state_dict(), name)


def told(result: Result) -> dict[str, Any]:
    if result.exception:
        raise result.exception
    found: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return found


def refused(result: Result) -> str:
    assert isinstance(result.exception, ConfigError), result
    return str(result.exception)


def load(file: str, said: dict[str, Any]) -> OnnxEncoder:
    return OnnxEncoder.load(Path(file), said["encoder_sha256"], channels=3, features=said["features"])


def test_a_network_is_tapped_pooled_and_projected_into_one_file(run: Any) -> None:
    weights(Small(), "small.safetensors")
    arguments = ["timm:small", "small.onnx", "--weights", "small.safetensors", "--side", "32", "--features", "12"]
    said = told(run("import", *arguments, "--json"))
    encoder = load("small.onnx", said)
    assert (encoder.features, encoder.map_size, said["map_size"]) == (12, 8, 8)
    x = images(20, 32, 3, "unseen")
    for values in (encoder(x), encoder.maps(x)):
        assert values.abs().max() <= GREATEST_VALUE
        assert 0.3 < values.std() < 3
    text = Path("small.onnx").read_bytes()
    assert str(Path.cwd()).encode() not in text and b"site-packages" not in text and b".py:" not in text
    again = told(run("import", *arguments[:1], "again.onnx", *arguments[2:], "--json"))
    assert again["encoder_sha256"] == said["encoder_sha256"]


def test_taps_are_the_last_maps_of_each_resolution() -> None:
    torch.manual_seed(0)
    network = Small()
    tapped = Tapped(network, 32, (0.5,) * 3, (0.25,) * 3)
    assert tapped.taps == ("stem", "deep", "deeper")
    x = images(2, 32, 3)
    with torch.no_grad():
        raw, maps = tapped(x)
        stem = network.stem((x - 0.5) / 0.25)
    assert raw.shape == (2, 3 * (6 + 8 + 10)) and maps.shape == (2, 24, 8, 8)
    torch.testing.assert_close(raw[:, :18], pooled(stem))
    torch.testing.assert_close(maps[:, :6], nn.functional.avg_pool2d(stem, 2))


def test_a_transformer_is_tapped_after_each_quarter(run: Any) -> None:
    network = Vision()
    assert Tapped(network, 32, (0.5,) * 3, (0.25,) * 3).taps == tuple(f"blocks.{at}" for at in range(4))
    assert Tapped(network, 64, (0.5,) * 3, (0.25,) * 3).stages(images(1, 64, 3))[0].shape == (1, 12, 8, 8)


def test_pictures_of_a_folder_fit_the_components(run: Any) -> None:
    weights(Small(), "small.safetensors")
    Path("public").mkdir()
    for number, picture in enumerate(images(15, 40, 3)):
        pixels = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"public/{number}.png")
    arguments = ["import", "timm:small", "small.onnx", "--weights", "small.safetensors", "--side", "32", "--pictures"]
    assert told(run(*arguments, "public", "--features", "10", "--json"))["features"] == 10
    Path("small.onnx").unlink()
    assert "2 to 15" in refused(run(*arguments, "public", "--features", "16"))
    Path("public/a.png").write_bytes(b"no picture")
    assert "a.png is not a picture" in refused(run(*arguments, "public", "--features", "10"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timm:small", "x.onnx"], "without weights is noise"),
        (["timm:small", "x.onnx", "--weights", "absent.pth"], "no such file"),
        (["timm:other", "x.onnx", "--weights", "vision.safetensors"], "timm makes no other"),
        (["timm:small", "x.onnx", "--weights", "vision.safetensors"], "does not fit the network"),
        (["timm:small", "x.onnx", "--weights", "broken.pth"], "holds no weights"),
        (["torchhub:small", "x.onnx"], "no networks of torchhub"),
        (["somewhere", "x.onnx"], "not a Hugging Face folder"),
        (["timm:small", "x.safetensors"], "ends in .onnx"),
        (["timm:small", "there.onnx"], "is there already"),
        (["timm:small", "absent/x.onnx"], "not a folder"),
    ],
)
def test_what_cannot_be_imported_is_said_before_anything_is_written(
    run: Any, arguments: list[str], message: str
) -> None:
    weights(Vision(), "vision.safetensors")
    Path("broken.pth").write_bytes(b"\x80\x02cposix\nsystem\n.")
    Path("there.onnx").write_bytes(b"")
    before = set(Path.cwd().iterdir())
    said = refused(run("import", *arguments))
    assert any(each in said for each in message.split("|")), said
    assert set(Path.cwd().iterdir()) == before


def test_without_the_library_a_person_reads_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    weights(Vision(), "vision.safetensors")
    assert "pip install torchvision" in refused(
        run("import", "torchvision:resnet18", "x.onnx", "--weights", "vision.safetensors")
    )


@pytest.mark.parametrize("maps", [True, False])
def test_an_old_file_is_converted_to_the_same_numbers(run: Any, maps: bool) -> None:
    held = {name: each for name, each in tensors().items() if maps or not name.startswith("maps")}
    described = {
        "schema": 2,
        "channels": 1,
        "side": 16,
        "layers": LAYERS,
        "resize": "bicubic",
        "copies": ["h", "v", "hv"],
    }
    data = save(held, metadata={"wardround": json.dumps(described)})
    Path("old.safetensors").write_bytes(data)
    said = told(run("convert", "old.safetensors", "new.onnx", "--json"))
    old, new = (
        OwnEncoder.look(Path("old"), data),
        OnnxEncoder.load(Path("new.onnx"), said["encoder_sha256"], channels=1, features=3),
    )
    x = images(5, 28, 1)
    torch.testing.assert_close(new(x), old(x), rtol=1e-4, atol=1e-5)
    assert new.map_size == old.map_size == (8 if maps else 0)
    if maps:
        torch.testing.assert_close(new.maps(x), old.maps(x), rtol=1e-4, atol=1e-5)
    assert "not an encoder of our own layers" in refused(run("convert", "new.onnx", "newer.onnx"))


def test_anybody_can_look_at_a_file_of_either_kind(run: Any) -> None:
    Path("theirs.onnx").write_bytes(graph())
    described = {"schema": 2, "channels": 1, "side": 16, "layers": LAYERS}
    Path("ours.safetensors").write_bytes(save(tensors(), metadata={"wardround": json.dumps(described)}))
    one, other = (told(run("inspect", name, "--json")) for name in ("theirs.onnx", "ours.safetensors"))
    assert one.keys() == other.keys()
    assert (
        (one["features"], one["map_size"], one["side_px"]) == (other["features"], other["map_size"], 16) == (3, 8, 16)
    )
    assert one["operators"] == {"Conv": 1, "GlobalAveragePool": 1, "Flatten": 1}
    shown = run("inspect", "theirs.onnx").output
    assert one["sha256"] in shown and "3 features, maps on a grid of 8 x 8" in shown


def test_a_file_that_a_hospital_refuses_is_refused_in_the_same_words(run: Any) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "RandomNormalLike"

    Path("theirs.onnx").write_bytes(graph(change))
    assert "operator 'RandomNormalLike'" in refused(run("inspect", "theirs.onnx"))
    assert "not an encoder file" in refused(run("inspect", "theirs.txt"))
    assert "no such file" in refused(run("inspect", "absent.onnx"))
