"""A hospital's real daemon against a hostile coordinator, in this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.fleet import DEADLINE_S, HostileFleet

from wardround.cli import run
from wardround_client.consent.agreement import Agreement
from wardround_client.service.daemon import Daemon


@dataclass
class Besieged:
    """A daemon that is up, and the coordinator that it joined."""

    daemon: Daemon
    fleet: HostileFleet
    agreement: Agreement

    @property
    def bundle(self) -> str:
        """The approved bundle's hash."""
        return self.agreement.bundle_sha256

    def ledger_entries(self) -> int:
        """How many entries the ledger on the disk has."""
        return len(self.daemon.hospital.ledger.entries())


@contextmanager
def besieged(template: Path, folder: Path) -> Iterator[Besieged]:
    """A copy of a home, joined to a fresh hostile coordinator, with its daemon running until the end."""
    home = folder / "home"
    shutil.copytree(template, home)
    toml = (home / "hospital.toml").read_text()
    (home / "hospital.toml").write_text(
        toml.replace("epsilon = 10.0", "epsilon = 1e6")
    )  # each test asks good rounds too
    with HostileFleet(folder) as fleet:
        assert run(["hospital", "join", str(home), "--address", fleet.address, "--ca", str(fleet.ca)]) == 0
        (approved,) = (home / "approved").glob("*/federation.toml")
        assert run(["hospital", "approve", str(home), str(approved), "--yes", "--runs", "100", "--anyway"]) == 0
        daemon = Daemon(home, poll_s=0.02)
        error: list[BaseException] = []

        def serve() -> None:
            try:
                daemon.run()
            except BaseException as problem:
                error.append(problem)
                fleet.wake()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            fleet.until(lambda: bool(error) or "/v1/fleet/activate-node" in fleet.paths())
            assert not error
            (digest,) = daemon.hospital.approvals.digests()
            yield Besieged(daemon, fleet, daemon.hospital.approvals.agreement(digest))
            assert thread.is_alive(), error
        finally:
            daemon.stop.set()
            thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert not error
