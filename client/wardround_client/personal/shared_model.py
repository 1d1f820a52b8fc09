"""Which federation's model a hospital means, read from a file and checked, and made ready for the hospital's own task.

For use at home: nothing here asks whether a federation is approved or permitted, because nothing leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from wardround.algorithms import Algorithm
from wardround.config import Federation, load_federation
from wardround.errors import ConfigError, StorageError
from wardround.given import TOML_BYTES, given_text
from wardround.labels import LABEL_KINDS
from wardround.models import Model, Objective, build_model
from wardround.release import Release, read
from wardround.task import Task
from wardround.toml import load, parsed
from wardround_client.hospital import Hospital
from wardround_client.last_model import last_seen
from wardround_client.personal.learner import Learner, Scores
from wardround_client.personal.own_task import Origins, TaskFile, origins, shares

# What of a task says what the outputs of a head mean.
_HEAD = ("label_column", "classes", "labels")


@dataclass(frozen=True)
class SharedModel:
    """A federation's model at a hospital.

    federation: as agreed, but with the hospital's task. base: the folder of its encoder file. release: as it came.
    model: of the task. theta: float32 [P], the release's, or what is left of it where the classes are others.
    new_classes: whether the head is not the federation's. like: which of its classes ours start from, where it is not.
    scores: its head, where some of our classes start from none. agreed: the federation with its own task and its
    model, where our classes are others.
    """

    federation: Federation
    base: Path
    release: Release
    model: Model
    theta: Tensor
    new_classes: bool
    like: Origins = field(default_factory=dict)
    scores: Scores | None = None
    agreed: tuple[Federation, Model] | None = None

    @property
    def starts_anew(self) -> bool:
        """Whether nothing that the federation learned is left: only its encoder and its scaling serve new classes."""
        return self.new_classes and self.scores is None and torch.equal(self.theta, self.model.initial())

    def learner(self, device: torch.device) -> Learner:
        """The federation's method at this model."""
        scores = self.scores and (self.scores[0].to(device), self.scores[1].to(device))
        return replace(self._at(self.federation, self.model, self.theta, device), scores=scores)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The federation's classes."""
        return (self.agreed[0] if self.agreed else self.federation).task.classes

    def before(self, device: torch.device) -> Learner | None:
        """The same with the federation's own classes; None where they are ours, or mean something of another kind."""
        if self.agreed is None or self.agreed[0].task.labels != self.federation.task.labels:
            return None
        return self._at(*self.agreed, self.release.theta, device)

    def _at(self, federation: Federation, model: Model, theta: Tensor, device: torch.device) -> Learner:
        parts = (tensor.to(device) for tensor in (theta, self.release.shift, self.release.scale))
        return Learner.of(federation, model, *parts)


def choose(
    hospital: Hospital,
    *,
    task: str = "",
    federation: str = "",
    file: Path | None = None,
    label_column: str = "",
    classes: Sequence[str] = (),
) -> SharedModel:
    """The model that the options of a command mean.

    Args:
        hospital: whose approvals and home are looked at.
        task: a federation, as below, or a TOML file with the table [task] alone: the hospital's own task.
        federation: a federation.toml, or of an approved federation its name, its digest or the beginning of that.
            Empty: what `task` names, else the one whose model `file` is, else the only one that is approved.
        file: a checkpoint of the coordinator; None: the model that this hospital saw last.
        label_column: instead of the task's.
        classes: instead of the task's.

    Raises:
        ConfigError: nothing or several things are meant, a file cannot be used, a model of another federation, or a
            task whose inputs have another shape than the federation's.
        PolicyRefusal: the approved copy of the federation was changed.
    """
    of_file = _is_task_file(task) or (_is_file(task) and federation not in ("", task))
    agreed, base = _federation(hospital, federation or ("" if of_file else task), file)
    own = load(Path(task), TaskFile, context=agreed.task).task if of_file else None
    release, path = _release(hospital, agreed, file)
    theirs = agreed.algorithm.extended(build_model(agreed, base))
    _check(release, theirs, path)
    changes = own.model_dump(exclude_unset=True, exclude={"same_as"}) if own else {}
    declared = own.same_as if own else {}
    if declared and classes:
        raise ConfigError(
            f"{task} says in same_as what its classes are like, and other classes are asked for",
            do="write all classes into the file, or take same_as out of it",
        )
    changes |= {"label_column": label_column} if label_column else {}
    changes |= {"classes": tuple(classes)} if classes else {}
    ours = with_task(agreed, changes)
    if all(getattr(ours.task, key) == getattr(agreed.task, key) for key in _HEAD) and not declared:
        same = theirs if ours.task.cells == agreed.task.cells else ours.algorithm.extended(build_model(ours, base))
        return SharedModel(ours, base, release, same, release.theta, new_classes=False)
    model = ours.algorithm.extended(build_model(ours, base))
    before = Objective.of(agreed, theirs, release.shift, release.scale)
    after = Objective.of(ours, model, release.shift, release.scale)
    like = origins(ours.task, agreed.task, declared)
    start, parts = model.initial().detach(), shares(like, agreed.task.classes)
    theta = agreed.algorithm.for_classes(release.theta, before, after, start, parts)
    head, starts_there = before.head(release.theta), type(agreed.algorithm).of_scores is not Algorithm.of_scores
    scores = head if starts_there and head[0].any() and not all(like.values()) else None
    return SharedModel(
        ours, base, release, model, theta, new_classes=True, like=like, scores=scores, agreed=(agreed, theirs)
    )


