"""What kind of image a DICOM file is, and whether the hospital's `[select]` takes it.

A study holds more than pictures of a patient: scouts, dose reports, derived series, raw data. Those that are no
clinical picture are left out unless the hospital allows them; the rest is the hospital's own choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from wardround_client.config import LeftOut, Select
from wardround_client.intake.dicom.attributes import UnusableError, text
from wardround_client.intake.source import Rejection

KIND = (
    "SOPClassUID",
    "ImageType",
    "ViewPosition",
    "BodyPartExamined",
    "SeriesDescription",
    "PresentationIntentType",
    "ComplexImageComponent",
    "LossyImageCompression",
)
"""Read to choose by, and not kept."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FOR_PROCESSING = {f"1.2.840.10008.5.1.4.1.1.1.{part}.1" for part in (1, 2, 3)}  # DX, mammography, intra-oral
_PHASE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"}
_SLICES = {"CT", "MR", "PT", "NM"}  # of which what is derived is no acquired image
_DOSE = re.compile(r"dose (report|info|summary)|patient protocol", re.IGNORECASE)
_DOSE_TYPES = {"CT_SOM5 PROT", "CT_SOM7 PROT", "DOSE_INFO", "DOSE REPORT"}
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")  # a code string: PS3.5 6.2, CS
_LONGEST = 256  # characters of a value that is compared


@dataclass(frozen=True)
class Kind:
    """What a file says of the kind of its image; all but sop_class in capitals, "" where it says nothing.

    sop_class: UID. image_type: its values. intent: Presentation Intent Type. component: Complex Image Component.
    burned_in: Burned In Annotation. lossy: compressed with loss, which alone makes a standard-keeping file DERIVED.
    """

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    view: str
    body_part: str
    series: str
    intent: str
    component: str
    burned_in: str
    lossy: bool

    @classmethod
    def of(cls, dataset: Dataset, sop_class: str) -> Kind:
        """Of a parsed file of that SOP class; what cannot be read of it is as if it were not there."""
        return cls(
            sop_class=str(sop_class),
            modality=_text(dataset, "Modality"),
            image_type=_values(dataset, "ImageType"),
            view=_text(dataset, "ViewPosition"),
            body_part=_text(dataset, "BodyPartExamined"),
            series=_text(dataset, "SeriesDescription"),
            intent=_text(dataset, "PresentationIntentType"),
            component=_text(dataset, "ComplexImageComponent"),
            burned_in=_text(dataset, "BurnedInAnnotation"),
            lossy=_text(dataset, "LossyImageCompression") == "01",
        )

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What speaks against a clinical picture: the rules that leave it out unless they are allowed."""
        rules: dict[LeftOut, bool] = {
            "localizer": bool({"LOCALIZER", "SCOUT", "TOPOGRAM"} & set(self.image_type)),
            "dose-report": bool(_DOSE.search(self.series)) or bool(_DOSE_TYPES & set(self.image_type)),
            "secondary-capture": _is(self.sop_class, SECONDARY_CAPTURE) and self.burned_in != "NO",
            "derived": self.image_type[:1] == ("DERIVED",) and not self._picture_though_derived,
            "mr-phase": self.modality == "MR" and bool(_PHASE & {*self.image_type[2:], self.component}),
            "mosaic": "MOSAIC" in self.image_type,
            "for-processing": self.intent == "FOR PROCESSING" or self.sop_class in FOR_PROCESSING,
        }
        return tuple(rule for rule, found in rules.items() if found)

    @property
    def _picture_though_derived(self) -> bool:
        """PRIMARY and derived is how a projection is processed for presentation, and what lossy compression makes."""
        return self.image_type[1:2] != ("SECONDARY",) and (self.modality not in _SLICES or self.lossy)

    @property
    def named(self) -> tuple[str, str, str]:
        """Modality, image type and view as they may be counted and shown: code strings, or "other"."""
        kind = " ".join(map(_code, filter(None, self.image_type[:4])))
        return _code(self.modality), kind, _code(self.view)


def left_out(kind: Kind, select: Select) -> Rejection | None:
    """Why a hospital's selection does not take an image, or None."""
    for rule in kind.left_out:
        if rule not in select.allow:
            return Rejection(f"[select] leaves out: {rule}", "", by_choice=True)
    name = UID(kind.sop_class).name
    choices = {
        "sop_classes": (select.sop_classes, (kind.sop_class, name)),
        "modalities": (select.modalities, (kind.modality,)),
        "image_types": (select.image_types, ("/".join(kind.image_type),)),
        "views": (select.views, (kind.view,)),
        "body_parts": (select.body_parts, (kind.body_part,)),
        "series": (select.series, (kind.series,)),
    }
    for setting, (patterns, values) in choices.items():
        if not fits(values, patterns):
            return Rejection(
                f"[select] leaves out: not in {setting}", " or ".join(filter(None, values)), by_choice=True
            )
    return None


def fits(values: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the names of a thing fits one of the patterns, if there are any, and none that begins with "!"."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return (not wanted or _any(values, wanted)) and not _any(values, unwanted)


def _any(values: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(value[:_LONGEST].casefold(), pattern.replace("\\", "/").replace("[", "[[]").casefold())
        for value in values
        for pattern in patterns
    )


def _is(sop_class: str, of: str) -> bool:
    return sop_class == of or sop_class.startswith(f"{of}.")


def _code(value: str) -> str:
    return value if not value or _CODE.fullmatch(value) else "other"


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return text(dataset, keyword)[:_LONGEST].upper()
    except UnusableError:
        return ""


def _values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    try:
        value = dataset.get(keyword)
    except Exception:  # whatever a damaged value raises, it says nothing
        return ()
    several = value if isinstance(value, list | tuple | MultiValue) else [value] if value else []
    return tuple(str(each).strip().strip("\0").strip().upper()[:_LONGEST] for each in several[:16])
