"""Any torch network as an encoder: its stages tapped, pooled for features, laid on one grid for maps, and projected.

A convolutional network is tapped where the resolution changes: the last map of each. A transformer, whose tokens keep
their number, after each quarter of its blocks. What is tapped of a public network is public; so are the pictures on
which the projections are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from wardround.errors import ConfigError
from wardround.models.components import components
from wardround.models.encoder import GREATEST_VALUE
from wardround.models.portable import uniform

GRID_STRIDE = 4  # pixels of the network's image to a cell of the maps
LEAST_SIDE = 2  # of a map that is tapped: what is smaller is pooled already
PLACES = 16  # of each picture's grid, where the maps' projection is fitted
LARGEST_PREFIX = 8  # tokens before those of the image: of the class, registers
QUARTERS = 4  # of a transformer


class Tapped(nn.Module):
    """Raw features and maps of a network, from images in [0, 1].

    Args:
        network: in evaluation mode.
        side: of its images, pixels.
        mean, std: of a channel, which the network was trained with.

    Raises: ConfigError: the network does not take such images, or nothing in it looks like maps of an image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, side: int, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.network, self.side, self.grid = network.eval(), side, side // GRID_STRIDE
        self.register_buffer("mean", torch.tensor([*mean])[:, None, None])
        self.register_buffer("std", torch.tensor([*std])[:, None, None])
        self._seen: dict[str, Tensor] = {}
        self.taps = self._found()
        modules = dict(network.named_modules())
        for name in self.taps:
            modules[name].register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, given: Any, output: Any) -> None:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def _found(self) -> tuple[str, ...]:
        """Names of the modules that are tapped, in the order in which they are computed."""
        outputs: dict[str, Tensor] = {}
        hooks = []
        for name, module in self.network.named_modules():

            def keep(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
                output = output[0] if isinstance(output, tuple) and output else output
                if name and isinstance(output, Tensor):
                    outputs[name] = output

            hooks.append(module.register_forward_hook(keep))
        try:
            with torch.no_grad():
                self.network((torch.zeros(1, 3, self.side, self.side) - self.mean) / self.std)
        except Exception as error:  # another's code
            raise ConfigError(
                f"the network does not take images of 3 x {self.side} x {self.side} ({type(error).__name__})",
                do="give --side the side that it was made for",
            ) from None
        finally:
            for hook in hooks:
                hook.remove()
        stages = {
            each.shape[-1]: name
            for name, each in outputs.items()
            if each.dim() == 4 and each.shape[-1] == each.shape[-2] and LEAST_SIDE <= each.shape[-1] <= self.side // 2
        }
        if len(stages) > 1:
            return tuple(stages.values())
        if blocks := self._blocks(outputs):
            return tuple(blocks[len(blocks) * quarter // QUARTERS - 1] for quarter in range(1, QUARTERS + 1))
        raise ConfigError(
            "nothing in the network looks like maps of an image",
            allowed="a convolutional network of several resolutions, or a transformer of at least 4 blocks",
        )

    def _blocks(self, outputs: dict[str, Tensor]) -> list[str]:
        """The longest list of modules side by side that give tokens of an image."""
        found: dict[str, list[str]] = {}
        for name, each in outputs.items():
            parent, _, last = name.rpartition(".")
            if each.dim() == 3 and last.isdigit() and _side(each.shape[1]):
                found.setdefault(parent, []).append(name)
        longest = max(found.values(), key=len, default=[])
        return longest if len(longest) >= QUARTERS else []

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps [n, c, h, h] of each tap, from images float32 [n, 3, side, side] in [0, 1]."""
        self._seen.clear()
        self.network((x - self.mean) / self.std)
        return [_as_map(self._seen[name]) for name in self.taps]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, side, side] in [0, 1] -> pooled [n, D], and maps [n, C, grid, grid]."""
        stages = self.stages(x)
        return torch.cat([pooled(each) for each in stages], 1), torch.cat([self.on_grid(each) for each in stages], 1)

    def on_grid(self, stage: Tensor) -> Tensor:
        """A map [n, c, h, h] on the grid: averaged over a cell, or interpolated between."""
        if stage.shape[-1] > self.grid:
            if stage.shape[-1] % self.grid == 0:
                return torch.nn.functional.avg_pool2d(stage, stage.shape[-1] // self.grid)
            return adaptive_avg_pool2d(stage, self.grid)
        return interpolate(stage, (self.grid, self.grid), mode="bilinear", align_corners=False)


def pooled(stage: Tensor) -> Tensor:
    """A map [n, c, h, h] -> its mean, its spread and its maximum, [n, 3 c]."""
    mean = stage.mean((2, 3))
    spread = (stage - mean[:, :, None, None]).square().mean((2, 3)).sqrt()
    return torch.cat([mean, spread, stage.amax((2, 3))], 1)


def _side(tokens: int) -> int:
    """Of the square that tokens form after a few that do not belong to it; 0: they form none."""
    for prefix in range(LARGEST_PREFIX + 1):
        side = math.isqrt(max(0, tokens - prefix))
        if side >= LEAST_SIDE and side * side == tokens - prefix:
            return side
    return 0


def _as_map(output: Tensor) -> Tensor:
    """Tokens [n, t, c] -> [n, c, side, side]; a map as it is."""
    if output.dim() == 4:
        return output
    side = _side(output.shape[1])
    return output[:, -side * side :].transpose(1, 2).reshape(output.shape[0], output.shape[2], side, side)


class Projected(nn.Module):
    """A tapped network with the projections of its features and maps."""

    features_weight: Tensor
    features_bias: Tensor
    maps_weight: Tensor
    maps_bias: Tensor

    def __init__(self, tapped: Tapped, features: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.tapped = tapped
        for name, (weight, bias) in (("features", features), ("maps", maps)):
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, side, side] in [0, 1] -> features [n, F], maps [n, F, grid, grid], bounded."""
        stages, tapped = self.tapped.stages(x), self.tapped
        raw = torch.cat([pooled(each) for each in stages], 1)
        features = torch.nn.functional.linear(raw, self.features_weight, self.features_bias)
        maps = self.maps_bias[:, None, None]
        # Projected before they are interpolated, which is the same and takes a fraction of the memory.
        for stage, weight in zip(stages, torch.split(self.maps_weight, [s.shape[1] for s in stages], 1), strict=True):
            maps = maps + tapped.on_grid(torch.nn.functional.conv2d(stage, weight[:, :, None, None]))
        return features.clamp(-GREATEST_VALUE, GREATEST_VALUE), maps.clamp(-GREATEST_VALUE, GREATEST_VALUE)


def projected(tapped: Tapped, pictures: Iterable[Tensor], features: int) -> Projected:
    """Fit both projections on public pictures, float32 [n, 3, side, side] each, drawn one after another.

    Raises: ConfigError: fewer numbers, or fewer pictures, than features.
    """
    rows, cells = [], []
    with torch.no_grad():
        for number, part in enumerate(pictures):
            raw, maps = tapped(part)
            rows.append(raw)
            places = (uniform(f"wardround/tapped/{number}", (len(part), PLACES)) * tapped.grid**2).long()
            flat = maps.flatten(2).transpose(1, 2)
            cells.append(flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1))
    of_images, of_cells = torch.cat(rows), torch.cat(cells)
    most = min(*of_images.shape, *of_cells.shape)
    if not 2 <= features <= most:
        raise ConfigError(
            f"{features} features", allowed=f"2 to {most}, from {len(of_images)} pictures", do="choose fewer"
        )
    return Projected(tapped, components(of_images, features), components(of_cells, features))
