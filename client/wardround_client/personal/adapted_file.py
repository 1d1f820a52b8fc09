"""Adapted models in a hospital's home.

adapted/NAME/model.safetensors   what predicts, before and after; who was learned from; the agreement (0600)
adapted/NAME/card.json           what it is worth, before and after, to patients whom it has not seen
adapted/NAME/ENCODER              the encoder, where the federation brings one of its own

They stay there: no noise protects these patients, and a support case can be read from the numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wardround.config import AS_APPROVED, Federation
from wardround.errors import ConfigError, StorageError
from wardround.files import cannot_write, private_folder, write_atomically
from wardround.models import build_model
from wardround.models.from_outside import pinned
from wardround.release import Release
from wardround_client.personal.adapted_model import AdaptedModel, EmbeddedSupport
from wardround_client.personal.learner import Learner

ADAPTED, MODEL, CARD = "adapted", "model.safetensors", "card.json"
FORMAT = 1


def folder(home: Path, name: str) -> Path:
    """Where a home keeps the adapted model of that name."""
    return home / ADAPTED / name


def names(home: Path) -> list[str]:
    """The adapted models of a home."""
    return sorted(file.parent.name for file in (home / ADAPTED).glob(f"*/{MODEL}"))


def save(home: Path, adapted: AdaptedModel, card: Mapping[str, Any], *, encoder_from: Path) -> Path:
    """Write an adapted model and its card in the place of the one of that name -> its folder.

    encoder_from: the folder of the federation's encoder file, where it has one. Raises: StorageError.
    """
    target = folder(home, adapted.name)
    try:
        private_folder(target)
        encoder = adapted.federation.model.encoder
        if encoder != "builtin" and encoder_from.resolve() != target.resolve():
            shutil.copyfile(encoder_from / encoder, target / encoder)
        write_atomically(target / MODEL, _packed(adapted))
        write_atomically(target / CARD, (json.dumps(card, indent=1) + "\n").encode())
    except OSError as error:
        raise cannot_write(target, error) from None
    return target


def load(home: Path, name: str, device: torch.device) -> AdaptedModel:
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
    with reading(path), safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return _unpacked(name, path.parent, tensors, json.loads(file.metadata()["wardround"]))


def onnx_of(home: Path, adapted: AdaptedModel) -> bytes:
    """The encoder's file, where it is ONNX; b"" otherwise. Raises: ConfigError."""
    choice = adapted.federation.model
    if not choice.encoder.endswith(".onnx"):
        return b""
    return pinned(folder(home, adapted.name) / choice.encoder, choice.encoder_sha256, None)


def support_of(home: Path, name: str) -> frozenset[str]:
    """The pseudonyms, in hex, of the patients that an adapted model was learned from. Raises: StorageError."""
    path = folder(home, name) / MODEL
    with reading(path), safe_open(path, framework="pt") as file:
        return frozenset(json.loads(file.metadata()["wardround"])["support"])


def model_digest(home: Path, name: str) -> str:
    """SHA-256 of the file of an adapted model. Raises: StorageError."""
    path = folder(home, name) / MODEL
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises: StorageError, for whatever a damaged file makes of its readers."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path}: not an adapted model of this version ({type(error).__name__})",
            do="delete its folder, and adapt again",
        ) from None


def _packed(adapted: AdaptedModel) -> bytes:
    release, cases = adapted.release, adapted.cases
    tensors = {
        "theta": adapted.learner.theta,
        "shift": release.shift,
        "scale": release.scale,
        "support/embedded": cases.embedded,
        "support/y": cases.y,
        "support/patient": cases.patient,
        "support/points": cases.points,
        **{f"fitted/{name}": tensor for name, tensor in adapted.fitted.items()},
    }
    metadata = {
        "format": FORMAT,
        "federation": adapted.federation.model_dump(mode="json"),
        "release": {"run": release.run, "federation": release.federation, "round": release.round},
        "support": [pseudonym.hex() for pseudonym in adapted.support],
        "recipe": adapted.recipe,
        "shots": adapted.shots,
        "seed": adapted.seed,
        "new_classes": adapted.new_classes,
    }
    return safetensors.torch.save(
        # Cloned: safetensors refuses tensors that share memory.
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        metadata={"wardround": json.dumps(metadata)},
    )


def _unpacked(name: str, base: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> AdaptedModel:
    if metadata["format"] != FORMAT:
        raise ValueError("another format")
    federation = Federation.model_validate(metadata["federation"], context=AS_APPROVED)
    theta, shift, scale = (tensors[key] for key in ("theta", "shift", "scale"))
    return AdaptedModel(
        name=name,
        federation=federation,
        release=Release(**metadata["release"], theta=theta, shift=shift, scale=scale),
        learner=Learner.of(
            federation, federation.algorithm.extended(build_model(federation, base)), theta, shift, scale
        ),
        fitted={key.removeprefix("fitted/"): tensor for key, tensor in tensors.items() if key.startswith("fitted/")},
        cases=EmbeddedSupport(
            embedded=tensors["support/embedded"],
            y=tensors["support/y"],
            patient=tensors["support/patient"],
            points=tensors.get("support/points", tensors["support/embedded"]),
        ),
        support=tuple(bytes.fromhex(pseudonym) for pseudonym in metadata["support"]),
        recipe=metadata["recipe"],
        shots=metadata["shots"],
        seed=metadata["seed"] if "seed" in metadata else metadata["draw"],  # as 0.1 called it
        new_classes=metadata["new_classes"],
    )
