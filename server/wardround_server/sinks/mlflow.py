"""MLflow: a run's agreement as parameters, and of each round the numbers that concern no hospital by name.

    [sinks.mlflow]
    uri = "https://mlflow.example.org"   # or a folder; without it: HOME/mlruns
    experiment = "wardround"

Passwords and tokens are MLflow's own business: it reads MLFLOW_TRACKING_TOKEN and the like from the environment. Its
telemetry is switched off. A run that is resumed goes on in the same run of MLflow, whose number is in RUN_FILE.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from wardround.config import load_federation
from wardround.errors import ConfigError, WardroundError
from wardround.files import read_bounded, write_atomically
from wardround.text import shown
from wardround.toml import Section
from wardround_server.events import Event, RoundEnded, RoundMissed, RunEnded, RunFailed, RunStarted
from wardround_server.sinks import Tell

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_FILE = "mlflow.run"
LONGEST_VALUE = 500  # characters of a parameter, which every version of MLflow takes
_NUMBERS = ("epsilon_max", "accuracy", "balanced_accuracy", "delta_norm", "hospitals", "replied", "seconds")


class Settings(Section):
    """uri: of a tracking server, or a folder; "" is mlruns in the coordinator's home, or in a
    simulation's folder. experiment: in which runs lie.
    """

    uri: Annotated[str, Field(max_length=1000)] = ""
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}$")] = "wardround"


@contextmanager
def sink(folder: Path, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Track a run. Raises: ConfigError, and what MLflow raises."""
    try:
        wanted = Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"[sinks.mlflow] {shown(first['loc'])}: {first['msg']}", do="correct it") from None
    run = folder.absolute()
    home = run.parents[1] if run.parent.name == "runs" else run  # a simulation has no home
    uri = wanted.uri or (home / "mlruns").as_uri()
    tracked = _Tracked(_client(uri), wanted.experiment, folder)
    try:
        yield tracked.tell
    finally:
        tracked.leave()


def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before it is imported
    if uri.startswith("file:") or "://" not in uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse a plain folder otherwise
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError(
            "the event sink mlflow needs mlflow-skinny, which is not installed", do="pip install 'wardround[mlflow]'"
        ) from None
    return MlflowClient(tracking_uri=uri)


class _Tracked:
    """A run of ours and the one of MLflow that shows it."""

    def __init__(self, client: MlflowClient, experiment: str, folder: Path) -> None:
        self._client, self._experiment, self._folder, self._id = client, experiment, folder, ""

    def tell(self, event: Event) -> None:
        """Pass on what an event says."""
        match event:
            case RunStarted():
                self._begin(event)
            case RoundEnded() | RoundMissed() if self._id:
                self._metrics(event)
            case RunEnded() | RunFailed() if self._id:
                self._client.set_terminated(self._id, "FINISHED" if isinstance(event, RunEnded) else "FAILED")
                self._id = ""

    def leave(self) -> None:
        """A run that was stopped says no last word."""
        if self._id:
            self._client.set_terminated(self._id, "KILLED")

    def _begin(self, event: RunStarted) -> None:
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        with suppress(OSError, MlflowException):
            self._id = read_bounded(self._folder / RUN_FILE, 100).decode(errors="replace").strip()
            self._client.update_run(self._id, status="RUNNING")
        if not self._known():
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._id = self._client.create_run(number, run_name=shown(event.run)).info.run_id
            write_atomically(self._folder / RUN_FILE, self._id.encode())
        params = {"federation": event.federation, "digest": event.digest, **self._agreed()}
        tags = {f"version.{name}": value for name, value in event.versions.items()} | {"privacy": event.privacy}
        self._client.log_batch(
            self._id,
            params=[Param(key, shown(value, LONGEST_VALUE)) for key, value in params.items()],
            tags=[RunTag(key, shown(value, LONGEST_VALUE)) for key, value in tags.items()],
        )

    def _known(self) -> bool:
        """Whether the store has the run that RUN_FILE names: the settings may name another one since."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._id and self._client.get_run(self._id))
        except MlflowException:
            return False

    def _agreed(self) -> dict[str, object]:
        """The agreement's settings, `section.key`; nothing, where its file does not lie in the run's folder."""
        try:
            sections = load_federation(self._folder / "federation.toml", approved=True).model_dump(mode="json")
        except WardroundError:
            return {}
        kept = {name: sections.get(name) for name in ("algorithm", "model", "outer", "privacy", "rounds")}
        return {
            f"{name}.{key}": value
            for name, section in kept.items()
            if isinstance(section, dict)
            for key, value in section.items()
        }

    def _metrics(self, event: RoundEnded | RoundMissed) -> None:
        from mlflow.entities import Metric

        at = int(datetime.fromisoformat(event.time).timestamp() * 1000) if event.time else int(time.time() * 1000)
        numbers = {name: getattr(event, name, None) for name in _NUMBERS}
        numbers |= {name: len(getattr(event, name)) for name in ("absent", "rejected", "clipped")}
        # A round is counted from 0 in every file of ours, and so here.
        metrics = [Metric(name, float(value), at, event.round) for name, value in numbers.items() if value is not None]
        self._client.log_batch(self._id, metrics=metrics)
