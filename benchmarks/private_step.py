"""A private step against a plain SGD step and against Opacus, interleaved in one run, on one thread.

    python benchmarks/private_step.py [--json] [--repeats 15] [--width 64] [--no-memory] [--small]

Conv4 with GroupNorm on 28x28 grey images, one image a patient. A private step is everything between theta and a noised
sum: per-patient gradients, clipping, adding up and noise from the operating system's entropy. Opacus' steps use its
own, faster and seedable, noise. Times are medians of process CPU time, with quartiles; what counts is the ratio to
plain SGD as torch runs it by default, the median over rounds of the ratio within a round. The same with channels last
(NHWC), which the private step uses, is printed beside it.

Memory is the peak of a fresh process for each contender, beyond that of plain SGD's. `--small` measures a linear head
and a small network on vectors. Where there is
a CUDA device, all is measured there too: wall time between synchronisations, and the peak of what torch allocated.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort

CLASSES, FEATURES = 5, 32
WARM_UP = 3
PLAIN = "plain SGD"
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


def loss_and_theta(model: Model, device: str) -> tuple[Objective, Tensor]:
    """Of the untrained model."""
    size = model.scaling_size
    loss = Objective(model, torch.zeros(size, device=device), torch.ones(size, device=device))
    return loss, model.initial().to(device)


def ours(model: Model, device: str) -> Step:
    loss, theta = loss_and_theta(model, device)

    def step(x: Tensor, y: Tensor) -> Tensor:
        cohort = PrivateCohort(
            Examples(x, y, torch.arange(len(x)), x.flatten(1)[:, :1], CLASSES),
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


def contenders(batch: int, width: int, device: str) -> dict[str, Callable[[], Step]]:
    model = Conv4.of(1, width, CLASSES)
    module = model.network.module.to(device)
    return {
        PLAIN: lambda: plain_sgd(module),
        "plain SGD, NHWC": lambda: plain_sgd(module, torch.channels_last),
        "wardround": lambda: ours(model, device),
        "Opacus hooks": lambda: opacus_hooks(module, batch),
        "Opacus ghost": lambda: opacus_ghost(module),
    }


def small_contenders(batch: int, device: str) -> Iterator[tuple[str, dict[str, Step]]]:
    """For a linear head and for a network on vectors."""
    for name, model in (
        ("linear head", Tabular.logistic(FEATURES, CLASSES)),
        ("MLP 64", Tabular.mlp(FEATURES, CLASSES, 64)),
    ):
        module = model.network.module.to(device)
        steps = {
            PLAIN: plain_sgd(module),
            "wardround": ours(model, device),
            "Opacus hooks": opacus_hooks(module, batch),
        }
        yield name, steps


def now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(steps: dict[str, Step], x: Tensor, y: Tensor, repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each contender, in rounds of all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + WARM_UP):
        for name, step in steps.items():
            start = now(device)
            step(x, y)
            if repeat >= WARM_UP:
                times[name].append(1e3 * (now(device) - start))
    return times


def images(batch: int, device: str) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, 28, 28, device=device), torch.randint(CLASSES, (batch,), device=device)


def peak_megabytes(name: str, batch: int, width: int) -> float:
    """Of a fresh process, which imports all and takes a few steps of one contender."""
    command = [sys.executable, __file__, "--peak-of", name, "--batch", str(batch), "--width", str(width)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def print_peak(name: str, batch: int, width: int) -> None:
    step = contenders(batch, width, "cpu")[name]()
    x, y = images(batch, "cpu")
    for _ in range(4):
        step(x, y)
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def cuda_megabytes(step: Step, x: Tensor, y: Tensor) -> float:
    torch.cuda.reset_peak_memory_stats()
    step(x, y)
    return torch.cuda.max_memory_allocated() / 2**20


def rows(times: dict[str, list[float]], reference: str) -> Iterator[dict[str, object]]:
    for name, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, times[reference], strict=True))
        low, middle, high = statistics.quantiles(each, n=4)
        yield {
            "step": name,
            "ms": round(middle, 2),
            "quartiles": [round(low, 2), round(high, 2)],
            "ratio": round(ratio, 3),
        }


def show(row: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    low, high = cast(list[float], row["quartiles"])
    extra = f"{row['extra_mb']:+8.1f} MB" if "extra_mb" in row else ""
    place = f"{row['device']:4s} {row['of']:12s} {row['batch']:4d}"
    print(
        f"{place}  {row['step']:15s} {row['ms']:8.2f} ms ({low:.2f} to {high:.2f})  {row['ratio']:6.3f} x {extra}",
        flush=True,
    )


def conv4_rows(batch: int, width: int, repeats: int, memory: bool, device: str) -> Iterator[dict[str, object]]:
    steps = {name: make() for name, make in contenders(batch, width, device).items()}
    x, y = images(batch, device)
    found = list(rows(measure(steps, x, y, repeats, device), PLAIN))
    if device == "cuda":
        peaks = {name: cuda_megabytes(step, x, y) for name, step in steps.items()}
    else:
        peaks = {name: peak_megabytes(name, batch, width) for name in steps} if memory else {}
    for row in found:
        if str(row["step"]) in peaks:
            row["extra_mb"] = round(peaks[str(row["step"])] - peaks[PLAIN], 1)
        yield {"device": device, "of": "Conv4", "batch": batch, **row}


def small_rows(batch: int, repeats: int, device: str) -> Iterator[dict[str, object]]:
    for of, steps in small_contenders(batch, device):
        x, y = torch.rand(batch, FEATURES, device=device), torch.randint(CLASSES, (batch,), device=device)
        for row in rows(measure(steps, x, y, repeats, device), PLAIN):
            yield {"device": device, "of": of, "batch": batch, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description="A private step over a plain SGD step, and Opacus', in one run.")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--small", action="store_true", help="a linear head and a small network instead")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one of them; default: all that there are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus' remarks on hooks
    if options.peak_of:
        print_peak(options.peak_of, options.batch, options.width)
        return
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [options.device] if options.device else there:
        for batch in (32, 128):
            if options.small:
                found = small_rows(batch, options.repeats, device)
            else:
                found = conv4_rows(batch, options.width, options.repeats, not options.no_memory, device)
            for row in found:
                show(row, options.json)


if __name__ == "__main__":
    main()
