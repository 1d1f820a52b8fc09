"""Every file is used or refused for a reason that names the tag or the decoder; none gets through with an identity."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tests.client.intake.dicom_files import KEY, outcome, reason, write_dicom

from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.header import read
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"


def test_every_file_that_pydicom_brings_is_used_or_refused() -> None:
    results = {path: outcome(path) for path in sorted(BUNDLED.rglob("*")) if path.is_file()}
    refused = {path: r for path, r in results.items() if isinstance(r, Rejection)}
    assert len(results) > 150 and len(results) - len(refused) >= 60
    for path, rejection in refused.items():
        named = ("not DICOM", "cannot decode", "damaged", "the file is cut off")
        assert "(" in rejection.reason or rejection.reason.startswith(named), (path, rejection)
        assert "damaged" not in rejection.reason, (path, rejection)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MR_truncated.dcm", "Pixel Data (7FE0,0010) is truncated"),
        ("badVR.dcm", "SOP Class UID (0008,0016) is of a mask, a dose or a map"),
        ("meta_missing_tsyntax.dcm", "no Patient ID (0010,0020)"),
        ("rtplan_truncated.dcm", "the file is cut off"),
        ("test-SR.dcm", "no Pixel Data (7FE0,0010)"),
        ("dicomdirtests/DICOMDIR", "no Pixel Data (7FE0,0010)"),
        ("ExplVR_BigEnd.dcm", "no Patient ID (0010,0020)"),
        ("README.txt", "not DICOM"),
        ("no_meta.dcm", "not DICOM"),
    ],
)
def test_known_defects_have_known_reasons(name: str, expected: str) -> None:
    assert reason(BUNDLED / name).startswith(expected)


def test_all_real_images_are_used(shared_data: Path) -> None:
    files = [path for path in (shared_data / "dicom").rglob("*.dcm") if path.is_file()]
    assert len(files) >= 66
    for path in files:
        result = outcome(path)
        if isinstance(result, Rejection) and result.reason.startswith(("no Pixel Data", "SOP Class UID")):
            continue  # contours, reports, masks, doses
        assert isinstance(result, Instance), (path, result)
        assert result.rows.max() > result.rows.min()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientID": None}, "no Patient ID (0010,0020)"),
        ({"PatientID": "   "}, "no Patient ID (0010,0020)"),
        ({"SOPInstanceUID": None}, "no SOP Instance UID (0008,0018)"),
        ({"PixelData": None}, "no Pixel Data (7FE0,0010)"),
        ({"Rows": 0}, "Rows (0028,0010) is less than 1"),
        ({"Columns": None}, "no Columns (0028,0011)"),
        ({"Rows": 60000, "Columns": 60000}, "Rows (0028,0010) x Columns (0028,0011) is larger than the limit"),
        ({"NumberOfFrames": -1}, "Number of Frames (0028,0008) is less than 1"),
        ({"BurnedInAnnotation": "YES"}, "Burned In Annotation (0028,0301) is YES"),
    ],
)
def test_what_is_missing_or_too_large_is_refused(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    assert reason(write_dicom(tmp_path / "a", PIXELS, **attributes)) == expected


def test_burned_in_text_can_be_allowed(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", PIXELS, BurnedInAnnotation="YES")
    assert isinstance(outcome(path, allow_burned_in=True), Instance)


def test_a_deflate_bomb_is_measured_before_it_is_inflated(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", PIXELS, syntax=DeflatedExplicitVRLittleEndian)
    assert isinstance(outcome(path), Instance)
    head = path.read_bytes()
    start = 144 + int.from_bytes(head[140:144], "little")
    squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(head[:start] + squeezed.compress(bytes(1 << 22)) + squeezed.flush())
    assert path.stat().st_size < 10_000
    assert reason(path, greatest_bytes=1 << 20) == "deflated data set is larger than the limit"


def test_only_the_allowlist_is_read(tmp_path: Path) -> None:
    refused: dict[str, Any] = {
        "InstitutionName": "St Elsewhere",
        "ReferringPhysicianName": "A1",
        "ManufacturerModelName": "CT 300",
        "DeviceSerialNumber": "17",
    }
    path = write_dicom(tmp_path / "a", PIXELS, Manufacturer="Aurelia", **refused)
    with quiet():
        names = {element.keyword for element in read(path, ImageRecipe(16, 1)).dataset}
    assert not names & {"PatientName", "PatientAddress", *refused} and "Manufacturer" in names


@pytest.mark.parametrize(
    ("written", "found"),
    [(None, ""), ("", ""), (" Aurelia Imaging ", "Aurelia Imaging"), (["Aurelia", "Boreal"], "Aurelia")],
)
def test_the_manufacturer_is_read_and_its_absence_costs_no_image(tmp_path: Path, written: object, found: str) -> None:
    result = outcome(write_dicom(tmp_path / "a", PIXELS, Manufacturer=written))
    assert isinstance(result, Instance) and result.manufacturer == found


def test_a_manufacturer_that_cannot_be_read_costs_no_image(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", PIXELS, Manufacturer="Aurelia Imaging")
    content = path.read_bytes()
    assert content.count(b"LO\x10\0Aurelia Imaging ") == 1
    # The same bytes under a binary kind of value whose elements are 8 bytes long: 15 of them cannot be one.
    path.write_bytes(content.replace(b"LO\x10\0Aurelia Imaging ", b"FD\x0f\0Aurelia Imaging"))
    result = outcome(path)
    assert isinstance(result, Instance) and result.manufacturer == ""


def test_pseudonyms_depend_on_the_key_and_the_kind_but_not_on_padding() -> None:
    mine, other = Pseudonyms(KEY), Pseudonyms(bytes(32))
    assert mine.patient("PAT-1") == mine.patient(" PAT-1 ") != mine.patient("PAT-2")
    assert mine.patient("1.2") != other.patient("1.2")
    assert len({mine.patient("1.2"), mine.study("1.2"), mine.instance("1.2")}) == 3


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(position=st.integers(0, 900), junk=st.binary(min_size=1, max_size=40), cut=st.integers(0, 1200))
def test_no_damage_escapes_as_an_exception(tmp_path: Path, position: int, junk: bytes, cut: int) -> None:
    source = tmp_path / "source"
    if not source.exists():
        write_dicom(source, PIXELS, WindowCenter=[1, 2], WindowWidth=[3, 4], PixelPaddingValue=3)
    content = bytearray(source.read_bytes())
    content[position : position + len(junk)] = junk
    damaged = tmp_path / "damaged"
    damaged.write_bytes(bytes(content[: max(len(content) - cut, 0)] if cut < 600 else content))
    assert isinstance(outcome(damaged), Instance | Rejection)


def test_an_unreadable_or_absent_file_is_a_reason(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent") == "not a regular file"
    shutil.copy(BUNDLED / "CT_small.dcm", tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert reason(tmp_path / "link") == "not a regular file"
