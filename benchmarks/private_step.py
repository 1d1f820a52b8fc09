"""A private step against a plain SGD step and against Opacus, interleaved in one run, on one thread.

    python benchmarks/private_step.py [--json] [--repeats 9] [--width 64]

Conv4 with GroupNorm on 28x28 grey images, one image a patient. A private step is everything between theta and a noised
sum: per-patient gradients, clipping, adding up and noise from the operating system's entropy. Opacus' steps use its
own, faster and seedable, noise. Times are medians of process CPU time; what counts is the ratio to plain SGD as
torch runs it by default. The same with channels last (NHWC), which the private step uses, is printed beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from wardround.config import Privacy
from wardround.models import Objective
from wardround.models.conv4 import Conv4
from wardround_client.examples import Examples
from wardround_client.privacy.accountant import Answers, Calibration
from wardround_client.privacy.cohort import PrivateCohort

CLASSES = 5
Step = Callable[[Tensor, Tensor], object]


def plain_sgd(module: nn.Module, memory_format: torch.memory_format = torch.contiguous_format) -> Step:
    module = copy.deepcopy(module).requires_grad_(True)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def step(x: Tensor, y: Tensor) -> None:
        x = x.to(memory_format=memory_format)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(2 * x - 1), y))
        optimizer.step()

    return step


def ours(model: Conv4) -> Step:
    loss = Objective(model, torch.zeros(1), torch.ones(1))
    theta = model.initial()

    def step(x: Tensor, y: Tensor) -> Tensor:
        cohort = PrivateCohort(
            Examples(x, y, torch.arange(len(x)), x[:, 0, 0, :1], CLASSES),
            calibration=Calibration(1.0, 1.0, 1.0, 1.0),
            privacy=Privacy(),
            declared_patients=len(x),
            reserved=(Answers(1.0, 1.0, 1),),
        )
        return theta - 0.1 * cohort.gradient(loss, theta)

    return step


def opacus_hooks(module: nn.Module, batch: int) -> Step:
    wrapped = GradSampleModule(copy.deepcopy(module).requires_grad_(True))
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=batch,
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(wrapped(2 * x - 1), y))
        optimizer.step()

    return step


def opacus_ghost(module: nn.Module) -> Step:
    """Fast gradient clipping: a backward pass for the norms, and another for the weighted sum."""
    wrapped = GradSampleModuleFastGradientClipping(
        copy.deepcopy(module).requires_grad_(True), max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(wrapped(2 * x - 1), y, reduction="none")
        torch.autograd.backward(losses.mean(), retain_graph=True)
        factors = wrapped.get_clipping_coef()
        optimizer.zero_grad()
        wrapped.disable_hooks()
        torch.autograd.backward((factors * losses).sum())
        wrapped.enable_hooks()
        for parameter in wrapped.parameters():
            assert parameter.grad is not None
            parameter.grad += torch.randn_like(parameter)
        optimizer.step()

    return step


def measure(batch: int, width: int, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each contender."""
    model = Conv4.of(1, width, CLASSES)
    module = model.network.module
    contenders: dict[str, Step] = {
        "plain SGD": plain_sgd(module),
        "plain SGD, NHWC": plain_sgd(module, torch.channels_last),
        "wardround": ours(model),
        "Opacus hooks": opacus_hooks(module, batch),
        "Opacus ghost": opacus_ghost(module),
    }
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(CLASSES, (batch,))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, step in contenders.items():
            start = time.process_time()
            step(x, y)
            if repeat:  # the first warms up
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="A private step over a plain SGD step, and Opacus', in one run.")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus' remarks on hooks
    for batch in (32, 128):
        times = measure(batch, options.width, options.repeats)
        for name, milliseconds in times.items():
            ratio = milliseconds / times["plain SGD"]
            row = {"batch": batch, "step": name, "ms": round(milliseconds, 2), "ratio": round(ratio, 3)}
            print(
                json.dumps(row)
                if options.json
                else f"batch {batch:4d}  {name:15s} {milliseconds:8.1f} ms  {ratio:.2f} x"
            )


if __name__ == "__main__":
    main()
