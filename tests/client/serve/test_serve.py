"""New studies in a real Orthanc are predicted, and reports lie beside them; by each protocol, once."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from tests.client.command_line import wardround
from tests.client.commands.test_masks_at_home import hospital
from tests.client.serve.served import served, settings, study
from tests.drawn import MASKS, discs
from tests.pacs import running_orthanc

from orthanc import Orthanc
from wardround.config import load_federation

PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as orthanc:
        yield orthanc


@pytest.fixture
def pacs(running: Orthanc) -> Orthanc:
    """Empty."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        for patient in client.get(f"{running.rest}/patients").json():
            client.delete(f"{running.rest}/patients/{patient}")
    return running


def by(protocol: str, pacs: Orthanc) -> dict[str, object]:
    if protocol == "dicomweb":
        return {"url": pacs.url}
    return {"address": f"127.0.0.1:{pacs.dimse}", "called": "ORTHANC"}


def content(pacs: Orthanc) -> list[Dataset]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        names = client.get(f"{pacs.rest}/instances").json()
        files = [client.get(f"{pacs.rest}/instances/{name}/file").content for name in names]
    return [pydicom.dcmread(io.BytesIO(file)) for file in files]


def reports(pacs: Orthanc) -> list[Dataset]:
    return sorted((each for each in content(pacs) if each.Modality == "SR"), key=lambda each: str(each.PatientID))


def check(data: Dataset, folder: Path) -> str:
    """An object as two independent programs see it -> its text. Errors of either are none."""
    path = folder / f"{data.SOPInstanceUID}.dcm"
    data.save_as(path)
    for program in ("dciodvfy", "dsrdump"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: Debian's packages dicom3tools and dcmtk")
    judged = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
    assert "Error" not in judged.stderr, judged.stderr
    if data.Modality != "SR":
        return ""
    dumped = subprocess.run(["dsrdump", "+Pn", path], capture_output=True, text=True)
    assert dumped.returncode == 0 and not re.search(r"^[EF]:", dumped.stderr, re.MULTILINE), dumped.stderr
    return dumped.stdout


@pytest.mark.parametrize("protocol", ["dicomweb", "dimse"])
def test_new_studies_get_a_report_each_and_no_second_one(
    home: Path, pacs: Orthanc, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*study(tmp_path / "new", 1), *study(tmp_path / "new", 2, images=3)]
    assert pacs.load(files) == 4
    settings(home, by(protocol, pacs))
    assert served(home, monkeypatch)
    found = reports(pacs)
    assert [each.PatientID for each in found] == ["NEW-1", "NEW-2"]
    for report, source in zip(found, (files[0], files[1]), strict=True):
        image = pydicom.dcmread(source)
        for keyword in PATIENT + STUDY:
            assert report[keyword].value == image[keyword].value, keyword
        text = check(report, tmp_path)
        assert "Not a medical device" in text and "Research only" in text and "epsilon 8" in text
        assert "model SHA-256" in text
    referred = [
        str(one.ReferencedSOPInstanceUID)
        for evidence in found[1].CurrentRequestedProcedureEvidenceSequence
        for series in evidence.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    assert sorted(referred) == sorted(path.parent.name + f".1.{path.name}" for path in files[1:])

    before = {each.SOPInstanceUID for each in content(pacs)}
    assert served(home, monkeypatch)
    assert {each.SOPInstanceUID for each in content(pacs)} == before
    assert not list((home / "serve" / "results").iterdir()) and not list((home / "serve" / "fetched").iterdir())


def test_the_command(home: Path, pacs: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With processes of its own."""
    pacs.load(study(tmp_path / "new", 7))
    settings(home, by("dicomweb", pacs))
    code, out, err = wardround(capsys, "serve", home, "--once", "--workers", 1)
    assert code == 0 and "is in the PACS" in out, err
    assert len(reports(pacs)) == 1
    code, out, _ = wardround(capsys, "serve", home, "--status")
    assert code == 0 and "in the PACS" in out
    for path in (home / "serve").rglob("*"):
        assert not path.stat().st_mode & 0o077, path
    log = (home / "serve.log").read_text()
    assert "NEW-7" not in log and "Neu" not in log and "1.2.826.9.7" not in log


def test_it_is_off_until_the_site_switches_it_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(home, {"url": "http://127.0.0.1:9"}, on=False)
    code, _, err = wardround(capsys, "serve", home, "--once")
    assert code == 2 and "not switched `serve` on" in err and not (home / "serve").exists()


def test_a_heat_map_lies_beside_its_image_and_json_stays_here(
    home: Path, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs.load(study(tmp_path / "new", 3, images=2))
    settings(home, by("dicomweb", pacs), write=["sr", "heatmap", "fhir"])
    assert served(home, monkeypatch)
    pictures = [each for each in content(pacs) if each.Modality == "OT"]
    assert len(pictures) == 2
    for picture in pictures:
        check(picture, tmp_path)
        assert picture.pixel_array.shape[2] == 3 and picture.PatientID == "NEW-3"
    (file,) = (home / "serve" / "fhir").iterdir()
    said = json.loads(file.read_text())
    assert said["resourceType"] == "DiagnosticReport" and said["subject"]["identifier"]["value"] == "NEW-3"
    assert {each["reference"] for each in said["result"]} == {f"#{each['id']}" for each in said["contained"]}
    assert said["identifier"][0]["value"] == f"urn:oid:{reports(pacs)[0].SOPInstanceUID}"


def test_a_model_of_masks_sends_segmentations(
    tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hospital(tmp_path_factory.mktemp("masks"), MASKS, discs)
    name = load_federation(made.home.parent / "federation.toml").name
    files = study(
        tmp_path / "new", 4, FrameOfReferenceUID="1.2.826.9.4.9", ImagePositionPatient=[0, 0, 0], SliceThickness=1,
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1], PositionReferenceIndicator="",
    )  # fmt: skip
    pacs.load(files)
    settings(made.home, by("dicomweb", pacs), models=[name], write=["sr", "seg"])
    assert served(made.home, monkeypatch)
    (found,) = [each for each in content(pacs) if each.Modality == "SEG"]
    check(found, tmp_path)
    (report,) = reports(pacs)
    text = check(report, tmp_path)
    assert "px" in text or "pixels" in text
    assert found.PatientID == report.PatientID == "NEW-4"
