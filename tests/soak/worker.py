"""The process that is killed: a real hospital home, whose rounds are answered one after the other until kill -9.

It says on a pipe what it is about to do, and sends each reply there, as it would send it to the coordinator. A frame
that was cut off by the kill was not sent.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests import rounds
from tests.intake import ingest_table

from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import answer

HOSPITAL_TOML = """
[hospital]
name = "north"
declared_patients = 60
[budget]
epsilon = 1000.0
[device]
compute = "cpu"
threads = 1
"""

FEDERATION_TOML = f"""
name = "soak"{rounds.TWO_COLUMNS}[privacy]
epsilon = 0.5
[rounds]
rounds = 40
evaluate_every = 4
"""

OPENED, ASKING, COMPUTING, REPLY = b"O", b"A", b"C", b"R"
_FRAME = struct.Struct("!cIII")  # what, run, round, length of what follows
Place = tuple[int, int]  # the number of a run, and of its round


def make_home(home: Path) -> Hospital:
    """A hospital with 60 patients, one approved federation, its examples in memory and an empty ledger on the disk."""
    hospital = Hospital.create(home, HOSPITAL_TOML)
    rng = random.Random(1)
    rows = [f"{rng.random():.4f},{rng.random():.4f},{rng.choice(['no', 'yes'])}" for _ in range(60)]
    (home / "table.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (home / "federation.toml").write_text(FEDERATION_TOML)
    ingest_table(
        home / "table.csv", home / "cohort", key=hospital.patients.key, features=["a", "b"], labels=["y"],
    )  # fmt: skip
    agreement = hospital.approvals.approve(home / "federation.toml", runs=1_000_000)
    hospital.examples(agreement)
    hospital.ledger.close()  # SQLite's connections do not survive a fork: each worker opens its own
    rehearsal = reopened(
        hospital, Ledger(None)
    )  # the first answer of a process takes half a second, here and not there
    for place, _ in zip(places(agreement, (0, 0)), range(6), strict=False):
        answer(rehearsal, request(agreement, place))
    rehearsal.ledger.close()
    return hospital


def reopened(warm: Hospital, ledger: Ledger) -> Hospital:
    """The same home as a new process opens it; only its examples, which a hospital keeps in memory, come along."""
    hospital = Hospital.open(warm.home, ledger=ledger)
    hospital.approvals._agreements, hospital.patients._examples = warm.approvals._agreements, warm.patients._examples
    return hospital


def run_name(run: int) -> str:
    """The name of the run of that number."""
    return f"run-{run}"


def request(agreement: Agreement, place: Place) -> bytes:
    """The one request that is ever made for a place."""
    run, number = place
    theta = np.random.default_rng(place).normal(size=agreement.model.layout.size).astype(np.float32)
    return rounds.request(agreement, number, run=run_name(run), theta=theta)


def request_sha256(agreement: Agreement, place: Place) -> str:
    """What the ledger must say of that request."""
    return hashlib.sha256(request(agreement, place)).hexdigest()


def places(agreement: Agreement, start: Place) -> Iterator[Place]:
    """All rounds from there on, run after run."""
    run, number = start
    while True:
        yield run, number
        run, number = (run, number + 1) if number + 1 < len(agreement.schedule) else (run + 1, 0)


def work(warm: Hospital, agreement: Agreement, ledger_class: type[Ledger], start: Place, pipe: int) -> None:
    """Open the home and answer, for ever."""
    place = start

    def say(what: bytes, payload: bytes = b"") -> None:
        frame = memoryview(_FRAME.pack(what, *place, len(payload)) + payload)
        while frame:
            frame = frame[os.write(pipe, frame) :]

    def open_cohort(*arguments: Any, **named: Any) -> PrivateCohort:
        if arguments[0].patients:  # the answer about nobody is made before the reservation
            say(COMPUTING)
        return PrivateCohort(*arguments, **named)

    hospital = reopened(warm, ledger_class(warm.home / "ledger.sqlite"))
    say(OPENED)
    for place in places(agreement, start):
        say(ASKING)
        say(REPLY, answer(hospital, request(agreement, place), open_cohort))


def frames(buffer: bytearray) -> Iterator[tuple[bytes, Place, bytes]]:
    """Take the whole frames out of what was read: what, where, and a reply's bytes."""
    while len(buffer) >= _FRAME.size:
        what, run, number, length = _FRAME.unpack_from(buffer)
        end = _FRAME.size + length
        if len(buffer) < end:
            return
        yield what, (run, number), bytes(buffer[_FRAME.size : end])
        del buffer[:end]
