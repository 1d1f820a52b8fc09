"""The task that somebody asks about: a TOML file with a table [task], or a whole federation.toml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError

from wardround.errors import ConfigError
from wardround.experience.row import MOST_HOSPITALS, Described
from wardround.given import TOML_BYTES, given_text
from wardround.task import Task
from wardround.text import shown
from wardround.toml import Section, loads

EPSILON = 8.0


class _Encoder(Section):
    model_config = ConfigDict(frozen=True, extra="ignore")

    encoder: Annotated[str, Field(max_length=100)] = "builtin"
    encoder_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class _Privacy(Section):
    model_config = ConfigDict(frozen=True, extra="ignore")

    epsilon: Annotated[float, Field(ge=1e-3, le=1e9)] | None = None


class Asked(Section):
    """What of the file is read. Its algorithm and settings, if it has any, are not: they are what is asked for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "example"
    task: Task
    model: _Encoder = _Encoder()
    privacy: _Privacy = _Privacy()


def asked(path: Path) -> tuple[Asked, str]:
    """A file's task, and its text. Raises: ConfigError."""
    text = given_text(path, TOML_BYTES, do="name a TOML file with a table [task]")
    return loads(text, Asked, name=str(path)), text


def described(found: Asked, patients: str, epsilon: float | None) -> Described:
    """The task, with who learns it. patients: as it was typed. Raises: ConfigError."""
    declared = _numbers(patients)
    epsilon = epsilon or found.privacy.epsilon or EPSILON
    encoder = found.model.encoder_sha256 or "builtin"
    try:
        return Described.of(found.task, declared, epsilon, encoder=encoder)
    except ValidationError as error:
        said = error.errors()[0]
        raise ConfigError(
            f"a task with {shown('.'.join(map(str, said['loc'])), 60)} = {shown(said['input'], 60)}",
            allowed=shown(said["msg"], 200),
        ) from None


def _numbers(text: str) -> Sequence[int]:
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or len(found) > MOST_HOSPITALS or not all(1 <= each <= 10**9 for each in found):
        raise ConfigError(
            f"--patients {shown(text, 60) or 'is missing'}",
            allowed="how many patients each hospital declares, such as 200,150,90",
            do="say it: it decides what can be learned",
        )
    return found
