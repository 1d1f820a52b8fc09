"""The home that `setup` makes, and how far it is: killed anywhere and called again, it goes on and overwrites nothing.

setup.json   the kit's digest and the answers, written first: a folder that has it was begun by a setup
kit/         the invitation, the agreement and its encoder, as they came
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround import files
from wardround.config import Name, Positive
from wardround.errors import ConfigError, StorageError
from wardround.files import cannot_write, private_folder, sync_folder, write_atomically
from wardround.given import CARD_BYTES, given_bytes
from wardround.kit import AGREEMENT, INVITATION
from wardround.kit import FOLDER as KIT
from wardround.toml import loads
from wardround_client.commands._template import HOSPITAL_TOML, with_setting
from wardround_client.config import HospitalConfig

if TYPE_CHECKING:
    from wardround.kit import Kit

STATE, LOCK = "setup.json", "setup.lock"


class State(BaseModel):
    """kit: its digest. images: a folder, file, URL or host:port; empty: none yet. made: hospital.toml was written once,
    and so was whatever must never be made twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kit: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: Name
    patients: Annotated[int, Field(ge=1, le=10**9)]
    epsilon: Positive
    images: Annotated[str, Field(max_length=4096)] = ""
    labels: Annotated[str, Field(max_length=4096)] = ""
    patient_column: Annotated[str, Field(max_length=1000)] = ""
    made: bool = False

    @property
    def pacs(self) -> dict[str, str]:
        """What [pacs] says: its `url` or its `address`; nothing, where the images are in files."""
        return {key: self.images for key in [where(self.images)] if key in ("url", "address")}


def where(images: str) -> str:
    """Whether this is the `url` or the `address` of a PACS, a `path`, or nothing."""
    host, _, port = images.rpartition(":")
    if images.startswith(("http://", "https://")):
        return "url"
    if host and port.isascii() and port.isdigit() and "/" not in images:
        return "address"
    return "path" if images else ""


class NewHome:
    """A folder that is empty or not there, or that a setup with the same kit has begun."""

    def __init__(self, folder: Path, kit: str) -> None:
        self.folder, self._kit = folder.absolute(), kit

    def begun(self) -> State | None:
        """What was answered before; None without. Raises: ConfigError, when this folder is in use otherwise."""
        state = self.folder / STATE
        if not state.exists():
            self._check_free()
            return None
        try:
            found = State.model_validate_json(given_bytes(state, CARD_BYTES, do="name another folder"))
        except ValidationError:
            raise ConfigError(f"{state} is damaged", do="name another folder") from None
        if found.kit != self._kit:
            raise ConfigError(
                f"{self.folder} was set up with another kit, of digest {found.kit[:16]}",
                do=f"name another folder; or unpack the new kit, and `wardround hospital join {self.folder} "
                f"{INVITATION}`, `wardround hospital approve {self.folder} {AGREEMENT}`",
            )
        return found

    def locked(self) -> AbstractContextManager[None]:
        """One setup at a time. Raises: ConfigError, StorageError."""
        try:
            private_folder(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        busy = ConfigError(f"another setup of {self.folder} is going on", do="wait for its end")
        return files.locked(self.folder / LOCK, busy=busy)

    def save(self, state: State) -> None:
        """Raises: StorageError."""
        with self._writing():
            write_atomically(self.folder / STATE, state.model_dump_json(indent=2).encode() + b"\n")

    def unpack(self, kit: Kit) -> None:
        """What the hospital goes on to need of the kit. Raises: StorageError."""
        with self._writing():
            private_folder(self.folder / KIT)
            for name, data in kit.files().items():
                if name in (INVITATION, AGREEMENT, kit.federation.model.encoder):
                    write_atomically(self.folder / KIT / name, data)

    def make(self, state: State) -> State:
        """Make the home, if it is not made; its limits come from the answers and from our defaults alone.

        Raises: ConfigError, StorageError.
        """
        from wardround_client.hospital import Hospital
        from wardround_client.keys import create_node_key, write_card

        home = self.folder
        if not (home / "hospital.toml").exists():
            self._clear(state)
            Hospital.create(home, hospital_toml(state)).ledger.close()
        if not state.made:
            state = state.model_copy(update={"made": True})
            self.save(state)
        hospital = Hospital.open(home)
        hospital.ledger.close()
        self._name_pacs(state, hospital.config)
        for left in home.glob(".*.key.*"):  # of a kill while a key was written
            left.unlink()
        own, key = hospital.config.hospital, create_node_key(home)
        delta = hospital.config.budget.delta
        write_card(home, name=own.name, declared_patients=own.declared_patients, public_key=key, delta=delta)
        return state

    def _name_pacs(self, state: State, config: HospitalConfig) -> None:
        """Where that was answered later than the rest. Raises: ConfigError, StorageError."""
        if not state.pacs or config.pacs.url or config.pacs.address:
            return
        file = self.folder / "hospital.toml"
        text = file.read_text(encoding="utf-8")
        for key, value in state.pacs.items():
            text = with_setting(text, "pacs", key, value)
        loads(text, HospitalConfig, name=str(file))
        with self._writing():
            write_atomically(file, text.encode())

    def _check_free(self) -> None:
        """Raises: ConfigError."""
        try:
            found = [each.name for each in self.folder.iterdir()] if self.folder.exists() else []
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be used ({error.strerror})", do="name another folder") from None
        if "hospital.toml" in found:
            raise ConfigError(
                f"{self.folder} is a hospital's home already, and is not written over",
                do=f"name another folder; to join another coordinator, unpack the kit and `wardround hospital join "
                f"{self.folder} {INVITATION}`",
            )
        if [name for name in found if name != LOCK and not name.startswith(f".{STATE}")]:
            raise ConfigError(f"{self.folder} is not empty", do="name a folder that is empty or not there")

    def _clear(self, state: State) -> None:
        """Take away what a setup that was killed has left of a home that never was one. Raises: StorageError."""
        ours = ("secret.key", "withdrawn.register", "ledger.sqlite", "approved", ".", STATE, LOCK, KIT)
        there = list(self.folder.iterdir())
        if state.made or not all(each.name.startswith(ours) for each in there):
            raise StorageError(
                f"{self.folder / 'hospital.toml'} is gone", do="restore it from your backup: the home stays as it is"
            )
        with self._writing():
            for each in there:
                if each.name not in (STATE, LOCK, KIT):
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
            sync_folder(self.folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(Path(error.filename or self.folder), error) from None


def hospital_toml(state: State) -> str:
    """As `init` writes it, with the answers."""
    text = HOSPITAL_TOML.format(name=state.name, patients=state.patients)
    text = with_setting(text, "budget", "epsilon", state.epsilon)
    for key, value in state.pacs.items():
        text = with_setting(text, "pacs", key, value)
    return text
