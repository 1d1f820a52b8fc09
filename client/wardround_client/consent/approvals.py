"""What a hospital has approved: federation files in its own home, each with the record of how it was approved."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

import wardround.bundle
from wardround import __version__
from wardround.config import AS_APPROVED, Federation, agreement_text
from wardround.errors import ConfigError, PolicyRefusal, StorageError, WardroundError
from wardround.files import private_folder, read_bounded, remove_folder, sync_folder, write_atomically
from wardround.given import ENCODER_BYTES, TOML_BYTES, decoded, given_bytes
from wardround.toml import loads
from wardround_client.config import HospitalConfig
from wardround_client.consent.agreement import Agreement
from wardround_client.privacy.ledger import Ledger

FILE, RECORD = "federation.toml", "approval.json"
RECORD_BYTES = 1 << 20
LEAST_DIGEST = 6
"""Hex digits that may stand for a digest."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposal:
    """A federation.toml and the encoder that it names, read once: what is shown, checked and stored is this.

    source: where it was read; toml, encoder: the bytes, None for no encoder; federation: what the bytes say.
    """

    source: Path
    toml: bytes = field(repr=False)
    encoder: bytes | None = field(repr=False)
    federation: Federation

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises: ConfigError."""
        text = agreement_text(file)
        federation = loads(text, Federation, name=str(file))
        name = federation.model.encoder
        do = "put the encoder that model.encoder names beside the federation.toml"
        encoder = None if name == "builtin" else given_bytes(file.parent / name, ENCODER_BYTES, do=do)
        return cls(file, text.encode(), encoder, federation)


class Approval(BaseModel):
    """What approval.json says beside the terms as they were shown; of an older version it says none of this.

    coordinator: whom the hospital was joined to. runs: how many run names of this agreement are answered, those among
    them that had begun before. until: when the last of them may begin; None: whenever.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    digest: str
    coordinator: str
    runs: Annotated[int, Field(ge=1)]
    until: AwareDatetime | None = None


