"""Authorities over the years: when they end, said 30 days, 7 days and a day before; and which one follows which.

An authority that is to be replaced endorses the next one: it signs its certificate. Who knew the first can then tell
that the second is the same coordinator's, and not one that only shows somebody else's certificate beside its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

WARN_DAYS = (30, 7, 1, -1)  # the last: it has ended


def ends_of(pem: bytes) -> list[datetime]:
    """When each certificate of a PEM file ends. Raises: ValueError, when it holds none."""
    return [certificate.not_valid_after_utc for certificate in x509.load_pem_x509_certificates(pem)]


def days_left(end: datetime, at: datetime | None = None) -> int:
    """Whole days until then; negative, once it is over."""
    return (end - (at or datetime.now(UTC))).days


def until(end: datetime, at: datetime | None = None) -> str:
    """For a person: "2027-03-01, in 30 days"."""
    days = days_left(end, at)
    how = f"ENDED, {-days - 1} full days ago" if days < 0 else f"in {days} days"
    return f"{end:%Y-%m-%d}, {how}"


def passed(end: datetime, at: datetime | None = None) -> int | None:
    """The smallest of WARN_DAYS that is reached; None, while the end is farther off than all of them."""
    return min((days for days in WARN_DAYS if days_left(end, at) <= days), default=None)


def endorsement(key: ec.EllipticCurvePrivateKey, follower: x509.Certificate) -> str:
    """An authority's signature (ECDSA, SHA-384) of the one that follows it, in hex."""
    return key.sign(_endorsed(follower), ec.ECDSA(hashes.SHA384())).hex()


def continues(before: bytes, after: bytes, endorsements: Sequence[str]) -> bool:
    """Whether every authority of `after` (PEM) is one of `before`, or endorsed by one that is.

    Raises: ValueError, when either holds no certificate.
    """
    known, unknown = list(x509.load_pem_x509_certificates(before)), x509.load_pem_x509_certificates(after)
    for _ in unknown:  # one may follow another that follows
        known += [each for each in unknown if any(_endorses(one, each, sign) for one in known for sign in endorsements)]
    return all(each in known for each in unknown)


def _endorses(one: x509.Certificate, follower: x509.Certificate, signature: str) -> bool:
    key = one.public_key()
    with suppress(InvalidSignature, ValueError):
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(bytes.fromhex(signature), _endorsed(follower), ec.ECDSA(hashes.SHA384()))
            return True
    return False


def _endorsed(follower: x509.Certificate) -> bytes:
    return b"wardround: this authority follows\n" + follower.public_bytes(serialization.Encoding.DER)


class Countdown:
    """What has to be said now of some ends, and was not said before."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, datetime], int] = {}

    def due(self, ends: Mapping[str, datetime], at: datetime | None = None) -> list[str]:
        """A sentence for each end that came nearer than the next of WARN_DAYS since the last call."""
        lines = []
        for name, end in ends.items():
            stage = passed(end, at)
            if stage and stage < self._said.get((name, end), max(WARN_DAYS) + 1):
                self._said[name, end] = stage
                lines.append(f"{name} ends on {until(end, at)}")
        return lines
