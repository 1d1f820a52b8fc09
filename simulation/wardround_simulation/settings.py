"""What `wardround simulate` was asked for, kept in its folder so that a run that was cut off can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround.files import cannot_write
from wardround_client.audit import DEFAULT_TRIALS
from wardround_simulation.membership import LEAST_OTHERS

MARK = "simulation.json"
RUN = "simulation"
PATIENTS = (60, 220)
GIVEN = ("federation", "base", "out")


@dataclass(frozen=True)
class Settings:
    """What `wardround simulate` was asked for.

    federation: the agreement, options applied. base: the folder of its relative encoder file. out: a folder of its own.
    hospitals: how many take part; one more is made that does not. data: folders to read instead of phantoms.
    patients: least and greatest size of a synthetic cohort. seed: of the synthetic DATA only.
    privacy: False answers exactly. shots: the largest k of the comparison. compute: "auto", "cpu" or "cuda".
    audit: attack what the run released, and its answers. strangers: how many who took no part are made for that, at
    least. trials: of each of the audit's experiments, about. sinks: event sinks, beside those that are always on.
    hold_out: the hospital that takes no part; "" for the last by name, or the last that is made.
    """

    federation: Federation
    base: Path
    out: Path
    hospitals: int = 8
    data: Path | None = None
    patients: tuple[int, int] = PATIENTS
    seed: int = 0
    privacy: bool = True
    shots: int = 5
    compute: str = "auto"
    workers: int | None = None
    audit: bool = False
    strangers: int = LEAST_OTHERS
    trials: int = DEFAULT_TRIALS
    sinks: tuple[str, ...] = ()
    hold_out: str = ""

    @property
    def marked(self) -> dict[str, Any]:
        """What everything that is written of a run without privacy carries."""
        return {} if self.privacy else {"privacy": "OFF"}

    def to_json(self) -> dict[str, Any]:
        """Plain values of all but the federation and the folders, which `of` is given."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in GIVEN}
        return values | {"data": str(self.data.absolute()) if self.data else None}

    @classmethod
    def of(cls, out: Path) -> Settings:
        """Those of the simulation in this folder. Raises: ConfigError, when there is none that can go on."""
        try:
            plain = json.loads((out / MARK).read_bytes())["settings"]
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
            values["data"] = Path(plain["data"]) if plain["data"] else None
            return cls(federation=load_federation(out / "federation.toml"), base=out, out=out, **values)
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{out} is not a simulation that can go on", do="name the folder of one") from None


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file of a simulation. Raises: StorageError."""
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error, do="go on with `wardround simulate --resume`") from None
