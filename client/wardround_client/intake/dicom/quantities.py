"""What the values of a file measure, and the range of it that an agreement shows: HU of CT, SUV of PET.

A stretch of each image's own values to black and white would make one picture of a tumour and of a tenth of its uptake.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from wardround_client.intake.dicom.attributes import GREY, UnusableError, named, number, text
from wardround_client.intake.dicom.header import Header, Look
from wardround_client.intake.recipe import ImageRecipe

_PET = (
    "1.2.840.10008.5.1.4.1.1.128",  # Positron Emission Tomography
    "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
    "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
)
PET_WINDOW = (5.0, 10.0)
"""Centre and width in SUV, body weight, for PET where an agreement names no window: 0 is black, 10 is white."""

_LONGEST = timedelta(days=2)  # between injection and scan


@dataclass(frozen=True)
class Scale:
    """factor: modality values times it are the quantity. centre, width: what is shown of it."""

    factor: float
    centre: float
    width: float


def scale_of(header: Header, look: Look, recipe: ImageRecipe) -> Scale | None:
    """How the values of a frame are measured; None: they are not, but shown as a viewer would.

    Raises: UnusableError: an attribute that is needed for it is missing, or the file measures something else.
    """
    pet = header.sop_class in _PET and header.photometric in GREY
    if recipe.units == "display":
        return Scale(suv_factor(header.dataset), *PET_WINDOW) if pet else None
    if recipe.units == "SUV":
        if not pet:
            raise UnusableError("not PET, and the images are measured in SUV")
        return Scale(suv_factor(header.dataset), recipe.window[0], recipe.window[1])
    if header.modality != "CT" or header.photometric not in GREY or look.modality is None:
        raise UnusableError("not CT in HU, and the images are measured in HU")
    if look.rescale_type not in ("", "HU"):
        raise UnusableError(f"{named('RescaleType')} is not HU", look.rescale_type)
    return Scale(1.0, recipe.window[0], recipe.window[1])


def suv_factor(dataset: Dataset) -> float:
    """What modality values are multiplied by to be SUV by body weight in g/ml (PS3.3 C.8.9.1, Units and SUV Type).

    SUV = activity in Bq/ml x weight in g / dose in Bq, the dose as it was when the values are decay corrected to: the
    injection (ADMIN), or the start of the acquisition of the series (START).

    Raises: UnusableError, which names what is missing.
    """
    units = text(dataset, "Units").upper()
    if units == "GML":
        kind = text(dataset, "SUVType").upper() or "BW"
        if kind != "BW":
            raise UnusableError(f"{named('SUVType')} is not by body weight", kind)
        return 1.0
    if units != "BQML":
        reason = f"SUV needs {named('Units')} BQML or GML" if units else f"SUV needs {named('Units')}"
        raise UnusableError(reason, units)
    weight_kg = _needed(dataset, "PatientWeight", 0.2, 700)
    drugs = dataset.get("RadiopharmaceuticalInformationSequence")
    if not drugs:
        raise UnusableError(f"SUV needs {named('RadiopharmaceuticalInformationSequence')}")
    dose = _needed(drugs[0], "RadionuclideTotalDose", 1e5, 1e11)
    correction = text(dataset, "DecayCorrection").upper()
    if correction == "START":
        half_life_s = _needed(drugs[0], "RadionuclideHalfLife", 10, 1e8)
        dose *= 0.5 ** (_since_injection(dataset, drugs[0]).total_seconds() / half_life_s)
    elif correction != "ADMIN":
        raise UnusableError(f"SUV needs {named('DecayCorrection')} START or ADMIN", correction)
    return 1000 * weight_kg / dose


def _needed(dataset: Dataset, keyword: str, least: float, most: float) -> float:
    value = number(dataset, keyword)
    if value is None:
        raise UnusableError(f"SUV needs {named(keyword)}")
    if not least <= value <= most:
        raise UnusableError(f"{named(keyword)} makes no sense", f"{value:g}, allowed {least:g} to {most:g}")
    return value


def _since_injection(dataset: Dataset, drug: Dataset) -> timedelta:
    """From the injection to what START means: the series' time, unless a reconstruction gave it a later one."""
    start = _moment(dataset, "Series")
    acquired = _moment(dataset, "Acquisition")
    if start is None or (acquired is not None and acquired < start):
        start = acquired
    if start is None:
        raise UnusableError(f"SUV needs {named('SeriesDate')} and {named('SeriesTime')}")
    whole = text(drug, "RadiopharmaceuticalStartDateTime")
    injected = _parsed(whole[:8], whole[8:].split("+")[0].split("-")[0])
    if injected is None:
        injected = _parsed(start.strftime("%Y%m%d"), text(drug, "RadiopharmaceuticalStartTime"))
        if injected is None:
            raise UnusableError(f"SUV needs {named('RadiopharmaceuticalStartTime')}")
        if injected > start:  # the day before: only the time of day is known
            injected -= timedelta(days=1)
    if not timedelta(0) <= start - injected <= _LONGEST:
        raise UnusableError(f"{named('RadiopharmaceuticalStartDateTime')} is not before the scan")
    return start - injected


def _moment(dataset: Dataset, of: str) -> datetime | None:
    return _parsed(text(dataset, f"{of}Date"), text(dataset, f"{of}Time"))


def _parsed(date: str, time: str) -> datetime | None:
    """YYYYMMDD (or with dots) and HHMMSS.FFFFFF (or less of it, or with colons); None where there is no such moment."""
    date, time = date.replace(".", ""), time.replace(":", "")
    whole, _, fraction = time.partition(".")
    digits = (whole + "000000")[:6]
    if len(date) != 8 or len(time) < 2:
        return None
    try:
        moment = datetime.strptime(date + digits, "%Y%m%d%H%M%S")
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError:
        return None
