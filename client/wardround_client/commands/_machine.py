"""What `setup` looks at: disk, GPU, clock, PACS, and the way to the coordinator."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from wardround.errors import StorageError, WardroundError
from wardround.text import shown
from wardround_client.commands.pull import chosen
from wardround_client.config import HospitalConfig
from wardround_client.flower.clock_skew import kept_by_ntp
from wardround_client.flower.connectivity import Step, steps
from wardround_client.flower.errors import NotRegistered
from wardround_client.hospital import Hospital
from wardround_client.keys import load_node_key
from wardround_client.service.daemon import MEMORY, coordinator_of, locked

ENOUGH_BYTES = 1_000_000_000  # 8 kB an image of 64 x 64 pixels, a ledger, logs

_NTP = {True: "keeps this clock", False: "does not keep this clock: switch it on", None: "nobody can tell"}


def look(home: Path) -> Iterator[Step]:
    """Each step as it is done; a failure ends those that need it. Raises: ConfigError, StorageError."""
    with locked(home):  # a second session under one key would end the daemon's
        hospital = Hospital.open(home)
        hospital.ledger.close()
        yield _tried("disk", partial(_disk, home))
        yield Step("GPU", _gpu())
        kept = kept_by_ntp()
        yield Step("NTP", _NTP[kept], soon=kept is False)
        if hospital.config.pacs.url or hospital.config.pacs.address:
            yield _tried("PACS", partial(_pacs, home, hospital.config))
        yield from steps(coordinator_of(hospital), partial(load_node_key, home), home / MEMORY)


def waits(step: Step) -> bool:
    """Whether its error is that the coordinator has not registered join.json yet."""
    return isinstance(step.error, NotRegistered)


def _tried(name: str, attempt: Callable[[], str]) -> Step:
    try:
        return Step(name, attempt())
    except WardroundError as error:
        return Step(name, error=error)


def _disk(home: Path) -> str:
    free = shutil.disk_usage(home).free
    if free < ENOUGH_BYTES:
        raise StorageError(f"{free / 1e6:,.0f} MB are free at {home}", allowed="1 GB", do="make room on the disk")
    return f"{free / 1e9:,.0f} GB free"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return shown(torch.cuda.get_device_name())
    return f"none, and none is needed ({os.cpu_count()} processors)"


def _pacs(home: Path, config: HospitalConfig) -> str:
    from wardround_client.intake.pacs.source import who_answers

    kind, settings = chosen(home, config.pacs)
    return f"{shown(who_answers(kind.archive, settings, home))} answers"
