"""An approved federation, and everything that a hospital derives from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import wardround.bundle
from wardround.accountant import Calibration, calibrate
from wardround.config import Federation
from wardround.models import Model, build_model
from wardround.schedule import Schedule
from wardround_client.config import HospitalConfig
from wardround_client.consent.policy import check, check_sizes


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
    def of(cls, federation: Federation, config: HospitalConfig, base: Path, encoder: bytes | None = None) -> Agreement:
        """Derive and check against the hospital's policy; `base` is the folder of a relative encoder file, `encoder`
        its bytes where they were read already.

        Raises: ConfigError, PolicyRefusal.
        """
        check_sizes(config, federation, base)
        schedule = Schedule.of(federation)
        model = federation.algorithm.extended(build_model(federation, base, encoder))
        calibration = calibrate(
            schedule,
            federation.privacy,
            declared_patients=config.hospital.declared_patients,
            delta=config.delta,
        )
        check(config, federation, schedule, calibration, model)
        return cls(federation, model, schedule, calibration, wardround.bundle.digest(federation))
