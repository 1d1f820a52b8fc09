"""A row of experience: what a task was like, what was agreed, and what came out.

**Public or noised numbers only.** No field can hold a text from outside: words are of a public list or of letters,
digits and dashes that an agreement chose for its parts, and names of hospitals, classes, columns and files have no
field. A row may be given to anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from wardround import __version__

if TYPE_CHECKING:
    from wardround.config import Federation
    from wardround.task import Task

VERSION = 1
MOST_SETTINGS = 64
MOST_HOSPITALS = 10_000
SECTIONS = ("algorithm", "model", "outer", "privacy", "rounds")
# Of an agreement, but nothing that is chosen for a task: what it is described by, or what only its people can know.
_APART = frozenset(
    {
        "model.encoder",
        "model.encoder_sha256",
        "privacy.epsilon",
        "rounds.quorum",
        "rounds.deadline_s",
        "rounds.evaluate_every",
        "rounds.questions",
    }
)

Word = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Key = Annotated[str, Field(pattern=r"^(algorithm|model|outer|privacy|rounds)\.[a-z][a-z0-9_]{0,39}$")]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Patients = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


def _rounded(share: float) -> float:
    return round(share, 4)


class _Frozen(BaseModel):
    """A newer version's fields are skipped."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Described(_Frozen):
    """A task and who learns it, as far as anybody may know it.

    kind, labels, units: as of `Task`. image_size_px, depth, channels: 0 of what is not there. columns: of a table.
    inputs: of one patient. hospitals: what each declared, ascending, so that the order names nobody. epsilon: of the
    whole run; None without privacy. encoder: "builtin", the SHA-256 of a consortium's own, or "" for none.
    balance: the share of each class by noised counts, descending; empty where nobody asked.
    """

    kind: Literal["image", "volume", "table", "inputs"]
    labels: Word
    units: Literal["display", "HU", "SUV"] = "display"
    classes: Annotated[int, Field(ge=2, le=256)]
    image_size_px: Annotated[int, Field(ge=0, le=1024)] = 0
    depth: Annotated[int, Field(ge=0, le=512)] = 0
    channels: Annotated[int, Field(ge=0, le=4)] = 0
    columns: Annotated[int, Field(ge=0, le=4096)] = 0
    inputs: Annotated[int, Field(ge=1, le=16)] = 1
    hospitals: Annotated[
        tuple[Patients, ...],
        Field(min_length=1, max_length=MOST_HOSPITALS),
        AfterValidator(lambda declared: tuple(sorted(declared))),
    ]
    epsilon: Annotated[float, Field(gt=0, le=1e9)] | None
    encoder: Annotated[str, Field(pattern=r"^(builtin|[0-9a-f]{64})?$")] = ""
    balance: Annotated[
        tuple[Annotated[Share, AfterValidator(_rounded)], ...],
        Field(max_length=256),
        AfterValidator(lambda shares: tuple(sorted(shares, reverse=True))),
    ] = ()

    @classmethod
    def of(
        cls,
        task: Task,
        hospitals: Sequence[int],
        epsilon: float | None,
        *,
        encoder: str = "builtin",
        balance: Sequence[float] = (),
    ) -> Self:
        """Of a task as it is agreed on. hospitals: the patients that each declares. Raises: ValueError."""
        pictured = task.kind in ("image", "volume")
        return cls(
            kind=task.kind,
            labels=task.labels,
            units=task.units,
            classes=len(task.classes),
            image_size_px=task.image_size_px if pictured else 0,
            depth=task.depth,
            channels=task.channels if pictured else 0,
            columns=len(task.features),
            inputs=max(1, len(task.inputs)),
            hospitals=tuple(hospitals),
            epsilon=epsilon,
            encoder="" if task.kind == "table" else encoder,
            balance=tuple(balance),
        )


def _value(value: object) -> object:
    """A number as a float, where it is one; yes and no stay what they are."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Value = Annotated[bool | Number | Word, BeforeValidator(_value)]
Settings = Mapping[str, bool | float | str]
"""What an agreement says, by "section.key": {"algorithm.name": "fedavg", "outer.learning_rate": 10.0}."""


class Row(_Frozen):
    """A run.

    source: the public data that a benchmark took, "" for a run of one's own; rows of one source are left out together
    when this is judged. scores: by patients a class that a hospital adapted with, 0 for the shared model as it is.
    metric: what they are. newcomer: whether they were measured at a hospital that took no part, or are noised counts of
    those that did. runs: how many their mean is of. program: wardround's version.
    """

    version: Annotated[int, Field(ge=1, le=1000)] = VERSION
    task: Described
    settings: Annotated[dict[Key, Value], Field(max_length=MOST_SETTINGS)]
    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z ]{0,39}$")] = "balanced accuracy"
    newcomer: bool = True
    scores: Annotated[
        dict[Annotated[int, Field(ge=0, le=1000)], Annotated[Share, AfterValidator(_rounded)]], Field(max_length=20)
    ] = Field(default_factory=dict)
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    source: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,39})?$")] = ""
    program: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{0,40}$")] = __version__

    def line(self) -> str:
        """One line of JSON, without its end."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"version": self.version, **said}, separators=(",", ":"))

    @property
    def algorithm(self) -> str:
        """Its name."""
        return str(self.settings.get("algorithm.name", ""))


def settings_of(federation: Federation) -> dict[str, Any]:
    """All that an agreement chose for its task, by "section.key"; what is no number and no word of ours is left out."""
    found: dict[str, Any] = {}
    for section in SECTIONS:
        for key, value in getattr(federation, section).model_dump(mode="json").items():
            if f"{section}.{key}" not in _APART and _kept(value):
                found[f"{section}.{key}"] = _value(value)
    return found


def nested(settings: Settings) -> dict[str, dict[str, Any]]:
    """Settings as the tables of a federation.toml; a whole number is written as one."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, key = name.split(".", 1)
        whole = isinstance(value, float) and not isinstance(value, bool) and value.is_integer()
        tables.setdefault(section, {})[key] = int(value) if whole else value
    return tables


def _kept(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= 40 and all("a" <= each <= "z" or each.isdigit() or each == "-" for each in value)
    return isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= 1e9
