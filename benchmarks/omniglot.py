"""Few-shot classification of handwritten characters: are the meta-learners right?

    python benchmarks/omniglot.py [--algorithm NAME ...] [--ways 5] [--shots 1 5] [--minutes M | --steps N]
                                  [--threads T] [--seed S] [--data DIR] [--out DIR] [--json]

Every meta-learner of wardround whose task can be an episode is trained on Omniglot (Lake, Salakhutdinov and Tenenbaum,
2015), as the product would train it: its own `inner`, the coordinator's outer optimizer, Conv4-64 with
GroupNorm, and then its own `adapt` on the support. Only the cohort is another: it deals balanced episodes of
characters, and neither clips nor adds noise. And the head starts at zero and stays there: what a class' number means is
drawn anew for each episode (`Learner.slope`).

1200 characters are for training, of which 100 are for validation (the curve, and what the recipes below were chosen
by), and 423 for testing. As in Vinyals et al., 2016, a rotation by 90, 180 or 270 degrees is a class of its own, in all
three. A query is classified alone: nothing is computed over a batch of queries, while the published accuracies of
MAML, FOMAML and Reptile that are quoted most have batch normalisation over all queries of an episode, which tells a
little of their classes (Nichol et al., 2018, table 1).

A run stops after M minutes of the processor's time, whatever else the machine does meanwhile, or after N steps, and
can be continued by a greater M or N. The learning rate falls as a cosine until then. Results: results.json and table.md
in --out, and for each run a checkpoint and its learning curve, as SVG.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, cast

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from torch import Tensor

from characters import DRAWINGS, Episode, Omniglot
from tables import TABLE, Estimate, Row, Store, curve_svg, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.errors import ConfigError
from wardround.files import Held, locked, write_atomically
from wardround.meta.base import headless
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.optimizers import Optimizer
from wardround.optimizers.adam import Adam
from wardround.questions import EpisodeGradient, FewShotLoss, Loss, OfImages, Shots, Summand
from wardround.web.charts import Curve as Drawn

ROOT = Path(__file__).parents[1]
TEST_SEED = 423  # the same tests, whatever --seed
WIDTH = 64
TEST_EPISODES, TEST_QUERIES = 1000, 15
PUBLISHED = "5-way 1-shot, published"
VALIDATION_EPISODES, VALIDATION_QUERIES, VALIDATE_EVERY_S = 100, 5, 60.0

Curve = tuple[tuple[float, int, float], ...]


@dataclass(frozen=True)
class Recipe:
    """How an algorithm is trained.

    ways, shots, queries: classes of a training episode, and drawings of each in support and query. ways 0: as tested.
    batch: episodes of a step. learning_rate: of the outer Adam, at first. settings: of the algorithm.
    published: 5-way 1-shot accuracy of the paper's own network and training; None where none is quoted.
    """

    settings: dict[str, float] = field(default_factory=dict)
    ways: int = 0
    shots: int = 1
    queries: int = 3
    batch: int = 4
    learning_rate: float = 1e-3
    published: float | None = None


# An embedding sees more classes in an episode than a test has (Snell et al., 2017, section 3.1).
_EMBEDDING = Recipe({"local_learning_rate": 1.0}, ways=30, queries=5, batch=1, learning_rate=2e-3)
# From a head of zeros one step makes it the classes' means, up to a factor, and leaves the body as it is. More steps on
# one drawing a class teach the body these drawings, and learn more slowly.
_HOME: dict[str, float] = {"adapt_steps": 5, "adapt_learning_rate": 0.05, "adapt_pull": 0.0}
_GRADIENT = Recipe({"local_steps": 1, "local_learning_rate": 1.0, **_HOME}, ways=20, batch=1, learning_rate=2e-3)
# Each step on another drawing of each class, so that every step but the first is a lesson in what all drawings share.
_MINIBATCHES = replace(
    _GRADIENT, settings={"local_steps": 5, "local_batches": 5, "local_learning_rate": 0.3, **_HOME}, shots=5, queries=0
)
# The head alone takes steps, which cost little.
_HEAD = replace(_GRADIENT, settings={"local_steps": 3, "local_learning_rate": 1.0, **_HOME})
RECIPES: dict[str, Recipe] = {
    "prototypical": replace(_EMBEDDING, published=0.988),
    "fomaml": replace(_GRADIENT, published=0.983),
    "maml": replace(_GRADIENT, published=0.987),
    "reptile": replace(_MINIBATCHES, published=0.977),
    "anil": _HEAD,
    "meta-sgd": _GRADIENT,
    "learned-optimizer": replace(_GRADIENT, settings={"local_steps": 1, "local_learning_rate": 1.0}),
    "matching": _EMBEDDING,
    "attentive": _EMBEDDING,
    "relation": _EMBEDDING,
    "siamese": _EMBEDDING,
    "ridge": _EMBEDDING,
    "svm": _EMBEDDING,
}


@dataclass(frozen=True)
class Episodes:
    """Episodes in a cohort's place. There is nobody to protect: their gradients are averaged as they are."""

    dealt: Callable[[], Iterator[Episode]]

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """float32 [P]: the mean."""
        return torch.stack([gradient(theta, support, query).detach() for support, query in self.dealt()]).mean(0)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        raise AssertionError("a task is an episode here")

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        raise AssertionError("nothing else is asked here")


