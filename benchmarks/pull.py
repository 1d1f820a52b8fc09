"""How fast studies come out of a PACS on loopback into a cohort, beside the same files from a folder.

    python benchmarks/pull.py [--slices 600] [--workers 2] [--repeats 3] [--json]

Needs Debian's packages orthanc and orthanc-dicomweb. Fills an Orthanc with synthetic, uncompressed 512 x 512 CT slices,
40 a series, and takes them in from the folder, by DICOMweb and by DIMSE (C-GET), interleaved, each time in a process of
its own. Orthanc shares the machine's cores with the pull.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import pydicom

import ingest as slices
from orthanc import Orthanc, installed
from wardround.toml import Section
from wardround_client.config import Pacs
from wardround_client.intake.ingest import ingest
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import SOURCES, Asked
from wardround_client.intake.sources.dicom_folder import FolderSettings

A_SERIES = 40


def write_studies(folder: Path, count: int) -> None:
    """A series a patient; and labels.csv."""
    slices.write_slices(folder, count)
    for i in range(count):
        path = folder / f"{i:06}.dcm"
        data, patient = pydicom.dcmread(path), i // A_SERIES
        data.PatientID, data.StudyInstanceUID = f"P{patient}", f"1.2.4.{patient}"
        data.SeriesInstanceUID = f"1.2.4.{patient}.1"
        data.save_as(path)
    lines = "".join(f"P{p},{'ab'[p % 2]}\n" for p in range((count + A_SERIES - 1) // A_SERIES))
    (folder / "labels.csv").write_text("PatientID,finding\n" + lines)


def _take_in(source: str, where: str, settings: Section, home: Path, labels: Path, workers: int) -> tuple[float, int]:
    asked, recipe = Asked(where, labels, home=home), ImageRecipe(64, 1)
    start = time.perf_counter()
    with closing(SOURCES[source](asked, settings)) as opened:
        summary = ingest(opened, home / "cohort", recipe, key=slices.KEY, workers=workers)
        opened.ended()
    return time.perf_counter() - start, summary.used


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not installed():
        raise SystemExit("install Debian's packages orthanc and orthanc-dicomweb")
    rates: dict[str, list[float]] = {"folder": [], "dicomweb": [], "dimse": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "slices"
        folder.mkdir()
        write_studies(folder, options.slices)
        pacs = Orthanc(Path(temporary) / "pacs")
        pacs.start()
        try:
            pacs.load(sorted(folder.glob("*.dcm")))
            ways = {
                "folder": ("dicom-folder", str(folder), FolderSettings()),
                "dicomweb": ("dicomweb", pacs.url, Pacs(url=pacs.url)),
                "dimse": ("dimse", "", Pacs(address=f"127.0.0.1:{pacs.dimse}", called="ORTHANC")),
            }
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as fresh:
                for turn in range(options.repeats):
                    for name, (source, where, settings) in ways.items():
                        home = Path(temporary) / f"{name}-{turn}"
                        home.mkdir()
                        arguments = (source, where, settings, home, folder / "labels.csv", options.workers)
                        seconds, used = fresh.submit(_take_in, *arguments).result()
                        if used != options.slices:
                            raise SystemExit(f"{name}: {used} of {options.slices} were used")
                        rates[name].append(used / seconds)
        finally:
            pacs.kill()
    medians = {name: statistics.median(each) for name, each in rates.items()}
    report = {"slices_per_s": medians, "of_folder": {n: medians[n] / medians["folder"] for n in ("dicomweb", "dimse")}}
    if options.json:
        print(json.dumps(report))
        return
    for name, rate in medians.items():
        print(f"{name:10}{rate:8.0f} slices a second{100 * rate / medians['folder']:6.0f} % of the folder")


if __name__ == "__main__":
    main()
