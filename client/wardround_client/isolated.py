"""Evaluation in isolation: what comes out for one patient is decided by that patient's bytes and by public numbers.

The kernels of a tensor library round a row by its alignment, by its place in a batch, by the batch's size and by the
number of threads. A patient who leaves would change the last bits of everybody else's numbers, and a theta that cancels
turns last bits into whole gradients and predictions (docs/privacy-specification.md, "A patient alone"). So whatever is
not made of elementary operations (`wardround.elementary`) is computed for one image or one patient at a time: from
memory that was allocated for it, which torch aligns to 64 bytes, on one thread. Same shapes, same alignment and one
thread are the same instructions on the same operands, and so the same bits: what Intel's MKL asks for run-to-run
reproducibility ("Obtaining Numerically Reproducible Results"). On CUDA, deterministic algorithms alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
log = logging.getLogger(__name__)
_lock = threading.Lock()
_inside, _before = 0, (1, 0)
# cuBLAS reads it when it starts; without it, deterministic algorithms are refused (cuBLAS, "Results reproducibility").
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def isolation() -> Iterator[None]:
    """One thread an operation, and deterministic kernels; for every thread of ours that enters."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
        _inside += 1
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            _deterministic("error")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:  # the last one out: nobody's operations are split while another is inside
                torch.set_num_threads(_before[0])
                if torch.cuda.is_available():
                    _deterministic(_before[1])


def _deterministic(mode: str | int) -> None:
    """As `torch.use_deterministic_algorithms`, which imports a compiler first: seconds of each command's start."""
    torch.set_deterministic_debug_mode(mode)


def fresh(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, in memory of their own."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def image_by_image(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply function to each row of inputs [n, ...], which may be none, in isolation.

    Args:
        function: a [1, ...] of each input -> [k, ...]. Where it raises for an image, the image's rows are NaN; it is
            shown zeros first, which are nobody's, and what it raises of these is raised here.
        inputs: [n, ...] each.

    Returns:
        [n k, ...].
    """
    with isolation():
        blank = function(*(each.new_zeros(1, *each.shape[1:]) for each in inputs))
        nothing = torch.full_like(blank, torch.nan)
        results = blank.new_empty(len(inputs[0]), *blank.shape)
        for row in range(len(results)):
            results[row] = or_else(nothing, function, *(fresh(each[row : row + 1]) for each in inputs))
    return results.flatten(0, 1)


def or_else(otherwise: Tensor, function: Callable[P, Tensor], *args: P.args, **kwargs: P.kwargs) -> Tensor:
    """What function returns, or `otherwise` where it raises or returns another shape.

    What it raises may tell of a patient, and must neither leave nor end anything: its kind stands in the hospital's own
    log.
    """
    try:
        result = function(*args, **kwargs)
        if result.shape == otherwise.shape:
            return result
        log.warning("a patient's part has shape %s: it counts as nothing", list(result.shape))
    except Exception as error:
        log.warning("a patient's part could not be computed (%s): it counts as nothing", type(error).__name__)
    return otherwise