@dataclass(frozen=True)
class Test:
    """So many episodes of so many classes, each with so many drawings in support and query; always the same ones."""

    ways: int
    shots: int
    queries: int
    episodes: int


@dataclass(frozen=True)
class Learner:
    """An algorithm with all that its recipe says."""

    algorithm: Algorithm
    recipe: Recipe
    model: Model
    loss: FewShotLoss

    @classmethod
    def of(cls, name: str, ways: int) -> Self:
        """By name, to be tested with so many classes. Raises: ConfigError, for one whose task is no episode."""
        if name not in RECIPES:
            raise ConfigError(f"no episodes are for {name!r}", allowed=", ".join(RECIPES), do="correct --algorithm")
        recipe = RECIPES[name]
        recipe = replace(recipe, ways=max(recipe.ways, ways))
        algorithm = ALGORITHMS[name].model_validate({"name": name, "tasks": "episodes", **recipe.settings})
        model = algorithm.extended(Conv4.of(1, WIDTH, recipe.ways))
        return cls(algorithm, recipe, model, Objective(model, torch.zeros(1), torch.ones(1)))

    def start(self) -> Tensor:
        """The model's, but with a head of zeros: a random one has to be unlearned in each episode. float32 [P]."""
        theta = self.model.initial()
        weight, bias = self.loss.head(theta)
        return self.loss.with_head(theta, torch.zeros_like(weight), torch.zeros_like(bias))

    def slope(self, theta: Tensor, data: Omniglot, generator: torch.Generator) -> Tensor:
        """What the outer optimizer descends on, float32 [P]: with zeros for the head, which stays as it starts.

        Classes are numbered at random, and over all numberings the head's part has a mean of zero where the head is
        zero (Kao, Chiu and Chen, 2022, call it the zeroing trick): one episode's is noise, and Adam would scale it up.
        """
        recipe = self.recipe

        def dealt() -> Iterator[Episode]:
            for _ in range(recipe.batch):
                yield data.episode(recipe.ways, recipe.shots, recipe.queries, generator)

        delta = self.algorithm.inner(theta, Episodes(dealt), self.loss)
        return headless(-delta, self.loss)

    def accuracy(self, theta: Tensor, support: Shots, query: Shots) -> float:
        """Of the queries, after adapting to the support. A class of training that the episode lacks is never meant."""
        fitted = self.algorithm.adapt(theta, support, self.loss)
        with torch.no_grad():
            logits = self.algorithm.predict(fitted, query.x, self.loss)
        return (logits.argmax(1) == query.y).float().mean().item()

    def accuracies(self, theta: Tensor, data: Omniglot, test: Test) -> list[float]:
        """Of each episode of a test."""
        generator = torch.Generator().manual_seed(TEST_SEED)
        episodes = (data.episode(test.ways, test.shots, test.queries, generator) for _ in range(test.episodes))
        return [self.accuracy(theta, support, query) for support, query in episodes]


