"""Models that a hospital adapted to its own patients, in its home.

adapted/NAME/model.safetensors   what predicts, before and after; who was learned from; the agreement (0600)
adapted/NAME/card.json           what it is worth, before and after, to patients whom it has not seen
adapted/NAME/*.safetensors       the encoder, where the federation brings one of its own

They stay there: no noise protects these patients, and a support case can be read from the numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.config import AS_APPROVED, Federation
from wardround.errors import ConfigError, DataError, StorageError
from wardround.files import write_atomically
from wardround.models import Objective, build_model
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.shared_model import GlobalModel

ADAPTED, MODEL, CARD = "adapted", "model.safetensors", "card.json"
FORMAT = 1
_PRIVATE = 0o600


@dataclass(frozen=True)
class Cases:
    """The support as the model sees it: embedded float32 [n, e], y int64 [n], patient int64 [n]."""

    embedded: Tensor
    y: Tensor
    patient: Tensor


@dataclass(frozen=True)
class Adapted:
    """An adapted model, ready to predict.

    name: its folder's. federation: with the hospital's task. release: what it was adapted from. learner: at the start,
    whose theta has the task's classes.
    fitted: what the method made of the support. cases: the support. support: pseudonyms of patients 0, 1, 2 ... of it.
    recipe: of the images, as the cohort's layout writes it. shots: patients a class that were asked for, 0 for half of
    them; draw: the number of the draw. new_classes: whether the federation's head was left behind.
    """

    name: str
    federation: Federation
    release: Release
    learner: Learner
    fitted: Fitted
    cases: Cases
    support: tuple[bytes, ...]
    recipe: str
    shots: int
    draw: int
    new_classes: bool

    @classmethod
    def learned(
        cls, name: str, start: GlobalModel, support: Labelled, *, recipe: str, shots: int, draw: int, tune: bool = False
    ) -> Adapted:
        """Learn from a support; with tune, how far to go is chosen on it too. Raises: DataError, when it is empty."""
        learner = start.learner(support.examples.device)
        if tune:
            learner = learner.tuned_on(support.examples)
        return cls(
            name=name,
            federation=start.federation,
            release=start.release,
            learner=learner,
            fitted=learner.adapt(support.examples),
            cases=_cases(learner, support.examples),
            support=support.pseudonyms,
            recipe=recipe,
            shots=shots,
            draw=draw,
            new_classes=start.new_classes,
        )

    def check_consent(self, withdrawn: Collection[bytes]) -> None:
        """Raises: DataError, when somebody whom it was learned from has withdrawn since."""
        gone = sum(pseudonym in withdrawn for pseudonym in self.support)
        if gone:
            raise DataError(
                f"{gone} of the {len(self.support)} patients whom {self.name!r} was learned from have withdrawn",
                do="adapt again, with --replace: it learns from those who are left",
            )


def _cases(learner: Learner, support: Examples) -> Cases:
    with torch.no_grad():
        embedded = torch.cat([learner.loss.embed(learner.theta, part) for part in torch.split(support.z, 256)])
    return Cases(embedded, support.y, support.patient)


def folder(home: Path, name: str) -> Path:
    """Where a home keeps the adapted model of that name."""
    return home / ADAPTED / name


def names(home: Path) -> list[str]:
    """The adapted models of a home."""
    return sorted(file.parent.name for file in (home / ADAPTED).glob(f"*/{MODEL}"))


def save(home: Path, adapted: Adapted, card: Mapping[str, Any], *, encoder_from: Path) -> Path:
    """Write an adapted model and its card, in the place of what has its name -> its folder.

    encoder_from: the folder of the federation's encoder file, where it has one. Raises: StorageError.
    """
    target = folder(home, adapted.name)
    try:
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(0o700)
        encoder = adapted.federation.model.encoder
        if encoder != "builtin" and encoder_from.resolve() != target.resolve():
            shutil.copyfile(encoder_from / encoder, target / encoder)
        write_atomically(target / MODEL, _packed(adapted), mode=_PRIVATE)
        write_atomically(target / CARD, (json.dumps(card, indent=1) + "\n").encode(), mode=_PRIVATE)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror})", do="check the disk") from None
    return target


def load(home: Path, name: str, device: torch.device) -> Adapted:
    """Read an adapted model.

    Raises:
        ConfigError: there is none of that name.
        StorageError: its file is damaged, or of another version.
    """
    path = folder(home, name) / MODEL
    if not path.is_file():
        raise ConfigError(
            f"no adapted model {name!r}",
            allowed=", ".join(names(home)) or "none: nothing was adapted here yet",
            do="make it with `wardround hospital adapt`",
        )
    with _reading(path), safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return _unpacked(name, path.parent, tensors, json.loads(file.metadata()["wardround"]))


def forget(home: Path, pseudonyms: Collection[bytes]) -> list[str]:
    """Delete the adapted models that were learned from any of these patients -> their names.

    Raises: StorageError, when one cannot be read or deleted.
    """
    gone = {pseudonym.hex() for pseudonym in pseudonyms}
    forgotten = []
    for name in names(home):
        path = folder(home, name) / MODEL
        with _reading(path), safe_open(path, framework="pt") as file:
            learned_from = json.loads(file.metadata()["wardround"])["support"]
        if gone.intersection(learned_from):
            with _reading(path):
                path.write_bytes(bytes(path.stat().st_size))
                shutil.rmtree(path.parent)
            forgotten.append(name)
    return forgotten


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path}: not an adapted model of this version ({type(error).__name__})",
            do="delete its folder, and adapt again",
        ) from None


def _packed(adapted: Adapted) -> bytes:
    release, cases = adapted.release, adapted.cases
    tensors = {
        "theta": adapted.learner.theta,
        "shift": release.shift,
        "scale": release.scale,
        "support/embedded": cases.embedded,
        "support/y": cases.y,
        "support/patient": cases.patient,
        **{f"fitted/{name}": tensor for name, tensor in adapted.fitted.items()},
    }
    said = {
        "format": FORMAT,
        "federation": adapted.federation.model_dump(mode="json"),
        "release": {"run": release.run, "federation": release.federation, "round": release.round},
        "support": [pseudonym.hex() for pseudonym in adapted.support],
        "recipe": adapted.recipe,
        "shots": adapted.shots,
        "draw": adapted.draw,
        "new_classes": adapted.new_classes,
    }
    return safetensors.torch.save(
        # Cloned: safetensors refuses tensors that share memory.
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        metadata={"wardround": json.dumps(said)},
    )


def _unpacked(name: str, base: Path, tensors: dict[str, Tensor], said: dict[str, Any]) -> Adapted:
    if said["format"] != FORMAT:
        raise ValueError("another format")
    federation = Federation.model_validate(said["federation"], context=AS_APPROVED)
    model = federation.algorithm.extended(build_model(federation, base))
    theta, shift, scale = (tensors[key] for key in ("theta", "shift", "scale"))
    fitted = {key.removeprefix("fitted/"): tensor for key, tensor in tensors.items() if key.startswith("fitted/")}
    return Adapted(
        name=name,
        federation=federation,
        release=Release(**said["release"], theta=theta, shift=shift, scale=scale),
        learner=Learner(
            federation.algorithm,
            Objective.of(federation, model, shift, scale),
            theta,
        ),
        fitted=fitted,
        cases=Cases(*(tensors[f"support/{key}"] for key in ("embedded", "y", "patient"))),
        support=tuple(bytes.fromhex(each) for each in said["support"]),
        recipe=said["recipe"],
        shots=said["shots"],
        draw=said["draw"],
        new_classes=said["new_classes"],
    )
