"""An encoder file of our own layers, written as ONNX."""

from __future__ import annotations

from torch import Tensor, nn

from wardround.models.own_encoder import OwnEncoder


class OwnModule(nn.Module):
    """What an `OwnEncoder` computes of an image of its own size and channels."""

    def __init__(self, encoder: OwnEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """float32 [1, channels, side, side] -> features [1, F], and the maps where the file has some."""
        if self.encoder.map_size:
            return self.encoder.both(x, self.encoder.tensors)
        return self.encoder(x)
