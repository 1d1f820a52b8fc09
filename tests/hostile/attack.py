"""What an attacker on the coordinator's side has at hand, and what a hospital must still be able to say afterwards."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from tests.rounds import TWO_COLUMNS, read, request

from wardround.wire import Refusal, RoundReply, peek_reply, reply_bytes
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer

SECRET = "PatientID-4711-Erika-Mustermann"
FEDERATION = f"""
name = "hearts"{TWO_COLUMNS}[rounds]
rounds = 3
evaluate_every = 3
"""


def taken_apart(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """A blob's outer JSON and its data, to be put together again wrongly."""
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def put_together(outer: dict[str, object] | str | bytes, data: bytes, *, length: int | None = None) -> bytes:
    """A blob of this outer JSON and data; length: what it says that the JSON is long, where it lies."""
    text = outer if isinstance(outer, str | bytes) else json.dumps(outer)
    raw = text.encode() if isinstance(text, str) else text
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def with_header(blob: bytes, **fields: object) -> bytes:
    """The blob with other or more fields in its header."""
    outer, data = taken_apart(blob)
    metadata = outer["__metadata__"]
    assert isinstance(metadata, dict)
    header = json.loads(metadata["wardround"]) | fields
    return put_together(outer | {"__metadata__": {"wardround": json.dumps(header)}}, data)


@dataclass
class Victim:
    """A hospital with one approved federation, and the proof that an attack changed nothing."""

    hospital: Hospital
    agreement: Agreement

    @classmethod
    def of(cls, home: Path) -> Self:
        """The hospital of that home, with an empty ledger in memory."""
        hospital = Hospital.open(home, ledger=Ledger(None))
        (digest,) = hospital.approvals.digests()
        return cls(hospital, hospital.approvals.agreement(digest))

    def state(self) -> tuple[object, ...]:
        """Everything of the ledger that an attack could move."""
        ledger = self.hospital.ledger
        return tuple(ledger.entries()), ledger.spent(self.hospital.config.delta), ledger.verify()

    def refuses(self, blob: bytes, error: str, rule: str = "") -> Refusal:
        """Attack, and assert that it is refused by name, says nothing else, costs nothing, and ends nothing."""
        before = self.state()
        reply = answer(self.hospital, blob)
        refusal = only_a_refusal(reply, self.hospital)
        assert (refusal.error, refusal.rule) == (error, rule), refusal
        assert self.state() == before
        self.still_answers()
        return refusal

    def still_answers(self) -> None:
        """A good request is answered."""
        run = f"after-{len(self.hospital.ledger.entries())}"
        reply = answer(self.hospital, request(self.agreement, 0, run=run))
        assert peek_reply(reply).refusal is None
        assert np.isfinite(read(self.agreement, reply, 0, run=run).answer).all()


def only_a_refusal(reply: bytes, hospital: Hospital) -> Refusal:
    """The refusal in a reply that holds nothing else: the same length always, no number but public ones."""
    header = peek_reply(reply)
    assert header.refusal is not None
    identity = hospital.config.hospital
    assert len(reply) == reply_bytes(0)
    assert RoundReply.unpack(reply, run=header.run, round=header.round, size=0).answer.shape == (0,)
    assert (header.hospital, header.declared_patients, header.epsilon) == (
        identity.name,
        identity.declared_patients,
        0.0,
    )
    for private in (SECRET, str(hospital.home), "Traceback", str(Path.home())):
        assert private.encode() not in reply
    return header.refusal


def bundle_with(files: dict[str, str]) -> bytes:
    """A bundle as Flower ships one, with these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()
