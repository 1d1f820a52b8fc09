"""Masks and points at home as a hospital types it: pictures -> a model of its own, what it is worth, new answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from tests.client.command_line import wardround
from tests.client.intake.dicom_files import write_dicom
from tests.client.personal.test_shared_model import model_of, write_release
from tests.drawn import MASKS, POINTS, disc, discs, spots

from wardround.cli import run
from wardround.config import load_federation
from wardround.onnx_files.session import Session
from wardround.planes import classes_in
from wardround_client.cohort.patients import Patients
from wardround_client.cohort.store import CohortStore
from wardround_client.intake.dicom.marked import planes_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.personal.kinds.points import METRICS as OF_POINTS
from wardround_client.personal.original import Original
from wardround_client.personal.segmentation import seg

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]


class Adapted(NamedTuple):
    home: Path
    card: dict[str, Any]

    @property
    def model(self) -> tuple[str, str]:
        """The option that names it: another may have been adapted beside it."""
        return "--adapted", load_federation(self.home.parent / "federation.toml").name


def hospital(folder: Path, federation: str, draw: Callable[[Path], Path], *more: str) -> Adapted:
    """A hospital with a cohort of what was drawn, adapted to it; beside it the federation, and a model that nobody
    trained.
    """
    (folder / "federation.toml").write_text(federation)
    agreed = load_federation(folder / "federation.toml")
    write_release(folder / "model", agreed, theta=model_of(agreed).initial().detach())
    assert run(["hospital", "init", str(folder / "home"), "--name", "here", "--patients", "12"]) == 0
    labels = ("--labels", str(draw(folder / "pictures") / "labels.csv"))
    given = ("--federation", str(folder / "federation.toml"), "--workers", "1")
    assert run(["hospital", "ingest", str(folder / "home"), str(folder / "pictures"), *labels, *given]) == 0
    with redirect_stdout(io.StringIO()) as said:
        assert run([*map(str, adapting(folder / "home")), *more]) == 0
    return Adapted(folder / "home", json.loads(said.getvalue()))


def adapting(home: Path) -> tuple[object, ...]:
    """The command."""
    given = ("--task", home.parent / "federation.toml", "--model", home.parent / "model", "--json")
    return ("hospital", "adapt", home, *given)


@pytest.fixture(scope="module")
def of_masks(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return hospital(tmp_path_factory.mktemp("masks"), MASKS, discs)


@pytest.fixture(scope="module")
def of_points(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return hospital(tmp_path_factory.mktemp("points"), POINTS, spots, "--tune")


def adapt(capsys: Capture, home: Path, *more: object) -> dict[str, Any]:
    """Adapt -> the card."""
    code, out, err = wardround(capsys, *adapting(home)[1:], *more)
    assert code == 0, err
    card: dict[str, Any] = json.loads(out)
    return card


def test_an_ingest_says_how_many_patients_show_each_class(of_masks: Adapted, capsys: Capture) -> None:
    home = of_masks.home
    pictures, federation = home.parent / "pictures", home.parent / "federation.toml"
    given = ("--labels", pictures / "labels.csv", "--federation", federation, "--workers", 1)
    code, out, err = wardround(capsys, "ingest", home, pictures, *given)
    assert code == 0 and "patients by mask" in out and "'background' 12, 'disc' 12" in out, err


def test_masks_are_adapted_to_and_judged(of_masks: Adapted, capsys: Capture) -> None:
    home, card = of_masks
    before, after = (card[when]["metrics"] for when in ("before", "after"))
    assert set(after) == {"dice", "surface_distance_95_px", "volume_error"}
    assert after["dice"]["low"] <= after["dice"]["value"] <= after["dice"]["high"]
    assert after["dice"]["value"] > 0.8 > before["dice"]["value"]
    assert after["surface_distance_95_px"]["value"] < 3
    assert set(card["after"]["manufacturers"]) == {"acme", "zeta"}
    assert card["after"]["images"] == 2 * card["after"]["patients"] == 2 * (12 - card["support_patients"])

    code, out, err = wardround(capsys, "evaluate", home, *of_masks.model, "--json")
    assert code == 0, err
    assert json.loads(out)["after"] == card["after"]
    code, out, err = wardround(capsys, "evaluate", home, *of_masks.model)
    assert code == 0, err
    assert "Dice coefficient" in out and "surface distance, px" in out and "Dice coefficient, zeta" in out
    assert "Not judged" not in out


def test_masks_are_tuned_on_the_support_and_the_model_is_judged_as_it_is(of_masks: Adapted, capsys: Capture) -> None:
    tuned = adapt(capsys, of_masks.home, "--tune", "--name", "tuned")
    assert tuned["after"]["metrics"]["dice"]["value"] > 0.8
    given = ("--task", of_masks.home.parent / "federation.toml", "--model", of_masks.home.parent / "model")
    code, out, err = wardround(capsys, "evaluate", of_masks.home, "--unadapted", *given, "--json")
    assert code == 0, err
    judged = json.loads(out)
    assert "after" not in judged and judged["before"]["patients"] == 12, "nobody was learned from"
    assert set(judged["before"]["metrics"]) == set(tuned["after"]["metrics"])
    assert judged["before"]["metrics"]["dice"]["value"] < tuned["after"]["metrics"]["dice"]["value"]
    code, out, err = wardround(capsys, "evaluate", of_masks.home, "--unadapted", *given)
    assert code == 0 and "as it is" in out and "Dice coefficient" in out, err


def test_a_model_of_masks_is_exported_as_one_file_that_draws_them(
    of_masks: Adapted, capsys: Capture, tmp_path: Path
) -> None:
    given = (of_masks.home, *of_masks.model, "--to", tmp_path / "file", "--json")
    code, out, err = wardround(capsys, "export", *given)
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    assert metrics["model.onnx"]["largest_difference_from_torch"] < 1e-4
    assert metrics["model.onnx"]["values"]["dice"]["value"] == pytest.approx(
        of_masks.card["after"]["metrics"]["dice"]["value"], abs=6e-3
    )
    with Image.open(next((of_masks.home.parent / "pictures").glob("*0.png"))) as picture:
        image = (np.asarray(picture.convert("L")) / 255).astype(np.float32)
    mask = Session((tmp_path / "file" / "model.onnx").read_bytes(), "mask")(image[None, None])
    assert mask.shape[0] == 1 and set(np.unique(mask)) == {0, 1}


def test_points_are_adapted_to_and_judged(of_points: Adapted, capsys: Capture) -> None:
    home, card = of_points
    before, after = (card[when]["metrics"] for when in ("before", "after"))
    assert tuple(after) == OF_POINTS
    assert after["cpm"]["value"] > max(0.8, before["cpm"]["value"])
    assert after["f1"]["value"] > 0.8
    code, out, err = wardround(capsys, "evaluate", home)
    assert code == 0, err
    assert "sensitivity at 1/8 false" in out


def predict(capsys: Capture, home: Path, *what: object) -> dict[str, Any]:
    """Predict -> predictions.json."""
    out = what[-1]
    code, _, err = wardround(capsys, "predict", home, *what[:-1], "--out", out, "--workers", 1)
    assert code == 0, err
    said: dict[str, Any] = json.loads((Path(str(out)) / "predictions.json").read_text())
    return said


def dice(a: Array, b: Array) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_new_mask_lies_where_the_shape_is(of_masks: Adapted, tmp_path: Path, capsys: Capture) -> None:
    rng, new, there = np.random.default_rng(7), tmp_path / "new", {}
    new.mkdir()
    for number, times in enumerate((1, 3, 1, 2, 1, 1)):
        picture, mask = (np.kron(each, np.ones((times, times), each.dtype)) for each in disc(rng))
        if number == 2:
            picture, mask = picture.T, mask.T
        there[f"{number}.png"] = mask > 0
        Image.fromarray(picture).save(new / f"{number}.png")
    out = tmp_path / "out"
    said, overlaps = predict(capsys, of_masks.home, new, *of_masks.model, "--heatmap", out), list[float]()
    for row in said["images"]:
        mask = np.asarray(Image.open(out / row["mask"]))
        true = there[Path(row["file"]).name]
        assert mask.shape == true.shape
        overlaps.append(dice(mask == 1, true))
        assert row["areas_px"] == {"disc": int((mask == 1).sum())}
        assert row["shares"]["disc"] == pytest.approx((mask == 1).mean(), abs=1e-6)
        assert "probabilities" not in row and "nearest" not in row
        assert (out / row["heatmap"]).read_bytes().startswith(b"\x89PNG")
        assert (row["segmentation"], row["no_segmentation"]) == ("", "not a DICOM file")
    assert np.mean(overlaps) > 0.8 and min(overlaps) > 0.7
    assert "area of disc in px" in (out / "patients.csv").read_text()
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*") if path.is_file())


def test_new_points_lie_where_the_spots_are(of_points: Adapted, tmp_path: Path, capsys: Capture) -> None:
    new = spots(tmp_path / "new", patients=6, seed=5)
    said = predict(capsys, of_points.home, new, "--heatmap", tmp_path / "out")
    with (new / "labels.csv").open(newline="") as file:
        cells = {line["file"]: line["spots"] for line in csv.DictReader(file)}
    found = right = wanted = 0
    for row in said["images"]:
        places = [
            tuple(map(float, each.split()[1:3])) for each in cells[Path(row["file"]).name].split(";") if " " in each
        ]
        wanted += len(places)
        found += row["counts"]["disc"]
        right += sum(
            any(np.hypot(each["x"] - x - 4, each["y"] - y - 4) < 4 for each in row["findings"]) for x, y in places
        )
    assert right > 0.8 * wanted and right > 0.7 * found
    with (tmp_path / "out" / "findings.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == found and {line["class"] for line in lines} == {"disc"}
    assert said["refused"][0]["reason"] == "not DICOM", "labels.csv"


def write_ct(folder: Path, patient: int, number: int, picture: Array, mask: Array | None) -> Path:
    """A CT slice with the disc's segmentation beside it, as a radiologist's program writes it."""
    file = write_dicom(
        folder / f"p{patient}-{number}.dcm", picture, PatientID=f"P{patient}", PatientName="Doe^Jane", Modality="CT",
        StudyInstanceUID=f"1.2.{patient}", SeriesInstanceUID=f"1.2.{patient}.1", FrameOfReferenceUID=f"1.2.{patient}.9",
        ImagePositionPatient=[0, 0, 3 * number], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1],
        SliceThickness=3, WindowCenter=128, WindowWidth=256, InstanceNumber=number, Manufacturer="Acme",
    )  # fmt: skip
    if mask is not None:
        source = pydicom.dcmread(file, stop_before_pixels=True)
        content = seg(source, [Original(0, *mask.shape)], [mask.astype(np.uint8)], ("background", "Disc"))
        (folder / f"seg-{patient}-{number}.dcm").write_bytes(content)
    return file


def rows_of(home: Path) -> list[bytes]:
    """Each row of a cohort of 32 px with a plane beside one channel."""
    data, size = (home / "cohort" / "inputs.bin").read_bytes(), 2 * 32 * 32 * 2
    return [data[at : at + size] for at in range(0, len(data), size)]


def pseudonym_of(home: Path, patient: str) -> bytes:
    return Pseudonyms(Patients(home).key).patient(patient)


def with_(**attributes: object) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def as_dicom(folder: Path, pictures: Array) -> Path:
    """An Enhanced CT, which says of each frame where it lies."""
    lies = with_(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared = with_(
        PixelMeasuresSequence=[with_(PixelSpacing=[1, 1], SliceThickness=3)], PlaneOrientationSequence=[lies]
    )
    frames = [
        with_(PlanePositionSequence=[with_(ImagePositionPatient=[0, 0, 3 * number])]) for number in range(len(pictures))
    ]
    return write_dicom(
        folder / "n.dcm", pictures, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", Modality="CT", SeriesInstanceUID="1.2.8",
        FrameOfReferenceUID="1.2.9", SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
        WindowCenter=128, WindowWidth=256, Manufacturer="Acme",
    )  # fmt: skip


def as_nifti(folder: Path, pictures: Array) -> Path:
    """Of a scanner whose first axis goes left and whose second goes back, as a radiologist looks."""
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(pictures.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "n.nii.gz")
    return folder / "n.nii.gz"


def as_tiff(folder: Path, pictures: Array) -> Path:
    first, *others = map(Image.fromarray, pictures)
    first.save(folder / "n.tiff", save_all=True, append_images=others)
    return folder / "n.tiff"


@pytest.mark.parametrize("written", [as_dicom, as_nifti, as_tiff])
def test_each_slice_of_a_file_of_several_gets_its_own_mask(
    of_masks: Adapted, written: Callable[[Path, Array], Path], tmp_path: Path, capsys: Capture
) -> None:
    rng = np.random.default_rng(11)
    drawn = [disc(rng) for _ in range(3)]
    file = written(tmp_path, np.stack([picture for picture, _ in drawn]))
    said = predict(capsys, of_masks.home, file, *of_masks.model, tmp_path / "out")
    assert len(said["images"]) == 3 and not said["refused"]
    for row, (_, true) in zip(said["images"], drawn, strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert mask.shape == true.shape and dice(mask == 1, true) > 0.7
    if written is as_dicom:
        files = {row["segmentation"] for row in said["images"]}
        assert len(files) == 1 and all(files), said["images"][0]["no_segmentation"]
        planes = planes_of(file, [tmp_path / "out" / name for name in files], ("background", "disc"), [0, 1, 2])
        masks = [np.asarray(Image.open(tmp_path / "out" / row["mask"])) for row in said["images"]]
        np.testing.assert_array_equal(classes_in(planes, 2), np.stack(masks))


def test_dicom_and_segmentations_in_masks_and_segmentations_out(tmp_path: Path, capsys: Capture) -> None:
    rng, files = np.random.default_rng(3), tmp_path / "dicom"
    for patient in range(10):
        for number in range(2):
            write_ct(files, patient, number, *disc(rng))
    agreed = tmp_path / "federation.toml"
    agreed.write_text(MASKS)
    write_release(
        tmp_path / "model", load_federation(agreed), theta=model_of(load_federation(agreed)).initial().detach()
    )
    home = tmp_path / "home"
    assert wardround(capsys, "init", home, "--name", "here", "--patients", 10)[0] == 0
    code, out, err = wardround(capsys, "ingest", home, files, "--federation", agreed, "--workers", 1)
    assert code == 0, out + err
    card = adapt(capsys, home)
    assert card["after"]["metrics"]["dice"]["value"] > 0.8

    picture, true = disc(rng)
    new = write_ct(tmp_path / "new", 77, 0, picture, None)
    dataset = pydicom.dcmread(new)
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Änne"
    dataset.save_as(new)
    said = predict(capsys, home, new, tmp_path / "out")
    (row,) = said["images"]
    assert row["no_segmentation"] == ""
    written = pydicom.dcmread(tmp_path / "out" / row["segmentation"])
    assert written.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4" and written.PatientID == "P77"
    assert written.PatientName == "Müller^Änne", "whatever the character set was"
    assert written.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
        pydicom.dcmread(new).SOPInstanceUID
    )
    assert [each.SegmentLabel for each in written.SegmentSequence] == ["disc"]
    assert written.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "wardround"
    mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
    assert dice(mask > 0, true) > 0.8
    np.testing.assert_array_equal(written.pixel_array > 0, mask > 0)
    back = planes_of(new, [tmp_path / "out" / row["segmentation"]], ("background", "disc"), [0])
    np.testing.assert_array_equal(classes_in(back[0], 2), mask)
    assert not any("Doe" in path.name or "77" in path.name for path in (tmp_path / "out" / "masks").iterdir())

    before, stored = rows_of(home), CohortStore.open(home / "cohort", withdrawn=())
    gone = {
        row for row, patient in enumerate(stored.patients) if stored.pseudonyms[patient] == pseudonym_of(home, "P0")
    }
    assert len(gone) == 2 and all(row[len(row) // 2 :].strip(b"\0") for row in before[::2]), "planes are there"
    code, out, _ = wardround(capsys, "withdraw", home, "P0", "--erase", "--json")
    assert code == 0, out
    for number, (old, row) in enumerate(zip(before, rows_of(home), strict=True)):
        assert row == (bytes(len(old)) if number in gone else old), "picture and plane of this patient, and of no other"
    assert len(CohortStore.open(home / "cohort", withdrawn=())) == 18 and not list((home / "cohort/features").glob("*"))
    adapt(capsys, home, "--overwrite")
