"""How fast CT slices become a cohort, uncompressed and in JPEG 2000, what bounds it, and whether memory stays flat.

    python benchmarks/ingest.py [--slices 1000] [--workers 2] [--json]

Writes synthetic, uncompressed 512 x 512 CT slices to a temporary folder and ingests them with the real intake, in a
process of its own each time, so that the peak of its memory (and of its workers) can be told.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from openjpeg.utils import decode as decode_jpeg_2000
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.decode import decoded
from wardround_client.intake.dicom.header import read
from wardround_client.intake.dicom.pixels import fit, grey, images_of, quantise
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, opened

KEY = bytes(32)


def write_slices(folder: Path, count: int) -> None:
    """CT slices of 512 x 512, 8 a patient, and labels.csv."""
    rng = np.random.default_rng(1)
    base = rng.normal(1000, 300, (512, 512)).astype(np.int16)
    for i in range(count):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID(f"1.2.3.{i}")
        data.PatientID, data.StudyInstanceUID, data.Modality = f"P{i // 8}", f"1.2.4.{i // 8}", "CT"
        data.Rows = data.Columns = 512
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
        data.PixelPaddingValue = -2000
        data.PixelData = np.roll(base, i, axis=1).tobytes()
        data.save_as(folder / f"{i:06}.dcm", enforce_file_format=True)
    lines = "".join(f"P{p},{'ab'[p % 2]}\n" for p in range((count + 7) // 8))
    (folder / "labels.csv").write_text("PatientID,finding\n" + lines)


def compress(folder: Path, into: Path, count: int) -> None:
    """The first of the slices in JPEG 2000 without loss, and labels.csv. Their noise is the worst that it can get."""
    into.mkdir()
    shutil.copy(folder / "labels.csv", into)
    for file in sorted(folder.glob("*.dcm"))[:count]:
        data = dcmread(file)
        data.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
        data.save_as(into / file.name)


def _ingest(
    folder: Path, cohort: Path, size_px: int, workers: int, sink: multiprocessing.SimpleQueue[dict[str, float]]
) -> None:
    start = time.perf_counter()
    source = opened("dicom-folder", Asked(str(folder), folder / "labels.csv"), {})
    summary = ingest(source, cohort, ImageRecipe(size_px, 1), key=KEY, workers=workers)
    seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sink.put({"slices": summary.used, "seconds": seconds, "peak_rss_mib": peak_kib / 1024})


def measure(folder: Path, cohort: Path, size_px: int, workers: int) -> dict[str, float]:
    """One ingest in a fresh process. peak_rss_mib: of the process that writes the cohort."""
    context = multiprocessing.get_context("spawn")
    sink: multiprocessing.SimpleQueue[dict[str, float]] = context.SimpleQueue()
    process = context.Process(target=_ingest, args=(folder, cohort, size_px, workers, sink))
    process.start()
    process.join()  # the result is far smaller than a pipe's buffer, so the process can end before it is read
    if process.exitcode:
        raise SystemExit("the ingest failed, see above")
    return sink.get()


def shares(file: Path, size_px: int, repeats: int = 60) -> dict[str, float]:
    """Milliseconds of CPU of each step, the file in the page cache."""
    recipe, pseudonyms = ImageRecipe(size_px, 1), Pseudonyms(KEY)
    with quiet():
        header = read(file, recipe)
        frame = next(decoded(header))
        image = grey(frame, header, header.looks[0])
        small = fit(image, recipe)
        steps: dict[str, Callable[[], object]] = {
            "read_and_parse": lambda: read(file, recipe),
            "decode": lambda: next(decoded(header)),
            "rescale_and_window": lambda: grey(frame, header, header.looks[0]),
            "resize": lambda: fit(image, recipe),
            "quantise": lambda: quantise(small),
            "pseudonyms": lambda: [pseudonyms.patient("P") for _ in range(3)],
            "render_in_all": lambda: images_of(read(file, recipe), recipe),
        }
        return {name: _milliseconds(step, repeats) for name, step in steps.items()}


def shares_compressed(file: Path, size_px: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of CPU of a slice in JPEG 2000, and of OpenJPEG in it, which bounds it."""
    recipe = ImageRecipe(size_px, 1)
    stream = next(generate_frames(dcmread(file).PixelData, number_of_frames=1))
    with quiet():
        return {
            "openjpeg": _milliseconds(lambda: decode_jpeg_2000(stream), repeats),
            "in_all": _milliseconds(lambda: images_of(read(file, recipe), recipe), repeats),
        }


def _milliseconds(step: Callable[[], object], repeats: int) -> float:
    step()
    start = time.process_time()
    for _ in range(repeats):
        step()
    return 1000 * (time.process_time() - start) / repeats


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "slices"
        folder.mkdir()
        write_slices(folder, options.slices)
        few = Path(temporary) / "few"
        few.mkdir()
        for file in sorted(folder.glob("*.dcm"))[: max(1, options.slices // 4)]:
            file.rename(few / file.name)
        shutil.copy(folder / "labels.csv", few)
        small = measure(few, Path(temporary) / "cohort-few", options.size_px, options.workers)
        for file in few.glob("*.dcm"):
            file.rename(folder / file.name)
        large = measure(folder, Path(temporary) / "cohort", options.size_px, options.workers)
        again = measure(folder, Path(temporary) / "cohort", options.size_px, options.workers)
        steps = shares(folder / "000000.dcm", options.size_px)
        packed = Path(temporary) / "jpeg-2000"
        compress(folder, packed, max(1, options.slices // 5))
        coded = measure(packed, Path(temporary) / "cohort-jpeg-2000", options.size_px, options.workers)
        coded_steps = shares_compressed(packed / "000000.dcm", options.size_px)
    report = {
        "slices_per_s": large["slices"] / large["seconds"],
        "workers": options.workers,
        "quarter": small,
        "whole": large,
        "again_seconds": again["seconds"],
        "step_ms": steps,
        "jpeg_2000_slices_per_s": coded["slices"] / coded["seconds"],
        "jpeg_2000_ms": coded_steps,
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['slices_per_s']:.0f} slices/s with {options.workers} workers ({large['slices']:.0f} slices)")
    print(f"peak memory of the writer: {small['peak_rss_mib']:.0f} MiB at {small['slices']:.0f} slices, ", end="")
    print(f"{large['peak_rss_mib']:.0f} MiB at {large['slices']:.0f}; the same ingest again: {again['seconds']:.2f} s")
    for name, value in steps.items():
        print(f"  {name:20} {value:7.3f} ms a slice")
    print(f"JPEG 2000 without loss: {report['jpeg_2000_slices_per_s']:.0f} slices/s; ", end="")
    print(f"{coded_steps['in_all']:.1f} ms a slice, of which OpenJPEG {coded_steps['openjpeg']:.1f}")


if __name__ == "__main__":
    main()
