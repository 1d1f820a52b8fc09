"""An epsilon certificate: a file that shows a stranger, offline, that chain, prices and claim of a ledger fit together.

It holds every entry of the ledger as it was hashed, the rows that they amount to, and what epsilon is claimed for them,
signed with the hospital's node key. An entry holds public numbers: what was asked and paid, and of a reply its SHA-256,
its length and the norm of its noised numbers, all of which the coordinator has. An entry with a field that is not in
`FIELDS` is not shown to anybody.

`check` reads it again as a stranger does; `docs/how-to/verify_certificate.py` does so without wardround.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from wardround.accountant import Answers, epsilon, merged
from wardround.errors import DataError, PrivacyError
from wardround_client.clock import now
from wardround_client.config import HospitalConfig
from wardround_client.keys import PRIVATE, load_node_key, public_text
from wardround_client.privacy.chain import GENESIS, chained, text_of
from wardround_client.privacy.ledger import Ledger

VERSION = 1
_TOLERANCE = 2e-3  # between versions of the accountants
_ORDER = ec.SECP384R1().group_order
_EVERY = {"kind", "time", "run", "round", "federation", "coordinator", "question", "rows", "delta", "epsilon_after"}
FIELDS: dict[str, set[str]] = {
    "reserved": _EVERY | {"request_sha256", "bundle_sha256"},
    "released": _EVERY | {"bundle_sha256", "reservation", "layout", "norm", "bytes", "sha256"},
    "adopted": _EVERY | {"sha256"},
}
_LATER = {"question", "bundle_sha256"}  # the first ledgers did not write these two

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[StrictInt, Field(gt=0, le=10**9)]
Row = tuple[Annotated[float, Field(gt=0, le=1e9)], Annotated[float, Field(gt=0, le=1)], Count]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Body(_Strict):
    """An entry, as far as it decides."""

    model_config = ConfigDict(extra="ignore")

    kind: Literal["reserved", "released", "adopted"]
    run: str
    round: int
    federation: str
    coordinator: str
    rows: tuple[Row, ...]
    delta: float
    epsilon_after: float
    reservation: int = 0
    sha256: str = ""


class Certificate(_Strict):
    """The file. entries: text and digest of each. sha256: of all but itself and the signature, as canonical JSON."""

    wardround_certificate: Literal[1]
    hospital: Annotated[str, Field(max_length=200)]
    declared_patients: int
    time: Annotated[str, Field(max_length=64)]
    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    rows: tuple[Row, ...]
    head: Digest
    entries: tuple[tuple[str, Digest], ...]
    public_key: Annotated[str, Field(max_length=4096)]
    sha256: Digest
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{192})?$")]


@dataclass(frozen=True)
class Checked:
    """A certificate that holds. recomputed: epsilon of its rows. fingerprint: of the key that signed; "" for none.

    digests: of its entries and replies, by which who received a reply finds it. runs: their names.
    """

    certificate: Certificate
    recomputed: float
    fingerprint: str
    digests: frozenset[str]
    runs: tuple[str, ...]


def make(ledger: Ledger, config: HospitalConfig, key: ec.EllipticCurvePrivateKey | None) -> bytes:
    """The certificate of a ledger, checked; key: the node's, None where there is none, and it is not signed.

    Raises:
        PrivacyError: an entry holds more than is known to be public; or the ledger does not add up.
        DataError: the key is not on P-384.
        StorageError: the ledger cannot be read.
    """
    entries = ledger.entries()
    for entry in entries:
        if more := set(entry.body) - FIELDS.get(entry.kind, set()):
            raise PrivacyError(
                f"entry {entry.seq} of the ledger holds {', '.join(sorted(more))}, which nobody knows to be public",
                do="make the certificate with the version of wardround that wrote it",
            )
    paid = merged(Answers(*row) for entry in entries if entry.kind != "released" for row in entry.body["rows"])
    said: dict[str, Any] = {
        "wardround_certificate": VERSION,
        "hospital": config.hospital.name,
        "declared_patients": config.hospital.declared_patients,
        "time": now(),
        "epsilon": epsilon(paid, config.delta),
        "delta": config.delta,
        "rows": [[row.noise_multiplier, row.sampling_rate, row.count] for row in paid],
        "head": entries[-1].digest if entries else GENESIS,
        "entries": [[text_of(entry.body), entry.digest] for entry in entries],
        "public_key": public_text(key) if key is not None else "",
    }
    said["sha256"] = hashlib.sha256(text_of(said).encode()).hexdigest()
    said["signature"] = _signature(key, said["sha256"]) if key is not None else ""
    data = f"{json.dumps(said, indent=1)}\n".encode()
    check(data)
    return data


def key_of(home: Path) -> ec.EllipticCurvePrivateKey | None:
    """The node's key; None where the home has none. Raises: ConfigError, DataError."""
    key = load_node_key(home) if (home / PRIVATE).exists() else None
    if key is not None and not isinstance(key.curve, ec.SECP384R1):
        raise DataError(
            f"{home / PRIVATE} is a key on {key.curve.name}", allowed="a key on P-384, as `hospital init` makes it"
        )
    return key


