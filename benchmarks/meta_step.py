"""A meta step of FOMAML, Reptile and MAML against learn2learn's, interleaved in one process, on one thread.

    python benchmarks/meta_step.py --learn2learn learn2learn-0.2.0.tar.gz [--json] [--repeats 9] [--threads 1]

Eight tasks, 5-way 5-shot with 15 query images a class, 5 inner steps of SGD on all of the support; Conv4 with
GroupNorm on 28x28 grey images. Reptile takes its steps on the support. Both sides have the same network, start, data
and loss; the benchmark ends with an error where their results differ by more than rounding does. learn2learn's MAML
and FOMAML are its `MAML` class, used as in its examples/vision/maml_omniglot.py; its Reptile is the loop of its
examples/vision/reptile_miniimagenet.py (deepcopy, optimizer, difference) with SGD on the support, and nothing logged.

Times are medians of process CPU time and of wall time; a ratio is the median over rounds of the ratio within a round.
Whoever allocates in a process changes what freed memory costs the others: `--apart` gives each contender a process of
its own, and they still take turns. Memory is the peak of a fresh process beyond what it held before its first step.

With `--threads 2` our steps are also spread over two threads inside operations, two threads of tasks, and two processes
of tasks; these are compared by wall time with one thread. On a CUDA device the same contenders are timed between
synchronisations, with tasks under vmap beside them. bf16 and CUDA graphs were not tried.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import multiprocessing
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from wardround.meta.inner import descended, meta_gradient, slope, task_loss
from wardround.models import Objective
from wardround.models.conv4 import Conv4
from wardround.questions import Shots

WAYS, SHOTS, QUERY, STEPS, TASKS = 5, 5, 15, 5, 8
RATE = 0.01
WARM_UP = 2
SAME = 1e-2  # relative; a tie of relu or max-pooling that rounding decides shows in the third digit
METHODS = ("FOMAML", "Reptile", "MAML")
PEER, OURS = "learn2learn", "wardround"
NEEDED = ("algorithms/maml.py", "algorithms/base_learner.py", "utils/__init__.py")
HOW = (
    "an unpacked source distribution of learn2learn 0.2.0, or its .tar.gz, from https://pypi.org/project/learn2learn/"
    "#files (nothing is built or installed: three of its files are loaded alone). Without it its rows are left out."
)

Episode = tuple[Shots, Shots]
Step = Callable[[], Tensor]
"""One meta step: the mean over tasks of gradients, or for Reptile of theta - phi, float32 [P]."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    loss: Objective
    theta: Tensor
    episodes: list[Episode]

    @classmethod
    def of(cls, width: int, device: str) -> Setting:
        model = Conv4.of(1, width, WAYS)
        model.network.module.to(device)
        generator = torch.Generator().manual_seed(0)

        def shots(per_class: int) -> Shots:
            n = WAYS * per_class
            tensors = (
                torch.rand(n, 1, 28, 28, generator=generator),
                torch.arange(WAYS).repeat_interleave(per_class),
                torch.arange(n),
                torch.ones(n),
            )
            x, y, patient, weight = (each.to(device) for each in tensors)
            return Shots(x, y, patient, weight)

        loss = Objective(model, torch.zeros(1, device=device), torch.ones(1, device=device))
        return cls(loss, model.initial().to(device), [(shots(SHOTS), shots(QUERY)) for _ in range(TASKS)])


@cache
def setting_of(width: int, device: str, thread: int) -> Setting:
    return Setting.of(width, device)


def setting(width: int, device: str) -> Setting:
    """Made once in every thread: a module seen as a function holds one theta at a time."""
    return setting_of(width, device, threading.get_ident())


def learned(method: str, width: int, device: str, task: int) -> Tensor:
    """Ours, of one task."""
    here = setting(width, device)
    support, query = (task_loss(shots, here.loss.each) for shots in here.episodes[task])
    if method == "MAML":
        return meta_gradient(support, query, here.theta, steps=STEPS, learning_rate=RATE)
    phi = descended(support, here.theta, steps=STEPS, learning_rate=RATE)
    return here.theta - phi if method == "Reptile" else slope(query, phi)


def ours(method: str, width: int, device: str) -> Step:
    return lambda: mean(learned(method, width, device, task) for task in range(TASKS))


def mean(found: Iterator[Tensor]) -> Tensor:
    total = next(found)
    for each in found:
        total = total + each
    return total / TASKS


def peer(method: str, width: int, device: str, source: Path) -> Step:
    here = setting(width, device)
    module = copy.deepcopy(here.loss.model.network.module).requires_grad_(True)  # type: ignore[attr-defined]
    module.load_state_dict(here.loss.model.layout.unpack(here.theta))
    parameters = list(module.parameters())
    if method == "Reptile":
        return partial(peer_reptile, module, parameters, here.episodes)
    maml = peer_class(source)(module, lr=RATE, first_order=method == "FOMAML")

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        for support, query in here.episodes:
            learner = maml.clone()
            for _ in range(STEPS):
                learner.adapt(cross_entropy(learner(2 * support.x - 1), support.y))
            torch.autograd.backward(cross_entropy(learner(2 * query.x - 1), query.y))
        return flat(parameters) / TASKS

    return step