@dataclass(frozen=True)
class State:
    """A run between two steps. curve: (minutes, steps, validation accuracy)."""

    theta: Tensor
    optimizer: Mapping[str, Tensor]
    step: int = 0
    cpu_s: float = 0.0
    curve: Curve = ()

    @classmethod
    def load(cls, path: Path, learner: Learner) -> Self:
        """As it was saved; at the start, where nothing was. Raises: ConfigError, for another recipe's."""
        if not path.exists():
            theta = learner.start()
            return cls(theta, _outer(1.0).start(theta))
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            told = json.loads(file.metadata()["state"])
        if told["recipe"] != vars(learner.recipe):
            raise ConfigError(f"{path} was trained by another recipe", do="remove it, or give another --out")
        curve = tuple((minutes, step, accuracy) for minutes, step, accuracy in told["curve"])
        optimizer = {name: tensors[f"optimizer.{name}"] for name in ("first", "second")}
        return cls(tensors["theta"], optimizer, told["step"], told["cpu_s"], curve)

    def save(self, path: Path, learner: Learner) -> None:
        """Replace the checkpoint in one step."""
        told = json.dumps({"step": self.step, "cpu_s": self.cpu_s, "curve": self.curve, "recipe": vars(learner.recipe)})
        tensors = {
            "theta": self.theta.contiguous(),
            **{f"optimizer.{name}": each for name, each in self.optimizer.items()},
        }
        write_atomically(path, safetensors.torch.save(tensors, metadata={"state": told}))


@dataclass(frozen=True)
class Budget:
    """When a run ends: after minutes of processor time, or after steps."""

    minutes: float
    steps: int | None

    def spent(self, state: State) -> float:
        """The fraction, 1 and more at the end."""
        return state.cpu_s / (60 * self.minutes) if self.steps is None else state.step / self.steps


def _outer(learning_rate: float) -> Optimizer:
    # tau far below any gradient: Adam as it is used for images, and not FedAdam's floor against noise
    return Adam(learning_rate=learning_rate, tau=1e-8)


def train(
    learner: Learner, state: State, budget: Budget, *, data: Omniglot, seed: int, validate: Callable[[Tensor], float]
) -> Iterator[State]:
    """The state after each step until the budget is spent; nothing, where it is already."""
    validated_s = state.cpu_s
    while (spent := budget.spent(state)) < 1:
        started_s = time.process_time()
        # A step's episodes follow from the seed and its number, so a run that was continued has the same ones.
        generator = torch.Generator().manual_seed(seed * 2**32 + state.step)
        gradient = learner.slope(state.theta, data, generator)
        fade = max(0.5 * (1 + math.cos(math.pi * spent)), 1e-3)
        outer = _outer(learner.recipe.learning_rate * fade)
        optimizer, theta = outer.step(state.optimizer, state.theta, gradient)
        # Validating is not training: its time is not counted.
        cpu_s = state.cpu_s + time.process_time() - started_s
        state = replace(state, theta=theta, optimizer=optimizer, step=state.step + 1, cpu_s=cpu_s)
        if cpu_s - validated_s >= VALIDATE_EVERY_S or budget.spent(state) >= 1:
            validated_s = cpu_s
            state = replace(state, curve=(*state.curve, (round(cpu_s / 60, 2), state.step, validate(theta))))
        yield state


def trained(learner: Learner, options: argparse.Namespace, data: tuple[Omniglot, Omniglot], console: Console) -> State:
    """Train on the first part of the data, or go on, and validate with the second. Raises: WardroundError."""
    folder = options.out / run_key(learner.algorithm.name, options.seed)
    checkpoint = folder / "checkpoint.safetensors"
    training, validation = data
    budget = Budget(options.minutes, options.steps)

    def validate(theta: Tensor) -> float:
        test = Test(options.ways, min(options.shots), VALIDATION_QUERIES, VALIDATION_EPISODES)
        return estimate(learner.accuracies(theta, validation, test)).mean

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with (
        locked(folder / "lock", busy=Held(f"{folder} is being trained by another process", do="wait for it")),
        Progress(*columns, console=console, transient=True) as progress,
    ):
        state = State.load(checkpoint, learner)
        task = progress.add_task(learner.algorithm.name, total=1.0, told="")
        validations = len(state.curve)
        steps = train(learner, state, budget, data=training, seed=options.seed, validate=validate)
        for state in steps:
            progress.update(task, completed=budget.spent(state))
            if len(state.curve) > validations:
                validations = len(state.curve)
                state.save(checkpoint, learner)
                minutes, step, accuracy = state.curve[-1]
                told = f"step {step}, {minutes:.1f} min, validation {100 * accuracy:.1f} %"
                progress.update(task, told=told)
                if not console.is_terminal:
                    console.print(f"{learner.algorithm.name}: {told}", highlight=False)
    return state


