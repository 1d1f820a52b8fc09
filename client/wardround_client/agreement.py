"""What a hospital has approved: federation files in its own home, and everything that follows from one of them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import wardround.bundle
from wardround import __version__
from wardround.accountant import Calibration, calibrate
from wardround.config import Federation, load_federation
from wardround.errors import ConfigError, PolicyRefusal
from wardround.meta import extended
from wardround.models import Model, build_model
from wardround.schedule import Schedule
from wardround_client.config import HospitalConfig
from wardround_client.policy import check, check_sizes

RECORD = "approval.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """An approved federation and what this hospital derives from it, all from public numbers.

    bundle_sha256: the hash of the only bundle under which the hospital works for this federation.
    """

    federation: Federation
    model: Model
    schedule: Schedule
    calibration: Calibration
    bundle_sha256: str

    @classmethod
    def of(cls, federation: Federation, config: HospitalConfig, base: Path) -> Agreement:
        """Derive and check against the hospital's policy; `base` is the folder of a relative encoder file.

        Raises: ConfigError, PolicyRefusal.
        """
        check_sizes(config, federation, base)
        schedule = Schedule.of(federation)
        model = extended(build_model(federation, base), federation)
        calibration = calibrate(
            schedule,
            federation.privacy,
            declared_patients=config.hospital.declared_patients,
            delta=config.delta,
        )
        check(config, federation, schedule, calibration, model)
        return cls(federation, model, schedule, calibration, wardround.bundle.digest(federation))


class Approvals:
    """The folder `approved/`: one folder a federation, named by its digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[bytes, Federation]] = {}  # digest -> its file's bytes, and what they say

    def add(self, file: Path, terms: Mapping[str, object] | None = None) -> Federation:
        """Copy a federation.toml, and the encoder it names, under its digest; note when, and the terms as shown.

        Raises: ConfigError.
        """
        federation = load_federation(file)
        target = self._folder / federation.digest
        target.mkdir(parents=True, exist_ok=True)
        if federation.model.encoder != "builtin":
            weights = file.parent / federation.model.encoder
            if not weights.is_file():
                raise ConfigError(f"{file}: model.encoder names {weights}, which is not there", do="put it there")
            shutil.copyfile(weights, target / federation.model.encoder)
        record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "wardround": __version__, **(terms or {})}
        (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        scratch = target / "federation.toml.tmp"
        shutil.copyfile(file, scratch)
        os.replace(scratch, target / "federation.toml")
        return federation

    def digests(self) -> frozenset[str]:
        """Digests of every approved federation."""
        return frozenset(file.parent.name for file in self._folder.glob("*/federation.toml"))

    def federation(self, digest: str) -> Federation:
        """The approved federation of that digest.

        Raises:
            PolicyRefusal: it was never approved, or its file was changed since.
        """
        file = self.folder(digest) / "federation.toml"
        try:
            text = file.read_bytes()
        except OSError:
            raise PolicyRefusal(
                "approved", asked=f"federation {digest[:12]}", allowed="federations approved at the hospital"
            ) from None
        if digest in self._read and self._read[digest][0] == text:  # parsing takes longer than the rest of a round
            return self._read[digest][1]
        federation = load_federation(file)
        if federation.digest != digest:
            raise PolicyRefusal(
                "approved", asked=f"federation {digest[:12]}", allowed="an approval whose file is unchanged"
            )
        self._read[digest] = (text, federation)
        return federation

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
