"""Which images of an archive are used: what is no clinical picture is left out, and the hospital chooses the rest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from tests.client.intake.dicom_files import ingest_folder, outcome, write_dicom

from wardround.errors import ConfigError
from wardround.toml import loads
from wardround_client.config import HospitalConfig, LeftOut, Select
from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.select import Kind, fits, left_out
from wardround_client.intake.source import Instance, Rejection, Rules

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)

CASES: list[tuple[LeftOut | None, dict[str, Any]]] = [
    (None, {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}),
    (None, {}),
    ("localizer", {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ("mosaic", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
    ("mr-phase", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
    ("mr-phase", {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}),
    ("mr-phase", {"Modality": "MR", "ComplexImageComponent": "PHASE"}),
    (None, {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}),
    (None, {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
    ("for-processing", {"Modality": "MG", "PresentationIntentType": "FOR PROCESSING"}),
    ("for-processing", {"Modality": "MG", "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.1.2.1")}),
    (None, {"Modality": "MG", "PresentationIntentType": "FOR PRESENTATION", "ImageType": ["DERIVED", "PRIMARY"]}),
    ("derived", {"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}),
    ("derived", {"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
    ("derived", {"Modality": "DX", "ImageType": ["DERIVED", "SECONDARY"]}),
    (None, {"Modality": "CT", "ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "LossyImageCompression": "01"}),
    ("secondary-capture", {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.7")}),
    (None, {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.7"), "BurnedInAnnotation": "NO"}),
    ("dose-report", {"Modality": "CT", "SeriesDescription": "Dose Report"}),
    ("dose-report", {"Modality": "CT", "ImageType": ["ORIGINAL", "SECONDARY", "AXIAL", "CT_SOM5 PROT"]}),
]


def write(path: Path, **said: Any) -> Path:
    write_dicom(path, PIXELS, **said)
    if "SOPClassUID" in said:  # the helper writes another into the file meta information
        from pydicom import dcmread

        data = dcmread(path)
        data.file_meta.MediaStorageSOPClassUID = said["SOPClassUID"]
        data.save_as(path)
    return path


def made(path: Path, select: Select) -> Instance | Rejection:
    from tests.client.intake.dicom_files import KEY

    from wardround_client.intake.dicom import instance_of
    from wardround_client.intake.pseudonyms import Pseudonyms
    from wardround_client.intake.recipe import ImageRecipe

    return instance_of(path, ImageRecipe(8, 1), Pseudonyms(KEY), Rules(select))


@pytest.mark.parametrize(("rule", "said"), CASES)
def test_what_is_no_clinical_picture_is_left_out_by_a_rule_that_can_be_allowed(
    tmp_path: Path, rule: LeftOut | None, said: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.dcm", **said)
    result = made(path, Select())
    if rule is None:
        assert isinstance(result, Instance), result
        return
    assert isinstance(result, Rejection) and result.reason == f"[select] leaves out: {rule}" and result.by_choice
    assert isinstance(made(path, Select(allow=(rule,))), Instance)
    others = tuple(other for other in get_args(LeftOut) if other != rule)
    assert isinstance(made(path, Select(allow=others)), Rejection)


SAID: dict[str, Any] = {
    "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ViewPosition": "PA", "BodyPartExamined": "CHEST",
    "SeriesDescription": "Thorax  1.0 [lung]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "fitting", "not_fitting"),
    [
        ("modalities", ["ct"], ["MR"]),
        ("modalities", ["MR", "C?"], ["!CT"]),
        ("image_types", ["original/primary/*"], ["*/LOCALIZER"]),
        ("image_types", [r"ORIGINAL\PRIMARY\AXIAL"], ["original"]),
        ("views", ["PA", "AP"], ["LL"]),
        ("body_parts", ["*chest*"], ["HEAD"]),
        ("series", ["thorax*[lung]"], ["*", "!*lung*"]),
        ("sop_classes", ["CT Image Storage"], ["MR*"]),
        ("sop_classes", ["1.2.840.10008.5.1.4.1.1.2"], ["!ct*"]),
    ],
)
def test_a_hospital_chooses_by_what_the_header_says(
    tmp_path: Path, setting: str, fitting: list[str], not_fitting: list[str]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, **SAID)
    assert isinstance(made(path, Select.model_validate({setting: fitting})), Instance)
    refused = made(path, Select.model_validate({setting: not_fitting}))
    assert isinstance(refused, Rejection) and refused.reason == f"[select] leaves out: not in {setting}"
    assert "CHEST" not in refused.reason and "lung" not in refused.reason


def test_the_number_of_slices_is_of_the_series_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    for series, count in {"1.7.1": 1, "1.7.2": 3, "1.7.3": 5}.items():
        for number in range(count):
            said: dict[str, Any] = {"SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.{number}"}
            write_dicom(folder / series / f"{number}.dcm", PIXELS, **said)
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-1,x\n")
    rules = Rules(Select(least_slices=2, greatest_slices=4))
    summary = ingest_folder(folder, tmp_path / "c", rules=rules)
    assert (summary.used, summary.reasons) == (3, {"[select] leaves out: number of slices": 6})
    for number in range(3):
        (folder / "1.7.3" / f"{number}.dcm").unlink()
    assert ingest_folder(folder, tmp_path / "c", rules=rules).used == 5


def test_the_summary_counts_by_modality_image_type_and_view(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    said: list[dict[str, Any]] = [
        SAID,
        {**SAID, "ViewPosition": "LL"},
        {"Modality": "MR"},
        {"Modality": "DX", "ViewPosition": "Doe^Jane"},
    ]
    for number, each in enumerate(said):
        with quiet():
            write_dicom(folder / f"{number}.dcm", PIXELS + number, SOPInstanceUID=f"1.8.{number}", **each)
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-1,x\n")
    summary = ingest_folder(folder, tmp_path / "c")
    assert summary.modalities == {"CT": 2, "DX": 1, "MR": 1}
    assert summary.image_types == {"ORIGINAL PRIMARY AXIAL": 2}
    assert summary.views == {"PA": 1, "LL": 1, "other": 1}, "a value that is no code is not shown"
    again = ingest_folder(folder, tmp_path / "c")
    assert again.modalities == summary.modalities and not again.views


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[select]\nallow = ["scout"]\n', "localizer"),
        ('[select]\nmodality = ["CT"]\n', "modalities"),
        ("[select]\nleast_slices = -1\n", "least_slices"),
        (f'[select]\nseries = ["{"*" * 65}"]\n', "series"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loads(f'[hospital]\nname = "a"\ndeclared_patients = 9\n{text}', HospitalConfig)


def test_no_pattern_takes_for_ever() -> None:
    started = time.process_time()
    assert not fits(("A" * 256,), ("*A" * 31 + "B",) * 32)
    assert time.process_time() - started < 10


patterns = st.lists(st.text(st.sampled_from("AB*?![]/\\"), min_size=1, max_size=8), max_size=4)


@given(value=st.text(st.sampled_from("ABab/[]"), max_size=8), given=patterns)
def test_a_pattern_never_raises_and_an_exclusion_only_takes_away(value: str, given: list[str]) -> None:
    wanted = [pattern for pattern in given if not pattern.startswith("!")]
    assert not fits((value,), given) or fits((value,), wanted)
    assert fits((value,), ()) and fits((value,), ("*",)) and not fits((value,), ("!*",))


@given(
    said=st.tuples(*[st.text(max_size=6)] * 7),
    image_type=st.lists(st.sampled_from(["DERIVED", "LOCALIZER", "P", "x\x1b[2J"]), max_size=4),
)
def test_a_reason_quotes_nothing_of_the_file(said: tuple[str, ...], image_type: list[str]) -> None:
    sop, modality, view, body, series, intent, burned = said
    kind = Kind(sop, modality, tuple(image_type), view, body, series, intent, "", burned, lossy=False)
    with quiet():
        result = left_out(kind, Select(modalities=("CT",)))
    known = {f"[select] leaves out: {rule}" for rule in (*get_args(LeftOut), "not in modalities")}
    assert result is None or result.reason in known
    assert all(not each or each.isprintable() for each in kind.named)


def test_the_cases_of_the_field_are_left_out_by_name(shared_data: Path) -> None:
    cases = shared_data / "dicom_cases" / "s05_localizer"
    if not cases.is_dir():
        pytest.skip("the cases are not here")
    found = {path.name.split("__")[0]: made(path, Select()) for path in sorted(cases.glob("*.dcm"))}
    assert {name: each.reason for name, each in found.items() if isinstance(each, Rejection)} == {
        "s05_localizer": "[select] leaves out: localizer",
        "s16_mosaic": "[select] leaves out: mosaic",
        "s17_mr_phase": "[select] leaves out: mr-phase",
        "s18_for_processing": "[select] leaves out: for-processing",
    }
    for name in ("s01_seg", "s02_rtdose"):
        assert "mask, a dose or a map" in str(outcome(shared_data / "dicom_cases" / name / "file.dcm"))
