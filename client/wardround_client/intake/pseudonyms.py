"""Identifiers -> keyed hashes of this hospital, which nobody can undo without its secret.key."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass

from wardround.errors import DataError

LEAST_BYTES = 16

LOST = "\ufffd"
"""REPLACEMENT CHARACTER: what a program writes for bytes that are no letter of the character set it was told."""


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 with the hospital's secret (RFC 2104); a domain word keeps the kinds of identifier apart.

    Without the key a pseudonym can neither be undone nor recomputed from a guessed PatientID.

    Raises: DataError, for a key that is too short.
    """

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) < LEAST_BYTES:
            raise DataError(
                f"the pseudonym key has {len(self.key)} bytes",
                allowed=f"{LEAST_BYTES} or more",
                do="use the hospital's secret.key",
            )

    def of(self, domain: str, value: str) -> bytes:
        """Pseudonym, bytes [32]; the same for values that differ only in Unicode form or DICOM padding (PS3.5 6.2)."""
        return self.exact(domain, unicodedata.normalize("NFC", value).strip().strip("\0").strip())

    def exact(self, domain: str, value: str) -> bytes:
        """As `of`, letter by letter: the names of two files, and two rows, may look alike."""
        return hmac.digest(self.key, f"{domain}\0{value}".encode("utf-8", "surrogateescape"), hashlib.sha256)

    def patient(self, patient_id: str, issuer: str = "") -> bytes:
        """Pseudonym of a Patient ID (0010,0020); with an issuer (0010,0021), of that issuer's patient."""
        if not issuer:
            return self.of("PatientID", patient_id)
        issued = self.of("IssuerOfPatientID", issuer).hex()
        return self.exact("PatientID of an issuer", f"{issued} {self.of('PatientID', patient_id).hex()}")

    def named(self, domain: str, value: str) -> bytes:
        """As `of`; b"" for an empty value."""
        return self.of(domain, value) if value else b""

    def study(self, uid: str) -> bytes:
        """Keyed hash of a Study Instance UID (0020,000D)."""
        return self.of("StudyInstanceUID", uid)

    def instance(self, uid: str) -> bytes:
        """Keyed hash of a SOP Instance UID (0008,0018)."""
        return self.of("SOPInstanceUID", uid)
