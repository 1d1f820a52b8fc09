"""Functions of images, in batches of ONE size: what comes out for an image does not depend on who else is there.

In exact arithmetic it never does. In floating point the order of additions depends on the size of a batch, so that a
patient who leaves changes the last bits of everybody else's numbers. A theta that was made for it, with weights of a
million that cancel out, blows those bits up to whole logits and gradients, and a bounded sensitivity with them
(Casacuberta et al., "Widespread underestimation of sensitivity in differentially private libraries", 2022). At one
size, filled up with zeros, the kernels do for each image the same operations in the same order, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BATCH = 64


def in_even_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, size: int = BATCH) -> Tensor:
    """Apply function to inputs [n, ...], which may be none, in batches of exactly `size`.

    Args:
        function: [size, ...] -> [size, ...], image by image.
        inputs: [n, ...].
        size: a public number.

    Returns:
        [n, ...], the results of the n.
    """
    results = []
    for part in torch.split(inputs, size):
        padded = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])]) if len(part) < size else part
        results.append(function(padded)[: len(part)])
    return torch.cat(results)
