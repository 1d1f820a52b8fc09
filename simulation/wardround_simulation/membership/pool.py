"""Candidates: the patients who took part, and strangers of the same kind who never did.

The strangers come from twins: hospitals with the scanners, the prevalence and the habits of one that took part, whose
patients were drawn from another seed. Their images take the same road, from DICOM files through the intake.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_simulation.phantoms import HospitalProfile
from wardround_simulation.sites import Site, Step, prepare

LEAST_OTHERS = 1000  # so that 0.1 % of them is a person
_SEEDS = 2**31  # profiles draw theirs below this: a twin's is above, so never another hospital's


@dataclass(frozen=True)
class Candidates:
    """The candidates of one hospital. examples: patients 0 .. members - 1 took part, the others did not."""

    hospital: Hospital
    agreement: Agreement
    examples: Examples
    members: int

    @property
    def name(self) -> str:
        """The hospital's."""
        return self.hospital.config.hospital.name

    @property
    def is_member(self) -> Tensor:
        """Bool [candidates], on the CPU."""
        return torch.arange(self.examples.patients) < self.members

    @classmethod
    def of(cls, hospital: Hospital, agreement: Agreement, strangers: Examples) -> Candidates:
        """The hospital's own patients and these strangers."""
        own = hospital.examples(agreement)
        return cls(hospital, agreement, joined(own, strangers), own.patients)


def joined(first: Examples, second: Examples) -> Examples:
    """Both cohorts as one; the second's patients are numbered after the first's."""
    return replace(
        first,
        z=torch.cat([first.z, second.z]),
        y=torch.cat([first.y, second.y]),
        patient=torch.cat([first.patient, second.patient + first.patients]),
        summary=torch.cat([first.summary, second.summary]),
        left_out=0,
        augmented=None
        if first.augmented is None or second.augmented is None
        else torch.cat([first.augmented, second.augmented]),
    )


def only(examples: Examples, patients: Tensor) -> Examples:
    """The examples of these patients (int64 [k], no duplicates), numbered anew."""
    return examples.subset(torch.isin(examples.patient, patients.to(examples.patient.device)))


def twin_of(profile: HospitalProfile, patients: int) -> HospitalProfile:
    """A hospital like this one with `patients` other patients, under other PatientIDs."""
    return replace(profile, seed=profile.seed + _SEEDS, patients=patients, id_format="N" + profile.id_format)


def twin_pools(
    sites: Sequence[Site],
    hospitals: Sequence[Hospital],
    agreements: Sequence[Agreement],
    *,
    folder: Path,
    compute: str,
    step: Step,
    least_others: int = LEAST_OTHERS,
) -> list[Candidates]:
    """Make the strangers of each synthetic hospital: as many as it has patients, `least_others` in all at least.

    Args:
        sites: those that took part, each with a profile.
        hospitals: of the sites.
        agreements: of the sites.
        folder: where the twins' images lie for a moment; nothing of them is left there.
        compute: as in `prepare`.
        step: is told how far the work is.
        least_others: of all pools together. Each gets a share in proportion to its members.

    Raises: DataError, StorageError.
    """
    profiles = [site.profile for site in sites if site.profile is not None]
    ratio = max(1.0, least_others / sum(profile.patients for profile in profiles))
    with tempfile.TemporaryDirectory(prefix=".twins-", dir=folder) as scratch:
        twins = [
            replace(site, home=Path(scratch) / site.name / "home", images=Path(scratch) / site.name, profile=twin)
            for site, profile in zip(sites, profiles, strict=True)
            for twin in [twin_of(profile, math.ceil(ratio * profile.patients))]
        ]
        made = prepare(twins, agreements[0].federation, compute=compute, step=_of_twins(step))
        pools = []
        for hospital, twin, agreement in zip(hospitals, made, agreements, strict=True):
            pools.append(Candidates.of(hospital, agreement, twin.examples(agreement)))
            step("encoding strangers", len(pools), len(sites))
    return pools


def _of_twins(step: Step) -> Step:
    """Their stages have names of their own, so that they get progress bars of their own."""
    return lambda stage, done, total: step(f"{stage} (strangers)", done, total)
