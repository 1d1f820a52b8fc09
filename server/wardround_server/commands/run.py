"""`wardround coordinator run`: run a federation to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.config import AS_APPROVED, Federation, agreement_text
from wardround.errors import ConfigError, StorageError, WardroundError
from wardround.files import write_atomically
from wardround.terminal import console, emit, say
from wardround.toml import loads
from wardround_server.commands._common import HomeArgument, checked_run_name
from wardround_server.follow import follow
from wardround_server.home import OPTIONS, Home, RunOptions
from wardround_server.sinks import SINKS, Tell, progress
from wardround_server.sinks.jsonl import FILE as EVENTS


def run(
    home: HomeArgument,
    federation: Annotated[
        Path, typer.Argument(help="The agreement, as the hospitals approved it.", show_default=False)
    ],
    run_name: Annotated[str, typer.Option("--run", help="The run's name; default: the federation's.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    wait: Annotated[
        int,
        typer.Option(help="Seconds to wait for all registered hospitals; then a quorum is enough.", min=0, max=86_400),
    ] = 60,
    as_json: JsonOption = False,
) -> None:
    """Run a federation to its end and write the report. Stop it with Ctrl-C, go on with --resume."""
    text = agreement_text(federation)
    agreement = loads(text, Federation, name=str(federation), context=AS_APPROVED if resume else None)
    coordinator = Home(home.absolute())
    for sink in coordinator.config().sinks:
        _ = SINKS[sink]  # an unknown one is an error now, and not a line in a log later
    admin = int(coordinator.running()["admin"])
    name = checked_run_name(run_name or agreement.name)
    folder = coordinator.run_folder(name)
    if not resume and (folder / "checkpoint.safetensors").exists():
        raise ConfigError(f"run {name!r} exists already", do="continue it with --resume, or choose another --run")
    if resume and not folder.is_dir():
        raise ConfigError(f"there is no run {name!r} to resume", do="leave --resume out, or name an earlier --run")
    from wardround import bundle
    from wardround_server.checkpoint import Checkpointer
    from wardround_server.flower.control import ControlApi
    from wardround_server.report import write_report

    with Checkpointer(folder).held():  # what is going on already keeps its agreement
        coordinator.write(f"runs/{name}/federation.toml", text)
        coordinator.write(f"runs/{name}/{OPTIONS}", RunOptions(wait_s=wait).model_dump_json() + "\n")
        if agreement.model.encoder != "builtin":
            _keep_encoder(federation, folder, agreement.model.encoder)

    events = folder / EVENTS
    with ControlApi(admin, coordinator.tls.ca) as control, _shown(as_json) as tell:
        start = events.stat().st_size if events.exists() else 0
        run_id = control.start_run(bundle.build(agreement), {"run": name, "resume": resume})
        try:
            follow(control, run_id, events, start, tell)
        except BaseException as error:
            with suppress(WardroundError):  # of a run that failed, too
                report = write_report(folder)
                if not as_json:
                    say(f"The report of what was done is {report}.")
            if isinstance(error, KeyboardInterrupt) and not as_json:
                say("The run is stopped. Go on with the same command and --resume.")
            raise
    report = write_report(folder)
    if as_json:
        emit(event="done", run=name, report=str(report))
    else:
        say(f"The report is {report}.")


@contextmanager
def _shown(as_json: bool) -> Iterator[Tell]:
    """Where the events go: on the screen, or as JSON, a line each."""
    if as_json:
        yield lambda event: print(event.line(), flush=True)
        return
    with progress.on(console) as tell:
        yield tell


def _keep_encoder(federation: Path, folder: Path, encoder: str) -> None:
    """Copy the encoder that an agreement names into the run's folder. Raises: ConfigError, StorageError."""
    weights = federation.parent / encoder
    if not weights.is_file():
        raise ConfigError(f"{federation}: model.encoder names {weights}, which is not there", do="put it there")
    copy = folder / encoder
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, weights.read_bytes())
    except OSError as error:
        raise StorageError(f"{copy}: cannot be written ({error.strerror})", do="check the disk") from None


command = Command(
    run,
    panel="Run",
    place=2,
    examples=(
        "wardround coordinator run ~/coordinator federation.toml",
        "wardround coordinator run ~/coordinator federation.toml --run spring --resume",
        "wardround coordinator run ~/coordinator federation.toml --json",
    ),
)
