"""`wardround simulate`: what a newcomer types first."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command
from wardround.errors import ConfigError
from wardround.plugins import files_of
from wardround_simulation.tasks import DEFAULT_TASK, STUDIES, TASKS

if TYPE_CHECKING:
    from wardround.config import Federation
    from wardround_simulation.settings import Settings
    from wardround_simulation.watch import Watch

_THEIRS = "the federation's"


def simulate(
    federation: Annotated[
        Path | None, typer.Argument(metavar="[FEDERATION.toml]", help="The agreement; without one, a small one.")
    ] = None,
    hospitals: Annotated[int, typer.Option(help="Hospitals that take part; one more is made that does not.")] = 8,
    rounds: Annotated[int | None, typer.Option(help="Training rounds.", show_default=_THEIRS)] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the SYNTHETIC DATA. Noise comes from the operating system and cannot be seeded."),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for everything.", show_default="simulations/DATE-TIME"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read this folder instead of phantoms. For each hospital: a subfolder with labels.csv and DICOM "
            "files, or pictures (columns file, PatientID, labels); or a CSV of measurements."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Label column: {', '.join(TASKS)}; or of whole studies: {', '.join(STUDIES)}.",
            show_default=DEFAULT_TASK,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: threads in this process. ray: the same apps under `flwr run`.")
    ] = "local",
    algorithm: Annotated[
        str | None, typer.Option(help=f"{', '.join(files_of('wardround.algorithms'))}.", show_default=_THEIRS)
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of the whole run, for each patient.", show_default=_THEIRS)
    ] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="DANGER: exact answers, no clipping, no noise. Protects nobody.")
    ] = False,
    shots: Annotated[int, typer.Option(help="Labelled patients a class in the last comparison, at most.")] = 5,
    patients: Annotated[str, typer.Option(help="Least and greatest size of a synthetic cohort.")] = "60-220",
    compute: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    hold_out: Annotated[
        str, typer.Option(help="Name of the hospital that takes no part.", show_default="the last")
    ] = "",
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the simulation in this folder, with its own options.", show_default=False),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Then attack it: membership inference on what was released, and canaries against epsilon. "
            "Adds about a minute and a half; exit code 4 when the claim is refuted.",
        ),
    ] = False,
    sink: Annotated[
        list[str] | None, typer.Option(help="Also give every event to this sink of another package. Can be repeated.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: each round, what --audit finds, and last `done`.")
    ] = False,
) -> None:
    """Simulate a federation on synthetic hospitals and evaluate on a held-out one.

    Privacy is on: every hospital clips, adds noise and keeps a ledger, as a deployed one does. The score shown after
    each round is measured without noise at the hospital that took no part; that is legal only because its data are
    synthetic (or, with --data, your own to look at).

    After Ctrl-C, --resume goes on from the last finished round. A run on the same --seed has the same patients, but
    other noise.
    """
    from wardround.labels import LABEL_KINDS
    from wardround_server.sinks import SINKS

    if resume is not None:
        if any(each is not None for each in (federation, rounds, out, data, task, algorithm, epsilon)):
            raise ConfigError("--resume with other options", do="leave them out: the folder has its own")
        _resume(resume, as_json=as_json)
        return
    chosen, base = _federation(federation, task)
    changes: dict[str, dict[str, Any]] = {
        "rounds": _given(rounds=rounds) if rounds is not None else {},
        "privacy": _given(epsilon=epsilon),
    }
    from wardround_simulation.federation import changed, with_algorithm

    chosen = changed(chosen if algorithm is None else with_algorithm(chosen, algorithm), **changes)
    _check(hospitals, shots, seed, engine, compute)
    if audit and not LABEL_KINDS[chosen.task.labels].exclusive:
        raise ConfigError(
            f'--audit with task.labels = "{chosen.task.labels}"', allowed="tasks in which an image is of one class"
        )
    low, high = _range(patients)
    for name in sink or ():
        _ = SINKS[name]
    folder = out or Path("simulations") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")

    # torch is slow to import: mistakes above are told at once.
    from wardround_simulation.settings import Settings
    from wardround_simulation.watch import watching

    settings = Settings(
        federation=chosen,
        base=base,
        out=folder,
        hospitals=hospitals,
        data=data,
        patients=(low, high),
        seed=seed,
        privacy=not no_privacy,
        shots=shots,
        compute=compute,
        audit=audit,
        sinks=tuple(sink or ()),
        hold_out=hold_out,
    )
    with watching(as_json=as_json) as watch:
        if engine == "ray":
            from wardround_simulation.ray_engine import simulate_with_ray

            simulate_with_ray(settings, watch)
        else:
            _run(settings, watch)


def _resume(folder: Path, *, as_json: bool) -> None:
    from wardround_simulation.settings import Settings
    from wardround_simulation.watch import watching

    settings = Settings.of(folder)
    with watching(as_json=as_json) as watch:
        _run(settings, watch, resume=True)


def _run(settings: Settings, watch: Watch, *, resume: bool = False) -> None:
    from wardround_simulation.simulate import simulate as simulate_here

    try:
        simulate_here(settings, watch, resume=resume)
    except KeyboardInterrupt:
        if not settings.audit:
            watch.note(f"Go on with: wardround simulate --resume {settings.out}")
        raise


def _federation(path: Path | None, task: str | None) -> tuple[Federation, Path]:
    """The agreement and the folder of its encoder file. Raises: ConfigError."""
    from wardround.config import load_federation
    from wardround_simulation.federation import changed, embedded

    if path is None:
        return embedded(task or DEFAULT_TASK), Path()
    federation = load_federation(path)
    if task is not None and task != federation.task.label_column:
        classes = {"classes": list(TASKS[task])} if task in TASKS else {}
        federation = changed(federation, task={"label_column": task} | classes)
    return federation, path.parent


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _check(hospitals: int, shots: int, seed: int, engine: str, compute: str) -> None:
    """Raises: ConfigError."""
    if not 1 <= hospitals <= 10_000:
        raise ConfigError(f"--hospitals {hospitals}", allowed="1 to 10000")
    if not 1 <= shots <= 100:
        raise ConfigError(f"--shots {shots}", allowed="1 to 100")
    if seed < 0:
        raise ConfigError(f"--seed {seed}", allowed="0 or more")
    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine {engine}", allowed="local, ray")
    if compute not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--compute {compute}", allowed="auto, cpu, cuda")


def _range(text: str) -> tuple[int, int]:
    """Two numbers from text: 60-220 -> (60, 220). Raises: ConfigError."""
    least, _, greatest = text.partition("-")
    try:
        return int(least), int(greatest or least)
    except ValueError:
        raise ConfigError(f"--patients {text}", allowed="two numbers, such as 60-220") from None


app = Command(
    simulate,
    panel="",
    place=1,
    examples=(
        "wardround simulate",
        "wardround simulate --algorithm maml --epsilon 3 --hospitals 12",
        "wardround simulate federation.toml --data my-hospitals --hold-out st-anna",
        "wardround simulate --resume simulations/20261128-101500",
    ),
)