def with_task(federation: Federation, changes: dict[str, object]) -> Federation:
    """The federation with a task that differs in these keys. Raises: ConfigError, for inputs of another shape."""
    agreed = federation.task
    if isinstance(classes := changes.get("classes"), tuple):
        kind = LABEL_KINDS[str(changes.get("labels", agreed.labels))]
        meant = ("", *kind.meanings(classes))  # what the agreement's `values` say of other classes means nothing
        left = [(text, each) for text, each in agreed.values if each in meant and text not in classes]
        changes = {"values": left} | changes
    try:
        task = Task.model_validate(agreed.model_dump() | changes)
        ours = Federation.model_validate(federation.model_dump() | {"task": task.model_dump()})
    except ValidationError as error:
        said = (str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        raise ConfigError("; ".join(said), do="correct the task") from None
    if task.measured != agreed.measured:
        raise ConfigError(
            f"the task measures {task.measured or 'nothing'}",
            allowed=f"what the federation's model was learned on: {agreed.measured or 'images as viewers show them'}",
            do="leave units and window out of the task: the federation's are taken",
        )
    if (task.kind, task.input_shape, task.features) != (agreed.kind, agreed.input_shape, agreed.features):
        raise ConfigError(
            f"the task wants {task.kind} inputs of shape {task.input_shape}",
            allowed=f"what the federation's model was learned on: {agreed.kind} of {agreed.input_shape}",
            do="leave image_size_px, channels and features out of the task: the federation's are taken",
        )
    return ours


def _is_file(named: str) -> bool:
    return bool(named) and Path(named).is_file()


def _is_task_file(named: str) -> bool:
    if not _is_file(named):
        return False
    with suppress(ConfigError):  # it is then read as a federation, which says what is wrong
        return parsed(given_text(Path(named), TOML_BYTES, do=""), name=named).keys() == {"task"}
    return False


def _federation(hospital: Hospital, named: str, file: Path | None) -> tuple[Federation, Path]:
    """The agreement, and the folder of its encoder file."""
    if named and Path(named).is_file():
        return load_federation(Path(named)), Path(named).parent
    if not named and file is not None:
        named = _read(file).federation
        if named not in hospital.approvals.digests():
            raise ConfigError(
                f"{file} is a model of federation {named[:12]}, which is not approved here",
                do="name its federation.toml with --task",
            )
    digest = hospital.approvals.find(named)
    return hospital.approvals.federation(digest), hospital.approvals.folder(digest)


def _release(hospital: Hospital, federation: Federation, file: Path | None) -> tuple[Release, Path]:
    path = file or last_seen(hospital.home, federation.digest)
    if file is None and not path.is_file():
        raise ConfigError(
            f"this hospital has seen no model of {federation.name} ({federation.digest[:12]}) yet",
            do="name the coordinator's checkpoint.safetensors with --model",
        )
    release = _read(path)
    if release.federation != federation.digest:
        raise ConfigError(
            f"{path} is a model of federation {release.federation[:12]} (run {release.run!r})",
            allowed=f"a model of federation {federation.digest[:12]} ({federation.name})",
            do="name the checkpoint of that federation with --model, or the file's own with --federation",
        )
    return release, path


def _read(path: Path) -> Release:
    try:
        return read(path)[0]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", do="name the coordinator's checkpoint.safetensors") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})", do="check the file") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a model of wardround ({type(error).__name__})",
            allowed="a checkpoint.safetensors of a coordinator, or a file of this home's models/",
        ) from None


def _check(release: Release, model: Model, path: Path) -> None:
    """Raises: ConfigError: another model's numbers, or numbers that are none."""
    wanted = {"theta": model.layout.size, "shift": model.scaling_size, "scale": model.scaling_size}
    for name, size in wanted.items():
        tensor: Tensor = getattr(release, name)
        if tensor.dtype != torch.float32 or tensor.shape != (size,):
            raise ConfigError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}",
                allowed=f"float32 [{size}], as the federation's model has it",
                do="name the checkpoint that this federation made",
            )
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"{path}: {name} holds NaN or infinity", do="name a checkpoint that is whole")
    if not (release.scale > 0).all():
        raise ConfigError(f"{path}: scale is not positive everywhere", do="name a checkpoint that is whole")
