"""What a federation agrees on: federation.toml as a frozen model.

Everything in it is public. A hospital approves the whole file, by hash, and runs its own approved copy: no
number of it travels with a round.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.canonical import canonical, read_as_approved
from wardround.errors import ConfigError
from wardround.given import NAMES_BYTES, TOML_BYTES, given_text
from wardround.labels import LABEL_KINDS
from wardround.optimizers import OPTIMIZERS, Optimizer
from wardround.rules import RULES, Rule
from wardround.settings import Later, Part, chosen, invalid, own_settings, part_class
from wardround.task import Task
from wardround.toml import Section, loads


def _question(name: str) -> str:
    from wardround.schedule import QUESTIONS  # which imports this module

    if name not in QUESTIONS or name in QUESTIONS.built_in:
        raise ValueError(f"not a question of another package; allowed: {', '.join(QUESTIONS.others) or 'none'}")
    return name


# Bounds are generous, and such that nothing within them overflows or takes for ever; a hospital's policy is narrower.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=1e-4, lt=1)]
Family = Literal["encoder-head", "conv4", "logistic", "mlp", "projection"]
AS_APPROVED = "as approved"
"""The validation context of an agreement that version 0.1 may have written (`canonical.read_as_approved`)."""
MOST_NUMBERS = 1 << 28  # of one patient's images, as a model takes them, or of their maps in one layer: 1 GiB


class ModelChoice(Section):
    """The network. family: encoder-head (frozen public encoder, private head; the default) or conv4 of images;
    logistic, mlp or projection (a head on `features` random directions of many columns) of a table.

    encoder: "builtin", or the name of an ONNX or safetensors file beside federation.toml that the consortium brings,
    pinned by encoder_sha256.
    features: how many public principal components of the encoder's output, or directions, the head sees.
    embedding: outputs of a learned linear map between the encoder, or the directions, and the head, at most `features`;
    0: none. Methods that learn an embedding and not a head (anil, prototypical ...) need one.
    width: channels of conv4, hidden units of mlp.
    """

    family: Family = "encoder-head"
    encoder: Annotated[
        str, Field(max_length=100, pattern=r"^(builtin|[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|onnx))$")
    ] = "builtin"
    encoder_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    features: Annotated[int, Field(ge=2, le=4096)] = 32
    embedding: Annotated[int, Field(ge=0, le=4096)] = 0
    width: Annotated[int, Field(ge=1, le=1024)] = 64

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.encoder != "builtin" and not self.encoder_sha256:
            raise ValueError("an encoder of your own needs encoder_sha256, so that nobody can exchange it")
        able = self.family in ("encoder-head", "projection")
        if self.embedding and (not able or self.embedding > self.features):
            raise ValueError(
                f"embedding is for encoder-head and projection, at most features ({self.features}), or 0 for none"
            )
        return self


class Outer(Section):
    """How deltas become one, and the coordinator's optimizer over it, each with its own settings in the same table.

    weighting: by declared patients, or all hospitals the same.
    """

    rule: SerializeAsAny[Rule]
    optimizer: SerializeAsAny[Optimizer]
    weighting: Literal["declared", "uniform"] = "declared"

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, values: object) -> object:
        return outer_parts(values) if isinstance(values, Mapping) else values

    @model_serializer
    def _table(self) -> dict[str, Any]:
        parts = {"rule": self.rule, "optimizer": self.optimizer}
        values = {key: value for part in parts.values() for key, value in part.model_dump(mode="json").items()}
        del values["name"]
        return values | {key: part.name for key, part in parts.items()} | {"weighting": self.weighting}


def outer_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table [outer] with each setting at the part that has it. Raises: ValidationError."""
    rule, optimizer = values.get("rule", "geometric-median"), values.get("optimizer", "sgd")
    rules = type(rule) if isinstance(rule, Part) else part_class(RULES, rule, "rule")
    optimizers = type(optimizer) if isinstance(optimizer, Part) else part_class(OPTIMIZERS, optimizer, "optimizer")
    own = {key: value for key, value in values.items() if key not in Outer.model_fields}
    # One table holds both, so that a name that two have would hide a value from the digest.
    twice = _settings_of(rules) & _settings_of(optimizers)
    twice |= _settings_of(rules, optimizers) & Outer.model_fields.keys()
    if twice:
        why = f"the optimizer {optimizer}, or [outer] itself, has settings of the same name: {sorted(twice)}"
        raise invalid("outer", "rule", rule, why)
    for key in sorted(own.keys() - _settings_of(rules, optimizers)):
        has = own_settings(rules, optimizers)
        raise invalid("outer", key, own[key], f"{rule} and {optimizer} have no such setting; they have {has}")

    def made(part: object, cls: type[Part]) -> object:
        mine = {key: own[key] for key in own.keys() & cls.model_fields.keys()}
        return part if isinstance(part, Part) else cls.model_validate({"name": part, **mine})

    rest = {key: values[key] for key in values.keys() - own.keys()}
    return rest | {"rule": made(rule, rules), "optimizer": made(optimizer, optimizers)}


