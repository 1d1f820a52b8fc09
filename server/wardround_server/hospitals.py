"""Who may take part: the registry hospitals.json, filled from the cards (join.json) that hospitals hand over."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wardround.config import Name
from wardround.errors import ConfigError, StorageError
from wardround.files import write_atomically
from wardround.given import CARD_BYTES, given_bytes
from wardround.text import shown

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class Card(BaseModel):
    """What a hospital hands to the coordinator once, by any road that both trust.

    public_key: of its node, EC on a NIST curve, in OpenSSH or PEM form; kept in OpenSSH form.
    delta: of its promise to patients, from which its noise follows; None: just below 1 / (10 declared patients).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    public_key: Annotated[str, Field(max_length=4096)]
    declared_patients: Annotated[int, Field(ge=1, le=10**9)]
    delta: Annotated[float, Field(ge=1e-12, lt=1)] | None = None

    @field_validator("public_key")
    @classmethod
    def _nist_curve(cls, text: str) -> str:
        key = _load(text)
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
            raise ValueError("not an elliptic-curve key on P-256, P-384 or P-521")
        return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()

    @property
    def fingerprint(self) -> str:
        """Of the key, as `ssh-keygen -l` shows it: what two people compare over the telephone."""
        digest = hashlib.sha256(base64.b64decode(self.public_key.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def key_pem(self) -> bytes:
        """The key as PEM SubjectPublicKeyInfo, as Flower registers it."""
        return _load(self.public_key).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class Member(Card):
    """A registered hospital. node_id: Flower's number for it; None until the SuperLink has been told."""

    node_id: int | None = None


@dataclass(frozen=True)
class LastSeen:
    """A node as the SuperLink sees it. status: "registered", "online", "offline" or "unregistered".

    ago_s: seconds since its last sign of life; None where there was none. promised_s: how long it may be without one.
    """

    status: str
    ago_s: float | None
    promised_s: float = 30.0


class Registry:
    """hospitals.json of a coordinator's home; an absent file is an empty registry. Read again when it has changed."""

    def __init__(self, home: Path) -> None:
        self.path = home / "hospitals.json"
        self._read: tuple[object, list[Member]] = (None, [])

    def state(self) -> object:
        """Of the file: equal as long as it is the same. It is replaced, never written in."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def __iter__(self) -> Iterator[Member]:
        """Every hospital, by name. Raises: ConfigError, when the file is not a registry."""
        state = self.state()
        if state is None or state != self._read[0]:
            self._read = state, self._members()
        return iter(self._read[1])

    def _members(self) -> list[Member]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["hospitals"]
            hospitals = [Member.model_validate(entry) for entry in entries]
        except FileNotFoundError:
            hospitals = []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path}: not a registry of hospitals ({type(error).__name__})", do="restore it, or register again"
            ) from None
        return sorted(hospitals, key=lambda hospital: hospital.name)

    def by_node(self) -> dict[int, Member]:
        """Hospitals by Flower's node id, as far as they have one."""
        return {hospital.node_id: hospital for hospital in self if hospital.node_id is not None}

    def add(self, card: Card) -> Member:
        """Register a card; the same card again changes nothing, a new number of patients is taken over.

        Raises: ConfigError, when the name has another key or the key another name; StorageError.
        """
        known = list(self)
        for other in known:
            if other.name == card.name and other.public_key != card.public_key:
                raise ConfigError(
                    f"a hospital named {card.name!r} is registered with another key",
                    do=f"choose another name; if the hospital was set up anew, first `wardround coordinator remove "
                    f"{self.path.parent} {other.name}`",
                )
            if other.public_key == card.public_key and other.name != card.name:
                raise ConfigError(f"this key is registered already, as {other.name!r}", do="use that name")
        before = next((other for other in known if other.name == card.name), None)
        hospital = Member(**card.model_dump(exclude={"node_id"}), node_id=before.node_id if before else None)
        self._save([*(other for other in known if other.name != card.name), hospital])
        return hospital

    def remove(self, name: str) -> Member:
        """Take a hospital out. -> what it was. Raises: ConfigError, when there is none of that name; StorageError."""
        known = list(self)
        found = next((hospital for hospital in known if hospital.name == name), None)
        if found is None:
            names = ", ".join(hospital.name for hospital in known) or "nobody is registered"
            raise ConfigError(f"no hospital is named {shown(name)!r}", allowed=names)
        self._save([hospital for hospital in known if hospital.name != name])
        return found

    def share(self, card: Card) -> float:
        """How much of the federation's weight a hospital would have with this card, of all that are registered."""
        others = sum(hospital.declared_patients for hospital in self if hospital.name != card.name)
        return card.declared_patients / (others + card.declared_patients)

    def set_nodes(self, nodes: Mapping[str, int]) -> None:
        """Remember Flower's numbers for hospitals, by name. Raises: StorageError."""
        before = list(self)
        after = [each.model_copy(update={"node_id": nodes.get(each.name, each.node_id)}) for each in before]
        if after != before:
            self._save(after)

    def _save(self, hospitals: list[Member]) -> None:
        entries = [hospital.model_dump() for hospital in sorted(hospitals, key=lambda hospital: hospital.name)]
        try:
            write_atomically(self.path, (json.dumps({"hospitals": entries}, indent=2) + "\n").encode())
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error.strerror})", do="check the disk") from None


def load_card(path: Path) -> Card:
    """Read a hospital's join.json. Raises: ConfigError, which says what is wrong with it."""
    return card_from(given_bytes(path, CARD_BYTES, do="name the hospital's join.json"), str(path))


def card_from(text: bytes, where: str) -> Card:
    """What a join.json says. Raises: ConfigError."""
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{where}: {shown(key, 40)}: {shown(first['msg'].removeprefix('Value error, '))}",
            allowed="name, public_key and declared_patients, and a delta where it is the hospital's own",
            do="ask the hospital for the join.json that `wardround hospital init` wrote",
        ) from None


def _load(text: str) -> ec.EllipticCurvePublicKey:
    """An EC public key from OpenSSH or PEM text. Raises: ValueError."""
    data = text.strip().encode()
    try:
        if data.startswith(b"-----BEGIN"):
            key = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("neither an OpenSSH nor a PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an elliptic-curve key")
    return key
