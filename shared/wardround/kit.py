"""The startup kit: one zip with all that a hospital needs to join a federation, and no secret.

    INSTRUCTIONS.txt   what a person does with it         federation.toml   the agreement
    invitation.toml    the coordinator's address and CA   answers.toml      the hospital's settings, to be filled in
    ENCODER            the file that the agreement pins, where it names one

A kit is canonical: these files in this order, stored, of one date, and nothing beside them. So the same files give the
same bytes and one digest, which two people can compare over the telephone. A reader builds the zip again from what it
read and compares: there is no second file of one name, no path, link, comment or gap in which something could hide,
and nothing to unpack that is larger than the kit.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wardround.config import Federation, Name, Positive
from wardround.errors import ConfigError
from wardround.given import CARD_BYTES, ENCODER_BYTES, TOML_BYTES, decoded, given_bytes
from wardround.text import shown
from wardround.toml import Section, loads

INSTRUCTIONS, INVITATION, AGREEMENT, ANSWERS = "INSTRUCTIONS.txt", "invitation.toml", "federation.toml", "answers.toml"
FOLDER = "kit"
"""In a hospital's home: the invitation, the agreement and its encoder, as they came."""
KIT_BYTES = ENCODER_BYTES + (8 << 20)
_LIMITS = {INSTRUCTIONS: CARD_BYTES, INVITATION: TOML_BYTES, AGREEMENT: TOML_BYTES, ANSWERS: CARD_BYTES}
_DATE = (2024, 10, 1, 0, 0, 0)
_UNIX = 3
_END, _END_BYTES, _END_64 = b"PK\x05\x06", 22, b"PK\x06\x07"
_DIRECTORY_BYTES = 4096  # of five names of at most 100 bytes
_AGAIN = "ask the coordinator for the kit again, and compare its digest by telephone"


class Answers(Section):
    """answers.toml: what `wardround hospital setup` asks, for who would rather write it down. A kit sets `name` alone.

    images: a folder, or the URL or host:port of the PACS. labels: the CSV. epsilon: the budget of all runs together.
    """

    name: Name | None = None
    patients: Annotated[int, Field(ge=1, le=10**9)] | None = None
    epsilon: Positive | None = None
    images: Annotated[str, Field(max_length=4096)] | None = None
    labels: Annotated[str, Field(max_length=4096)] | None = None