def check(data: bytes) -> Checked:
    """Whether chain, prices, claim and signature of a certificate fit together. Raises: PrivacyError, if not."""
    try:
        raw = _parsed(data.decode())
        said = Certificate.model_validate_json(data)
        for text, _ in said.entries:
            _parsed(text)
    except (ValueError, RecursionError) as error:  # pydantic's and json's errors are ValueErrors
        what = (
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else error
        )
        raise _fails(f"it is no certificate of version {VERSION} ({what})") from None
    rest = {name: value for name, value in raw.items() if name not in ("sha256", "signature")}
    if hashlib.sha256(text_of(rest).encode()).hexdigest() != said.sha256:
        raise _fails("it was changed: its SHA-256 is another")
    fingerprint = _signed(said)
    bodies = list(_chained(said))
    paid = merged(Answers(*row) for body in bodies if body.kind != "released" for row in body.rows)
    if merged(Answers(*row) for row in said.rows) != paid:
        raise _fails("its rows are not the sum of what its entries paid")
    recomputed = epsilon(paid, said.delta)
    if not recomputed <= said.epsilon * (1 + _TOLERANCE):
        raise _fails(f"its rows cost epsilon {recomputed:.5g}, more than the claimed {said.epsilon:.5g}")
    digests = {digest for _, digest in said.entries} | {body.sha256 for body in bodies if body.sha256}
    runs = tuple(dict.fromkeys(body.run for body in bodies))
    return Checked(said, recomputed, fingerprint, frozenset({GENESIS, *digests}), runs)


def _chained(said: Certificate) -> Iterable[_Body]:
    """The entries, each of which may stand where it stands."""
    before = GENESIS
    reserved: dict[tuple[str, int], tuple[int, _Body]] = {}
    released: set[int] = set()
    latest: dict[str, int] = {}
    agreement: dict[str, str] = {}
    for number, (text, digest) in enumerate(said.entries, 1):
        before = chained(before, text)
        if before != digest:
            raise _fails(f"its chain is broken at entry {number}")
        body, names = _body(text, number)
        key = body.run, body.round
        if not FIELDS[body.kind] - _LATER <= names <= FIELDS[body.kind]:
            raise _fails(f"its entry {number} has other fields than an entry")
        if body.kind == "reserved":
            if key in reserved:
                raise _fails(f"its entry {number} pays a round for the second time")
            if body.round < latest.get(body.run, body.round):
                raise _fails(f"its entry {number} is of a round that was over")
            if agreement.setdefault(body.run, body.federation) != body.federation:
                raise _fails(f"its entry {number} is of another agreement than its run")
            reserved[key], latest[body.run] = (number, body), body.round
        elif body.kind == "released":
            of, price = reserved.get(key, (0, body))
            if not of or of != body.reservation or of in released:
                raise _fails(f"its entry {number} is the reply of nothing")
            if _paid(body) != _paid(price):
                raise _fails(f"its entry {number} is not what was paid for")
            released.add(of)
        yield body
    if before != said.head:
        raise _fails("its head is not the last entry's digest")


def _paid(body: _Body) -> tuple[object, ...]:
    return body.rows, body.federation, body.coordinator, body.delta, body.epsilon_after


def _body(text: str, number: int) -> tuple[_Body, set[str]]:
    try:
        return _Body.model_validate_json(text), set(json.loads(text))
    except ValueError:
        raise _fails(f"its entry {number} is none") from None


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object without a name twice, which two programs may read in two ways. Raises: ValueError."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice in one object")
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=once)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _message(sha256: str) -> bytes:
    return f"wardround: epsilon certificate\n{sha256}".encode()


def _signature(key: ec.EllipticCurvePrivateKey, sha256: str) -> str:
    """Both numbers, r and s, 96 hex digits each; of the two s that hold, the smaller."""
    r, s = utils.decode_dss_signature(key.sign(_message(sha256), ec.ECDSA(hashes.SHA384())))
    return f"{r:096x}{min(s, _ORDER - s):096x}"


def _signed(said: Certificate) -> str:
    """Fingerprint of the key that signed, as `ssh-keygen -l` shows it; "" where nobody did. Raises: PrivacyError."""
    if not (said.public_key or said.signature):
        return ""
    try:
        key = serialization.load_ssh_public_key(said.public_key.encode())
        r, s = int(said.signature[:96], 16), int(said.signature[96:], 16)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1) or s > _ORDER // 2:
            raise ValueError
        key.verify(utils.encode_dss_signature(r, s), _message(said.sha256), ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature):
        raise _fails("the signature is not of this key and this file") from None
    digest = hashlib.sha256(base64.b64decode(said.public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _fails(why: str) -> PrivacyError:
    return PrivacyError(
        f"the certificate does not hold: {why}", do="ask the hospital for another, and for its ledger's head"
    )
