"""Write a hospital's images as DICOM files, and its labels as a CSV, as a PACS export would look.

The files name patients who do not exist, because real files name patients: there is something to remove.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset

from wardround.errors import StorageError
from wardround_simulation.phantoms.acquire import Acquisition, acquire
from wardround_simulation.phantoms.cohort import People, Plan, draw_people, draw_plan
from wardround_simulation.phantoms.hospitals import HospitalProfile, Scanner, make_profiles
from wardround_simulation.phantoms.marks import boxes, write_segmentation
from wardround_simulation.tasks import FINDINGS, TASKS

BATCH = 48
SOP_CLASS = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
}
SYNTAX = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg-ls": uid.JPEGLSLossless,
}
FAMILY = ("Muster", "Beispiel", "Sample", "Specimen", "Ejemplo", "Exemple", "Voorbeeld", "Esempio", "Eksempel")
GIVEN_FEMALE = ("Anna", "Maria", "Ingrid", "Lucia", "Claire", "Zofia", "Helen", "Aylin")
GIVEN_MALE = ("Jan", "Peter", "Marco", "Louis", "Tomas", "Erik", "David", "Emre")
Progress = Callable[[int, int], None]


def write_hospital(profile: HospitalProfile, folder: Path, *, progress: Progress | None = None) -> Path:
    """Write `folder`/dicom/<study>/<image> and `folder`/labels.csv.

    On one machine a profile always writes the same bytes.

    Args:
        profile: the hospital.
        folder: made if absent; files of an earlier call with the same profile are written over.
        progress: called with (images written, images in all) after every batch.

    Returns:
        The path of labels.csv: its first column is the profile's label_key, the others are those of TASKS.

    Raises:
        StorageError: a file cannot be written.
    """
    rng = np.random.default_rng(profile.seed)
    people, plan = draw_people(profile, rng), draw_plan(profile, rng)
    done = 0
    places: dict[str, str] = {}
    try:
        (folder / "dicom").mkdir(parents=True, exist_ok=True)
        for index, scanner in enumerate(profile.scanners):
            rows = np.flatnonzero(plan.scanner == index)
            for start in range(0, rows.size, BATCH):
                batch = rows[start : start + BATCH]
                scans = acquire(scanner, people, plan.patient[batch], rng)
                for i, row in enumerate(batch):
                    image = _Image(profile, scanner, people, plan, int(row))
                    written = _write_image(image, scans, i, folder / "dicom")
                    if profile.marks == "mask":
                        write_segmentation(written, scans.diseased[i], folder / "dicom")
                    elif profile.marks == "points":
                        nodule = people.disease.finding[image.patient] == FINDINGS.index("nodule")
                        places[image.instance_uid] = boxes(scans.diseased[i]) if nodule else "none"
                done += batch.size
                if progress is not None:
                    progress(done, plan.images)
        return _write_labels(profile, people, plan, folder / "labels.csv", places)
    except OSError as error:
        raise StorageError(
            f"The synthetic hospital {profile.name} could not be written to {folder}: {error.strerror or error}",
            do="free some space or choose another folder",
        ) from error


def write_small_hospital(folder: Path, *, patients: int = 20, seed: int = 0) -> Path:
    """One hospital with CT, MR and CR, quickly, for tests. Returns and raises: as `write_hospital`."""
    return write_hospital(make_profiles(1, patients=(patients, patients), seed=seed)[0], folder)


class _Image:
    """One image's identity: who, when, and its UIDs."""

    def __init__(self, profile: HospitalProfile, scanner: Scanner, people: People, plan: Plan, row: int) -> None:
        self.profile, self.scanner = profile, scanner
        self.patient, self.study = int(plan.patient[row]), int(plan.study[row])
        self.number = int(plan.number[row])
        self.age_years = int(people.age_years[self.patient])
        self.female = bool(people.female[self.patient])
        self.serial = (self.patient * 7919 + profile.seed) % 99_991
        self.patient_id = profile.id_format.format(self.serial)
        self.first_day = date(2024, 1, 8) + timedelta(days=self.serial % 600)
        self.day = self.first_day + timedelta(days=9 * self.study)
        self.study_uid = self._uid("study")
        self.series_uid = self._uid("series")
        self.frame_uid = self._uid("frame of reference")
        self.instance_uid = self._uid("image", str(self.number))

    def _uid(self, *what: str) -> uid.UID:
        """A UID that depends on nothing but the hospital and the image's place in it."""
        key = [self.profile.name, str(self.profile.seed), str(self.patient), str(self.study), *what]
        return uid.generate_uid(entropy_srcs=["/".join(key)])


