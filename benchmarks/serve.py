"""From a study's arrival in a PACS on loopback to its report there: seconds, at some studies a minute.

    python benchmarks/serve.py [--rates 1,20] [--studies 20] [--json]

Needs Debian's packages orthanc and orthanc-dicomweb. `wardround hospital serve` runs as it does at a hospital, with one
adapted model of 64 x 64 px phantoms, asks every second, and does not wait for a study to settle (settle_s = 0): the
seconds that a site waits for more images come on top. A study is one 512 x 512 slice of CT.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pydicom

import ingest as slices
from orthanc import Orthanc, installed
from wardround.cli import run

FEDERATION = """
name = "served"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
"""


def adapted(folder: Path) -> Path:
    """A home with one adapted model, of a federation that nobody trained."""
    import torch

    from wardround.config import load_federation
    from wardround.models import build_model
    from wardround.release import Release
    from wardround_simulation.phantoms import make_profiles, write_hospital

    write_hospital(make_profiles(1, patients=(36, 40), seed=3)[0], folder / "dicom")
    (folder / "federation.toml").write_text(FEDERATION)
    agreed = load_federation(folder / "federation.toml")
    model = agreed.algorithm.extended(build_model(agreed))
    scaling = torch.zeros(model.scaling_size), torch.ones(model.scaling_size)
    (folder / "model").write_bytes(Release("none", agreed.digest, 1, model.initial().detach(), *scaling).pack())
    home, given = folder / "home", ("--federation", folder / "federation.toml")
    for command in (
        ("init", home, "--name", "here", "--patients", 40),
        ("ingest", home, folder / "dicom", "--labels", folder / "dicom" / "labels.csv", *given),
        ("adapt", home, "--task", folder / "federation.toml", "--model", folder / "model", "--name", "served"),
    ):
        if run(["hospital", *map(str, command)]):
            raise SystemExit("the hospital could not be made")
    return home


def studies(folder: Path, count: int) -> list[tuple[str, Path]]:
    """UID and file of each."""
    folder.mkdir()
    slices.write_slices(folder, count)
    made = []
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        data = pydicom.dcmread(path)
        data.PatientID, data.StudyInstanceUID = f"P{number}", f"1.2.5.{time.time_ns()}.{number}"
        data.SeriesInstanceUID = f"{data.StudyInstanceUID}.1"
        data.StudyDate, data.Modality = f"{dt.date.today():%Y%m%d}", "CT"
        data.save_as(path)
        made.append((str(data.StudyInstanceUID), path))
    return made


def latencies(pacs: Orthanc, todo: list[tuple[str, Path]], every_s: float) -> list[float]:
    """Give it studies one after another, and see when each has a report."""
    arrived: dict[str, float] = {}
    found: dict[str, float] = {}
    start, since = time.monotonic(), 0
    with httpx.Client(trust_env=False, timeout=60, base_url=pacs.rest) as client:
        since = client.get("/changes?last").json()["Last"]
        while len(found) < len(todo):
            if len(arrived) < len(todo) and time.monotonic() >= start + len(arrived) * every_s:
                uid, path = todo[len(arrived)]
                if not pacs.load([path]):
                    raise SystemExit("Orthanc does not take a study")
                arrived[uid] = time.monotonic()
            told = client.get(f"/changes?since={since}&limit=100").json()
            since = told["Last"]
            for change in told["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    tags = client.get(f"/instances/{change['ID']}/simplified-tags").json()
                    if tags["Modality"] == "SR":
                        found[tags["StudyInstanceUID"]] = time.monotonic()
            time.sleep(0.05)
    return [found[uid] - arrived[uid] for uid, _ in todo]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1,20", help="studies a minute")
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not installed():
        raise SystemExit("install Debian's packages orthanc and orthanc-dicomweb")
    report = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home = adapted(folder)
        pacs = Orthanc(folder / "pacs")
        pacs.start()
        text = (home / "hospital.toml").read_text().replace('\nurl = ""', f'\nurl = "{pacs.url}"')
        for old, new in (("on = false", "on = true"), ("models = []", 'models = ["served"]')):
            text = text.replace(f"\n{old}", f"\n{new}")
        for name, value in (("every_s", "1.0"), ("settle_s", "0.0")):
            text = "\n".join(f"{name} = {value}" if line.startswith(f"{name} =") else line for line in text.split("\n"))
        (home / "hospital.toml").write_text(text)
        program = "from wardround.cli import run; import sys; sys.exit(run(sys.argv[1:]))"
        serving = subprocess.Popen([sys.executable, "-c", program, "hospital", "serve", str(home)])
        try:
            latencies(pacs, studies(folder / "first", 1), 0.0)  # it has started
            for number, rate in enumerate(map(float, options.rates.split(","))):
                took = latencies(pacs, studies(folder / f"new-{number}", options.studies), 60 / rate)
                p95 = float(np.percentile(took, 95))
                report.append({"studies_a_minute": rate, "median_s": statistics.median(took), "p95_s": p95})
        finally:
            serving.terminate()
            serving.wait()
            pacs.kill()
    if options.json:
        print(json.dumps(report))
        return
    for line in report:
        print(f"{line['studies_a_minute']:4g} a minute: median {line['median_s']:.1f} s, p95 {line['p95_s']:.1f} s")


if __name__ == "__main__":
    main()