def _settings_of(*classes: type[Part]) -> set[str]:
    return {name for cls in classes for name in cls.model_fields} - {"name"}


class Privacy(Section):
    """What the whole run costs each hospital, and how each answer is made.

    epsilon: for the whole run, at each hospital's own delta. clip_norm: C, the L2 bound of one patient's gradient.
    patients_per_step: expected patients in a Poisson sample (rate = this / declared patients, at most 1); 0: everyone.
    images_per_patient: m, images drawn of each sampled patient. patients_per_episode: expected patients of a few-shot
    episode, for algorithms that learn from episodes; support_share: how likely each is in its support.
    statistics_share, evaluation_share: parts of epsilon for the class counts and feature statistics, and for all
    evaluations together.
    """

    epsilon: Annotated[float, Field(ge=1e-3, le=1e9)] = 8.0
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    patients_per_step: Annotated[int, Field(ge=0, le=10**9)] = 0
    images_per_patient: Annotated[int, Field(ge=1, le=1024)] = 1
    patients_per_episode: Annotated[int, Field(ge=2, le=10**6)] = 20
    support_share: Fraction = 0.5
    statistics_share: Fraction = 0.15
    evaluation_share: Fraction = 0.15

    def expected_patients(self, declared_patients: int) -> int:
        """Patients expected in a sample of a hospital that declares so many."""
        return min(self.patients_per_step or declared_patients, declared_patients)

    def episodes(self, declared_patients: int) -> int:
        """Few-shot episodes of a sample: a public number, at least 1."""
        return max(1, round(self.expected_patients(declared_patients) / self.patients_per_episode))

    def side_cap(self, declared_patients: int) -> int:
        """Most patients on one side of an episode, a public number: six deviations above the larger side's mean.

        Chance passes it once in 10^9 episodes, where as many patients are there as were declared.
        """
        larger = max(self.support_share, 1 - self.support_share)
        mean = larger * self.expected_patients(declared_patients) / self.episodes(declared_patients)
        return math.ceil(mean + 6 * math.sqrt(mean) + 6)