def _write_image(image: _Image, scans: Acquisition, i: int, folder: Path) -> FileDataset:
    scanner = image.scanner
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SOP_CLASS[scanner.modality]
    meta.MediaStorageSOPInstanceUID = image.instance_uid
    packed = scanner.storage in ("rle", "jpeg-ls")
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if packed else SYNTAX[scanner.storage]
    path = folder / f"{image.patient:05d}-{image.study}" / f"IM{image.number + 1:04d}{image.profile.extension}"
    ds = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, image.instance_uid
    _identify(ds, image)
    _describe(ds, image)
    _pixels(ds, scanner, scans.pixels[i], bool(scans.inverted[i]), scans.windows[i])
    if packed:
        ds.compress(SYNTAX[scanner.storage], generate_instance_uid=False)
    path.parent.mkdir(exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return ds


def _identify(ds: FileDataset, image: _Image) -> None:
    """What de-identification has to remove (DICOM PS3.15 annex E)."""
    given = GIVEN_FEMALE if image.female else GIVEN_MALE
    ds.PatientName = f"{FAMILY[image.serial % len(FAMILY)]}^{given[image.serial // 9 % len(given)]}"
    ds.PatientID = image.patient_id
    born = image.first_day.replace(day=1) - timedelta(days=365 * image.age_years + image.serial % 365)
    ds.PatientBirthDate = born.strftime("%Y%m%d")
    ds.PatientSex = "F" if image.female else "M"
    ds.PatientAge = f"{image.age_years:03d}Y"
    ds.InstitutionName = f"{image.profile.name.replace('-', ' ').title()} Hospital"
    ds.ReferringPhysicianName = f"{FAMILY[(image.serial + 4) % len(FAMILY)]}^Dr"
    ds.OperatorsName = f"{FAMILY[(image.serial + 2) % len(FAMILY)]}^{GIVEN_MALE[image.serial % 8]}"
    ds.AccessionNumber = f"A{image.serial:07d}{image.study}"
    ds.StudyID = f"{image.serial}{image.study}"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = image.day.strftime("%Y%m%d")
    ds.StudyTime = ds.ContentTime = f"{8 + image.serial % 11:02d}{image.serial % 60:02d}00"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = image.study_uid, image.series_uid
    ds.private_block(0x0011, f"{image.scanner.manufacturer} 1.0", create=True).add_new(0x01, "LO", image.patient_id)


def _describe(ds: FileDataset, image: _Image) -> None:
    """The machine and the geometry."""
    scanner = image.scanner
    ds.Modality = scanner.modality
    ds.Manufacturer, ds.ManufacturerModelName = scanner.manufacturer, scanner.model
    ds.SeriesNumber, ds.InstanceNumber = 1 + image.study, 1 + image.number
    spacing = [scanner.spacing_mm, scanner.spacing_mm]
    if scanner.modality == "CR":
        ds.BodyPartExamined, ds.ViewPosition, ds.ImagerPixelSpacing = "CHEST", "PA", spacing
        ds.ImageType, ds.BurnedInAnnotation = ["DERIVED", "PRIMARY"], "NO"
        return
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PixelSpacing, ds.SliceThickness = spacing, 5.0
    ds.FrameOfReferenceUID = image.frame_uid
    corner = round(-scanner.spacing_mm * (scanner.matrix_px - 1) / 2, 4)
    ds.ImagePositionPatient = [corner, corner, 5.0 * image.number]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    if scanner.modality == "CT":
        ds.BodyPartExamined, ds.KVP, ds.ConvolutionKernel = "CHEST", 120, "B31"
        return
    ds.BodyPartExamined, ds.MRAcquisitionType = "HEAD", "2D"
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "SE" if scanner.fluid_bright else "IR", "SK", ""
    ds.RepetitionTime, ds.EchoTime = (4500, 95) if scanner.fluid_bright else (9000, 110)


def _pixels(
    ds: FileDataset, scanner: Scanner, pixels: npt.NDArray[np.generic], inverted: bool, window: npt.NDArray[np.float64]
) -> None:
    """The pixel module (DICOM PS3.3 C.7.6.3) and what turns stored values into displayed ones."""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored, ds.HighBit = scanner.bits_stored, scanner.bits_stored - 1
    ds.PixelRepresentation = int(scanner.signed)
    if scanner.slope is not None:
        ds.RescaleSlope, ds.RescaleIntercept = scanner.slope, scanner.intercept
        ds.RescaleType = "HU" if scanner.modality == "CT" else "US"
    if scanner.window:
        ds.WindowCenter, ds.WindowWidth = [round(float(value), 1) for value in window]
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"


def _write_labels(profile: HospitalProfile, people: People, plan: Plan, path: Path, places: Mapping[str, str]) -> Path:
    """One row a patient, a study or an image, by the hospital's own habit; places: by image, where nodules are."""
    labels = people.disease.labels()
    beside = ["place"] if places else ["age", "female"] if profile.slices else []
    rows: dict[str, list[str]] = {}
    scanners = profile.scanners
    for row in range(plan.images):
        image = _Image(profile, scanners[int(plan.scanner[row])], people, plan, row)
        key = {
            "PatientID": image.patient_id,
            "StudyInstanceUID": image.study_uid,
            "SOPInstanceUID": image.instance_uid,
        }[profile.label_key]
        about = {"age": image.age_years, "female": int(image.female), "place": places.get(image.instance_uid)}
        rows[key] = [*(labels[task][image.patient] for task in TASKS), *(str(about[name]) for name in beside)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([profile.label_key, *TASKS, *beside])
        writer.writerows([key, *values] for key, values in rows.items())
    return path