class ApprovalFolder:
    """The folder `approved/` of a home: one folder a federation, named by its digest.

    Without federation.toml in it a folder approves nothing.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "approved"
        self._read: dict[str, tuple[bytes, Federation]] = {}  # digest -> its file's bytes, and what they say

    def store(self, proposal: Proposal, approval: Approval, terms: Mapping[str, object]) -> None:
        """Write what was read and the terms as they were shown; federation.toml, which makes it valid, comes last.

        Raises: StorageError.
        """
        federation, target = proposal.federation, self._folder / proposal.federation.digest
        record = {
            **terms,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "wardround": __version__,
            **approval.model_dump(mode="json"),
        }
        try:
            private_folder(self._folder)
            private_folder(target)
            sync_folder(self._folder)
            if proposal.encoder is not None:
                write_atomically(target / federation.model.encoder, proposal.encoder)
            write_atomically(target / RECORD, json.dumps(record, indent=2).encode() + b"\n")
            write_atomically(target / FILE, proposal.toml)
        except OSError as error:
            raise StorageError(f"{target} cannot be written ({error.strerror})", do="check the disk") from None

    def remove(self, digest: str) -> None:
        """Take an approval back: from this moment on it is none. Raises: StorageError."""
        target = self.folder(digest)
        try:
            (target / FILE).unlink(missing_ok=True)
            sync_folder(target)
            remove_folder(target)
        except OSError as error:
            raise StorageError(f"{target} cannot be removed ({error.strerror})", do="see who owns the home") from None

    def digests(self) -> frozenset[str]:
        """Digests of every approved federation."""
        return frozenset(file.parent.name for file in self._folder.glob(f"*/{FILE}"))

    def federation(self, digest: str) -> Federation:
        """The approved federation of that digest.

        Raises:
            PolicyRefusal: it was never approved, or its file was changed since.
        """
        file = self.folder(digest) / FILE
        try:
            text = read_bounded(file, TOML_BYTES)
        except OSError:
            raise PolicyRefusal(
                "approved", asked=f"federation {digest[:12]}", allowed="federations approved at the hospital"
            ) from None
        if digest in self._read and self._read[digest][0] == text:  # parsing takes longer than the rest of a round
            return self._read[digest][1]
        federation = loads(decoded(text, file, do="approve it again"), Federation, name=str(file), context=AS_APPROVED)
        if federation.digest != digest:
            raise PolicyRefusal(
                "approved", asked=f"federation {digest[:12]}", allowed="an approval whose file is unchanged"
            )
        self._read[digest] = (text, federation)
        return federation

    def find(self, named: str) -> str:
        """The digest of the approved federation of this name, digest or beginning of a digest; of the only one for "".

        Raises: ConfigError.
        """
        approved = sorted(self.digests())
        if named in approved:
            return named
        if not named and len(approved) != 1:
            raise ConfigError(
                "several federations are approved" if approved else "no federation is approved here",
                allowed=self._listed(approved),
                do="name one of them" if approved else "name a federation.toml, or approve one first",
            )
        found = [digest for digest in approved if self._name(digest) == named]
        if not found and (Path(named).suffix or "/" in named):  # a digest has neither
            raise ConfigError(f"{named}: no such file", do="correct the path, or name an approved federation")
        if not found and (not named or len(named) >= LEAST_DIGEST):
            found = [digest for digest in approved if digest.startswith(named.lower())]
        if len(found) == 1:
            return found[0]
        raise ConfigError(
            f"{named!r} is {'several approved federations' if found else 'not a file and not an approved federation'}",
            allowed=self._listed(found or approved)
            or f"a federation.toml; or an approved federation by its name, or by {LEAST_DIGEST} digits of its digest",
            do="name one of them by its digest" if found else "correct it, or approve the federation first",
        )

    def _listed(self, digests: Iterable[str]) -> str:
        return ", ".join(f"{digest[:12]} ({self._name(digest)})" for digest in digests)

    def _name(self, digest: str) -> str:
        try:
            return self.federation(digest).name
        except WardroundError:
            return "not usable"

    def folder(self, digest: str) -> Path:
        """Where the approved file and its encoder lie."""
        return self._folder / digest

    def bundles(self) -> frozenset[str]:
        """SHA-256 of every bundle that the approvals permit; an approval whose file is broken permits none."""
        permitted = set()
        for digest in self.digests():
            try:
                permitted.add(wardround.bundle.digest(self.federation(digest)))
            except (ConfigError, PolicyRefusal):
                log.warning("the approval of federation %s is not usable: approve it again", digest[:12])
        return frozenset(permitted)


class Approvals(ApprovalFolder):
    """What a hospital approved, and what it may do by it.

    Args:
        home: the hospital's folder.
        config: its hospital.toml.
        ledger: which runs have begun.
    """

    def __init__(self, home: Path, config: HospitalConfig, ledger: Ledger) -> None:
        super().__init__(home)
        self._config, self._ledger = config, ledger
        self._agreements: dict[str, Agreement] = {}

    def preview(self, offer: Path | Proposal) -> Agreement:
        """What approving this would mean; changes nothing. Raises: ConfigError, PolicyRefusal."""
        proposal = offer if isinstance(offer, Proposal) else Proposal.read(offer)
        return Agreement.of(proposal.federation, self._config, proposal.source.parent, proposal.encoder)

    def approve(
        self,
        offer: Path | Proposal,
        terms: Mapping[str, object] | None = None,
        *,
        runs: int = 1,
        until: datetime | None = None,
    ) -> Agreement:
        """Approve a federation.toml, or one that was read: check it against the policy, then store what was read.

        Args:
            offer: the file; or what a person was shown, which is not read again.
            terms: as they were shown.
            runs: how many runs of this agreement may begin, beside those that have.
            until: when the last of them may begin; None: whenever.

        Raises: ConfigError, PolicyRefusal, StorageError.
        """
        proposal = offer if isinstance(offer, Proposal) else Proposal.read(offer)
        agreement = self.preview(proposal)
        digest = proposal.federation.digest
        allowed = len(self._ledger.runs_of(digest)) + runs
        approval = Approval(
            digest=digest,
            coordinator=self._config.coordinator.identity,
            runs=allowed,
            until=until,
        )
        self.store(proposal, approval, terms or {})
        return agreement

    def agreement(self, digest: str) -> Agreement:
        """The approved agreement of that digest, kept warm. Raises: PolicyRefusal, ConfigError."""
        federation = self.federation(digest)  # asked each time: an approval can be withdrawn
        if digest not in self._agreements:
            self._agreements[digest] = Agreement.of(federation, self._config, self.folder(digest))
        return self._agreements[digest]

    def permit(self, digest: str, run: str) -> None:
        """Refuse a run that the approval of this agreement does not cover. Raises: PolicyRefusal."""
        begun = self._ledger.runs_of(digest)
        approval = self.approval(digest)
        if run not in begun and len(begun) >= approval.runs:
            raise PolicyRefusal(
                "approved",
                asked=f"another run, {run!r}",
                allowed=f"{approval.runs} of federation {digest[:12]}, as approved; approve again for one more",
            )
        if run not in begun and approval.until and datetime.now(UTC) > approval.until:
            raise PolicyRefusal(
                "approved",
                asked=f"another run, {run!r}",
                allowed=f"runs that began before {approval.until:%Y-%m-%d %H:%M} UTC; approve again for one more",
            )

    def approval(self, digest: str) -> Approval:
        """What approval.json says. Raises: PolicyRefusal: it cannot be read, or was given for another coordinator."""
        try:
            approval = Approval.model_validate_json(read_bounded(self.folder(digest) / RECORD, RECORD_BYTES))
        except (OSError, ValidationError):
            approval = None
        if approval is None or approval.digest != digest:
            raise PolicyRefusal(
                "approved",
                asked=f"federation {digest[:12]}",
                allowed="an approval that names its coordinator and its runs: approve again",
            )
        if approval.coordinator != self._config.coordinator.identity:
            raise PolicyRefusal(
                "approved",
                asked=f"federation {digest[:12]} by another coordinator",
                allowed="the one that the hospital was joined to when it approved: approve again",
            )
        return approval