@dataclass(frozen=True)
class Kit:
    """What a kit holds.

    name: how the federation will call the hospital. federation: what `agreement` says. invitation, agreement: UTF-8.
    instructions, answers: UTF-8, for people. encoder: the bytes of the file `federation.model.encoder`; None without.
    """

    name: str
    federation: Federation
    invitation: bytes = field(repr=False)
    agreement: bytes = field(repr=False)
    encoder: bytes | None = field(repr=False)
    instructions: bytes = field(repr=False)
    answers: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, invitation: bytes, agreement: bytes, encoder: bytes | None) -> Kit:
        """Of what the coordinator has, with instructions for people.

        Raises: ConfigError: an agreement that is none, an encoder that is not the pinned one, something secret.
        """
        federation = loads(agreement.decode(), Federation, name=AGREEMENT)
        told = {"name": name, "federation": federation.name, "digest": federation.digest}
        instructions, answers = _INSTRUCTIONS.format(**told).encode(), _ANSWERS.format(**told).encode()
        kit = cls(name, federation, invitation, agreement, encoder, instructions, answers)
        kit._check("the kit", do="take it out, or name the right files")
        return kit

    @classmethod
    def read(cls, path: Path) -> tuple[Kit, str]:
        """A kit from outside -> it, and its digest. Raises: ConfigError."""
        data = given_bytes(path, KIT_BYTES, do="name the kit that the coordinator sent")
        files = _unpacked(data, path)
        texts = {name: decoded(files[name], path / name, do=_AGAIN) for name in _LIMITS}
        federation = loads(texts[AGREEMENT], Federation, name=str(path / AGREEMENT))
        answers = loads(texts[ANSWERS], Answers, name=str(path / ANSWERS))
        if answers.name is None or answers.model_fields_set != {"name"}:
            raise ConfigError(
                f"{path}: {ANSWERS} answers for the hospital",
                allowed="its name, and nothing else: the rest is asked here",
                do=_AGAIN,
            )
        encoder = files.get(federation.model.encoder)
        named = [files[name] for name in (INVITATION, AGREEMENT, INSTRUCTIONS, ANSWERS)]
        kit = cls(answers.name, federation, named[0], named[1], encoder, named[2], named[3])
        kit._check(str(path), do=_AGAIN)
        if kit.build() != data:
            raise ConfigError(
                f"{path} is not a startup kit as `wardround coordinator invite` makes it",
                allowed=f"{', '.join(kit.files())}, stored as they are, and nothing beside them",
                do=_AGAIN,
            )
        return kit, digest(data)

    def files(self) -> dict[str, bytes]:
        """Every file by its name, in the order of the zip."""
        files = {INSTRUCTIONS: self.instructions, INVITATION: self.invitation, AGREEMENT: self.agreement}
        files |= {ANSWERS: self.answers}
        return files if self.encoder is None else files | {self.federation.model.encoder: self.encoder}

    def build(self) -> bytes:
        """The zip."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in self.files().items():
                entry = zipfile.ZipInfo(name, date_time=_DATE)
                entry.create_system = _UNIX  # else it would follow the machine that builds
                archive.writestr(entry, data)
        return out.getvalue()

    def _check(self, where: str, *, do: str) -> None:
        """Raises: ConfigError."""
        model = self.federation.model
        pinned = "" if self.encoder is None else hashlib.sha256(self.encoder).hexdigest()
        wanted = "" if model.encoder == "builtin" else model.encoder_sha256
        if pinned != wanted:
            raise ConfigError(
                f"{where}: the encoder {shown(model.encoder)} is {'another file' if pinned else 'missing'}",
                allowed=f"model.encoder_sha256 = {wanted}",
                do=do,
            )
        for name, data in self.files().items():
            if len(data) > (most := _LIMITS.get(name, ENCODER_BYTES)):
                raise ConfigError(f"{where}: {name} is too large", allowed=f"{most:,} bytes", do=do)
            if b"PRIVATE KEY" in data:
                raise ConfigError(f"{where}: {name} holds a private key", allowed="nothing secret", do=do)


def digest(kit: bytes) -> str:
    """SHA-256 of a kit, 64 hex digits."""
    return hashlib.sha256(kit).hexdigest()


def spoken(digest: str) -> str:
    """A digest in groups of four, as one reads it out."""
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))


def _unpacked(data: bytes, path: Path) -> dict[str, bytes]:
    """The files of a zip that may be anything, by their names. Raises: ConfigError."""
    wrong = ConfigError(f"{path} is not a startup kit", allowed="the file that `coordinator invite` made", do=_AGAIN)
    end = data[-_END_BYTES:]
    # What zipfile would read as a directory, before it does: of a file of 1 GB it would make 20 million objects.
    if len(end) < _END_BYTES or end[:4] != _END or data[-_END_BYTES - 20 :][:4] == _END_64:
        raise wrong
    if int.from_bytes(end[12:16], "little") > _DIRECTORY_BYTES or int.from_bytes(end[20:22], "little"):
        raise wrong
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            stored = all(
                entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
                for entry in entries
            )
            if not stored or names[: len(_LIMITS)] != _NAMES or len(names) > len(_NAMES) + 1:
                raise wrong
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, LookupError, struct.error):
        raise wrong from None


_NAMES = [INSTRUCTIONS, INVITATION, AGREEMENT, ANSWERS]
_ANSWERS = """\
# The answers of `wardround hospital setup`, for who would rather write them down than be asked. Take this file out of
# the kit, fill it in, and add --answers answers.toml. What is left out is asked. What stands in the kit itself counts
# for the name alone: no coordinator answers for a hospital.
name = "{name}"
# patients = 400                  # a round PUBLIC number near the number of your patients, never the exact one
# epsilon = 10.0                  # the most that each patient's privacy may cost, over all runs and coordinators
# images = "/data/dicom"          # a folder; or the PACS: its DICOMweb URL, or host:port
# labels = "/data/labels.csv"     # a key (PatientID, AccessionNumber ...) and one column for each question
"""
_INSTRUCTIONS = """\
Startup kit of {name} for the federation {federation}
Agreement {digest}

It holds no secret: the coordinator's address and certificate authority (invitation.toml), the agreement
(federation.toml), and the encoder file where the agreement names one.

1. Install wardround: docs/how-to/it.md, "Install".
2. Type, with a folder that does not exist yet, or is empty:

       wardround hospital setup KIT.zip HOME

   It shows the digest of this file. Have the coordinator read out theirs over the telephone, at a number that you
   know from elsewhere; compare all of it. Then it asks where the images and the labels are, how many patients you
   declare, and how much privacy may be spent. It makes the home, tries the way to the coordinator, takes the images
   in, and says what comes next. Interrupted, the same command goes on.
3. Send HOME/join.json to the coordinator. It holds no secret.
4. Your privacy officer reads and approves the agreement:

       wardround hospital approve HOME HOME/kit/federation.toml

Nothing in this kit can widen your hospital's policy; HOME/hospital.toml is yours alone.
"""