class Rounds(Section):
    """rounds: training rounds. A round ends when all have replied, or deadline_s after its last request if `quorum`
    hospitals have.

    evaluate_every: ask for private confusion counts after every so many rounds; 0: never (it costs epsilon).
    questions: of other packages, which the run asks beside ours where they are due.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 20
    quorum: Annotated[int, Field(ge=1, le=10_000)] = 2
    deadline_s: Annotated[float, Field(ge=0.1, le=7 * 86_400)] = 120.0
    evaluate_every: Annotated[int, Field(ge=0, le=100_000)] = 0
    questions: Annotated[tuple[Annotated[str, AfterValidator(_question)], ...], Field(max_length=100), Later(())] = ()

    def evaluates(self, after: int) -> bool:
        """Whether an evaluation follows that training round."""
        return self.evaluate_every > 0 and after > 0 and after % self.evaluate_every == 0


def _algorithm(values: Any) -> Any:
    return chosen(ALGORITHMS, values, default="reptile") if isinstance(values, Mapping) else values


class Federation(Section):
    """federation.toml."""

    name: Name
    task: Task
    model: ModelChoice = ModelChoice()
    algorithm: Annotated[SerializeAsAny[Algorithm], BeforeValidator(_algorithm)] = Field(
        default_factory=lambda: _algorithm({})
    )
    outer: Outer = Field(default_factory=lambda: Outer.model_validate({}))
    privacy: Privacy = Privacy()
    rounds: Rounds = Rounds()
    _unused: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        tabular = self.model.family in ("logistic", "mlp", "projection")
        if tabular != (self.task.kind == "table"):
            raise ValueError(f"model.family {self.model.family!r} does not fit task.kind {self.task.kind!r}")
        if self.model.family != "encoder-head" and (self.task.dense or self.task.kind in ("volume", "inputs")):
            what = f'labels "{self.task.labels}"' if self.task.dense else f"kind {self.task.kind!r}"
            raise ValueError(f'a task of {what} needs model.family "encoder-head"')
        one = math.prod(self.task.input_shape)  # numbers of an example
        if self.task.dense:
            one = self.model.features
        elif self.model.family == "conv4":
            one = self.task.image_size_px**2 * self.model.width
        numbers = one * self.privacy.images_per_patient * self.task.drawn * self.task.variants
        if not tabular and numbers > MOST_NUMBERS:
            raise ValueError(
                f"one patient's images take {numbers:,} numbers (image_size_px, images_per_patient, variants of "
                f"augment, width), at most {MOST_NUMBERS:,} are allowed"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_labels(self) -> Self:
        name, labels, kind = self.algorithm.name, self.task.labels, LABEL_KINDS[self.task.labels]
        if not kind.exclusive and self.algorithm.one_class_each:
            able = ", ".join(each for each in ALGORITHMS.built_in if not ALGORITHMS[each].one_class_each)
            raise ValueError(f'algorithm {name} needs images of one class; for task.labels = "{labels}" take {able}')
        if self.algorithm.unit == "stand-ins" and labels != "one":
            raise ValueError(
                f'tasks = "stand-ins" draws patients of one class each; labels = "{labels}" cannot have it'
            )
        if self.rounds.evaluate_every and kind.judgement(len(self.task.classes)) is None:
            raise ValueError(f'rounds.evaluate_every counts images of one class; with task.labels = "{labels}" it is 0')
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        unused: dict[str, dict[str, Any]] = {}
        if info.context == AS_APPROVED and isinstance(values, Mapping):
            values, unused = read_as_approved(values)
        federation = handler(values)
        federation._unused = unused
        return federation

    def canonical(self) -> str:
        """One JSON text for one agreement, the same in every version (`wardround.canonical`)."""
        return canonical(self, self._unused)

    @classmethod
    def from_canonical(cls, text: str) -> Self:
        """The inverse of `canonical`. Raises: ValueError, for a text that is no agreement, or not its canonical one."""
        federation = cls.model_validate(json.loads(text), context=AS_APPROVED)
        if federation.canonical() != text:
            raise ValueError("not the canonical text of an agreement")
        return federation

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical()`, 64 hex digits: the name under which a hospital approves this agreement."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def load_federation(path: Path, *, approved: bool = False) -> Federation:
    """Read federation.toml. approved: it may be one that runs, or was approved, since 0.1. Raises: ConfigError."""
    return loads(agreement_text(path), Federation, name=str(path), context=AS_APPROVED if approved else None)


def agreement_text(path: Path) -> str:
    """The text of a federation.toml, in which the columns of a table stand in place of the file that names them: so
    what is approved, kept and sent is whole. Raises: ConfigError.
    """
    text = given_text(path, TOML_BYTES, do="name a federation.toml")
    text = _NAMES_FILE.sub(lambda found: f"{found[1]}{_names(path.parent / found[2], line_end=found[3])}", text)
    if len(text.encode()) > TOML_BYTES:
        raise ConfigError(
            f"{path}: more than {TOML_BYTES:,} bytes with the names of its columns", do="shorten the names"
        )
    return text


_NAMES_FILE = re.compile(
    r'^([ \t]*features[ \t]*=[ \t]*)["\']([A-Za-z0-9][A-Za-z0-9._-]*\.txt)["\']([^\n]*)$', re.MULTILINE
)


def _names(file: Path, line_end: str) -> str:
    do = "put the file that task.features names beside federation.toml"
    names = [line.strip() for line in given_text(file, NAMES_BYTES, do=do).splitlines()]
    return f"[{', '.join(json.dumps(name, ensure_ascii=False) for name in names if name)}]{line_end}"
