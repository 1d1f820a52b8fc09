"""Synthetic hospitals: phantoms with findings, written as real DICOM files that differ as hospitals differ.

Everything here is drawn from seeded numpy generators: no patient is in it, and no privacy is claimed for it.
"""

from wardround_simulation.phantoms.dicom import write_hospital, write_small_hospital
from wardround_simulation.phantoms.hospitals import HospitalProfile, Scanner, for_task, make_profiles
from wardround_simulation.tasks import DEFAULT_TASK, FINDINGS, STUDIES, TASKS

__all__ = [
    "DEFAULT_TASK",
    "FINDINGS",
    "STUDIES",
    "TASKS",
    "HospitalProfile",
    "Scanner",
    "for_task",
    "make_profiles",
    "write_hospital",
    "write_small_hospital",
]