def measured(name: str, options: argparse.Namespace, data: Omniglot, console: Console) -> Row:
    """Train, test: a row of the results. Raises: WardroundError."""
    most = DRAWINGS - TEST_QUERIES
    if not all(1 <= shots <= most for shots in options.shots):
        raise ConfigError(f"--shots {options.shots}", allowed=f"1 to {most} of a class' {DRAWINGS} drawings")
    learner = Learner.of(name, options.ways)
    training, validation, test = data.split()
    state = trained(learner, options, (training, validation), console)
    accuracy = {}
    for shots in options.shots:
        found = learner.accuracies(state.theta, test, Test(options.ways, shots, TEST_QUERIES, options.episodes))
        accuracy[f"{options.ways}-way {shots}-shot"] = vars(estimate(found))
    return {
        "algorithm": name,
        "seed": options.seed,
        "accuracy": accuracy,
        "episodes": options.episodes,
        "minutes": round(state.cpu_s / 60, 1),
        "steps": state.step,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "recipe": vars(learner.recipe),
        "curve": state.curve,
    }


def run_key(name: str, seed: int) -> str:
    """Under which a run stands in the results, and the name of its folder."""
    return f"{name}-{seed}"


def publish(store: Store, row: Row) -> None:
    """Add a row to the results, and write the table and the row's curve anew. Raises: StorageError."""
    name = str(row["algorithm"])
    key = run_key(name, int(str(row["seed"])))
    store.put(key, row)
    rows = list(store.rows().values())
    tests = {test: test for each in rows for test in accuracies(each)}
    columns = {"algorithm": "algorithm", **tests, PUBLISHED: PUBLISHED}
    columns |= {key: key for key in ("minutes", "steps", "seed", "date", "hardware")}
    table = markdown([{**each, **accuracies(each), **_published(each)} for each in rows], columns)
    write_atomically(store.folder / TABLE, table.encode())
    line = Drawn(name, [(minutes, accuracy) for minutes, _, accuracy in cast(Curve, row["curve"])])
    drawn = curve_svg(
        line,
        title=f"{name}: accuracy on validation characters",
        x_label="minutes of training, one processor",
        aim=RECIPES[name].published,
    )
    write_atomically(store.folder / f"{key}.svg", drawn.encode())


def accuracies(row: Row) -> dict[str, str]:
    """By test, "98.12 ± 0.21"."""
    found = cast(dict[str, dict[str, float]], row["accuracy"])
    return {test: str(Estimate(**each)) for test, each in found.items()}


def _published(row: Row) -> Row:
    published = RECIPES[str(row["algorithm"])].published
    return {} if published is None else {PUBLISHED: f"{100 * published:.1f}"}


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Few-shot classification of handwritten characters.")
    parser.add_argument("--algorithm", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5], help="tested; a recipe says what is trained")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, a run: processor time of all threads")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--episodes", type=int, default=TEST_EPISODES, help="of each test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    data = os.environ.get("WARDROUND_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of omniglot/omni28bits.npz")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "omniglot")
    parser.add_argument("--json", action="store_true", help="a JSON object for each run instead of the table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, test and print."""
    options = options_of(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on from the last validation."):
        data = Omniglot.read(options.data / "omniglot" / "omni28bits.npz")
        for name in options.algorithm:
            row = measured(name, options, data, console)
            publish(store, row)
            if options.json:
                print(json.dumps(row), flush=True)
    if not options.json:
        print((options.out / TABLE).read_text(), end="")


if __name__ == "__main__":
    main()