def peer_reptile(module: nn.Module, parameters: list[nn.Parameter], episodes: list[Episode]) -> Tensor:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for support, _ in episodes:
        learner = copy.deepcopy(module)
        optimizer = torch.optim.SGD(learner.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(learner(2 * support.x - 1), support.y))
            optimizer.step()
        for parameter, adapted in zip(parameters, learner.parameters(), strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(adapted.data, alpha=-1.0)
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(1 / TASKS).add_(parameter.data)
    return flat(parameters)


def flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([each.grad.flatten() for each in parameters if each.grad is not None])


@cache
def peer_class(source: Path) -> Any:
    """learn2learn's MAML without the rest of learn2learn, which needs a build. Raises: OSError, tarfile.TarError."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "learn2learn"
        for name in NEEDED:
            target = package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text_of(source, name))
        for name in ("", "algorithms"):
            (package / name / "__init__.py").touch()
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("learn2learn.algorithms.maml").MAML
        finally:
            sys.path.remove(folder)


def text_of(source: Path, name: str) -> str:
    if source.is_dir():
        return (source / "learn2learn" / name).read_text()
    with tarfile.open(source) as archive:
        members = [each for each in archive.getmembers() if each.name.endswith(f"/learn2learn/{name}")]
        file = archive.extractfile(members[0]) if members else None
        if file is None:
            raise FileNotFoundError(f"{source} holds no learn2learn/{name}")
        return file.read().decode()


def under_vmap(method: str, width: int, device: str) -> Step:
    """All tasks in one batch."""
    here = setting(width, device)
    (x, y), (query_x, query_y) = (
        (torch.stack([shots.x for shots in side]), torch.stack([shots.y for shots in side]))
        for side in zip(*here.episodes, strict=True)
    )

    def adapted(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(STEPS):
            theta = theta - RATE * grad(here.loss)(theta, x, y)
        return theta

    def task(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        if method == "MAML":
            through: Tensor = grad(lambda theta: here.loss(adapted(theta, x, y), query_x, query_y))(here.theta)
            return through
        phi = adapted(here.theta, x, y)
        gradient: Tensor = here.theta - phi if method == "Reptile" else grad(here.loss)(phi, query_x, query_y)
        return gradient

    batched = vmap(task)
    return lambda: batched(x, y, query_x, query_y).mean(0)


def contenders(method: str, width: int, device: str, source: Path | None, by_vmap: bool) -> dict[str, Step]:
    """The reference first."""
    found: dict[str, Step] = {}
    if source is not None:
        found[PEER] = peer(method, width, device, source)
    found[OURS] = ours(method, width, device)
    if by_vmap:
        found["under vmap"] = under_vmap(method, width, device)
    return found


def spread(method: str, width: int, threads: int, stack: ExitStack) -> dict[str, Step]:
    """Ours on several threads or processes; one thread first."""

    def within() -> Tensor:
        torch.set_num_threads(threads)
        try:
            return ours(method, width, "cpu")()
        finally:
            torch.set_num_threads(1)

    def over(pool: Executor) -> Step:
        return lambda: mean(pool.map(partial(learned, method, width, "cpu"), range(TASKS)))

    context = multiprocessing.get_context("spawn")
    by_process = ProcessPoolExecutor(threads, context, initializer=torch.set_num_threads, initargs=(1,))
    return {
        "1 thread": ours(method, width, "cpu"),
        f"{threads} threads inside operations": within,
        f"{threads} threads of tasks": over(stack.enter_context(ThreadPoolExecutor(threads))),
        f"{threads} processes of tasks": over(stack.enter_context(by_process)),
    }


Times = tuple[float, float]
"""Seconds of process CPU time, and of wall time."""


def timed(step: Step, device: str) -> Times:
    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    synchronise()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    synchronise()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(turns: dict[str, Callable[[], Times]], repeats: int, title: str) -> dict[str, list[Times]]:
    """Each contender in its turn, round after round."""
    times: dict[str, list[Times]] = {name: [] for name in turns}
    for number in range(-WARM_UP, repeats):
        print(f"\r{title}: round {max(number + 1, 0)} of {repeats} ", end="", file=sys.stderr, flush=True)
        for name, turn in turns.items():
            found = turn()
            if number >= 0:
                times[name].append(found)
    print(file=sys.stderr)
    return times


def check(steps: dict[str, Step], title: str) -> None:
    """Raises: SystemExit, when contenders do not compute the same."""
    results = {name: step() for name, step in steps.items()}
    reference = next(iter(results.values()))
    for name, result in results.items():
        difference = float((result - reference).norm() / reference.norm())
        if not difference < SAME:
            raise SystemExit(f"{title}: {name} differs by {difference:.1e} of the result's norm")


def serve(method: str, options: argparse.Namespace, device: str, name: str, pipe: Any) -> None:
    """A process with one contender: a step for each message, until it is None. First says what memory it takes."""
    torch.set_num_threads(1)
    step = contenders(method, options.width, device, options.learn2learn, True)[name]
    before = peak_megabytes()
    step()
    pipe.send(peak_megabytes() - before)
    while pipe.recv() is not None:
        pipe.send(timed(step, device))


def peak_megabytes() -> float:
    status = Path("/proc/self/status")  # getrusage would count what the parent held when it forked
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else float("nan")


def start(
    method: str, options: argparse.Namespace, device: str, name: str, stack: ExitStack
) -> tuple[float, Callable[[], Times]]:
    """Start such a process: its megabytes, and its turn."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(method, options, device, name, other), daemon=True)
    process.start()
    stack.callback(process.join)
    stack.callback(pipe.send, None)

    def turn() -> Times:
        pipe.send("step")
        found: Times = pipe.recv()
        return found

    return pipe.recv(), turn


def rows(times: dict[str, list[Times]]) -> Iterator[dict[str, object]]:
    """Ratios are to the first."""
    reference = next(iter(times.values()))
    for name, each in times.items():
        cpu, wall = (statistics.median(kind) for kind in zip(*each, strict=True))
        pairs = list(zip(each, reference, strict=True))
        yield {
            "step": name,
            "cpu_ms": round(1e3 * cpu, 1),
            "wall_ms": round(1e3 * wall, 1),
            "cpu_ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
            "wall_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 3),
            "tasks_per_s": round(TASKS / wall, 2),
        }


def show(row: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    # What other processes compute is not in this one's CPU time.
    cpu = "" if "processes" in str(row["step"]) else f"CPU {row['cpu_ms']:8} ms {row['cpu_ratio']:6} x"
    memory = f"{row['extra_mb']:+8.1f} MB" if "extra_mb" in row else ""
    print(
        f"{row['device']:4s} {row['method']:8s} {row['step']:28s} {cpu:28s}   wall {row['wall_ms']:8} ms "
        f"{row['wall_ratio']:6} x  {row['tasks_per_s']:7} tasks/s {memory}",
        flush=True,
    )


def compared(method: str, options: argparse.Namespace, device: str) -> Iterator[dict[str, object]]:
    """Ours and the peer's, in this process or each in its own."""
    by_vmap = device == "cuda" or options.vmap
    steps = contenders(method, options.width, device, options.learn2learn, by_vmap)
    check(steps, method)
    memory: dict[str, float] = {}
    with ExitStack() as stack:
        turns: dict[str, Callable[[], Times]] = {name: partial(timed, step, device) for name, step in steps.items()}
        if options.apart:
            for name in steps:
                memory[name], turns[name] = start(method, options, device, name, stack)
        for row in rows(measure(turns, options.repeats, f"{method} on {device}")):
            extra = {"extra_mb": round(memory[str(row["step"])], 1)} if options.apart and device == "cpu" else {}
            yield {"device": device, "method": method, **row, **extra}


def spread_rows(method: str, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    with ExitStack() as stack:
        steps = spread(method, options.width, options.threads, stack)
        check(steps, method)
        turns: dict[str, Callable[[], Times]] = {name: partial(timed, step, "cpu") for name, step in steps.items()}
        for row in rows(measure(turns, options.repeats, f"{method} on {options.threads} threads")):
            yield {"device": "cpu", "method": method, **row}


def usable(source: Path | None) -> Path | None:
    """The peer's source, where it can be loaded; otherwise a sentence says why its rows are missing."""
    if source is None:
        print(f"learn2learn's rows are left out: --learn2learn takes {HOW}", file=sys.stderr)
        return None
    try:
        peer_class(source)
    except (OSError, tarfile.TarError, ImportError) as reason:
        print(f"learn2learn's rows are left out: {reason}. --learn2learn takes {HOW}", file=sys.stderr)
        return None
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description="A meta step of FOMAML, Reptile and MAML over learn2learn's.")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="above 1: also spread our tasks over so many")
    parser.add_argument("--apart", action="store_true", help="each contender in a process of its own; adds memory")
    parser.add_argument("--vmap", action="store_true", help="also all tasks in one batch, which loses on a CPU")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--learn2learn", type=Path, metavar="FOLDER_OR_TAR", help=HOW)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one of them; default: all that there are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.learn2learn = usable(options.learn2learn)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, Conv4-{options.width}", file=sys.stderr)
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [options.device] if options.device else there:
        for method in options.methods:
            for row in compared(method, options, device):
                show(row, options.json)
    for method in options.methods if options.threads > 1 else ():
        for row in spread_rows(method, options):
            show(row, options.json)


if __name__ == "__main__":
    main()
