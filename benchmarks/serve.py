"""From a study's arrival to its report in a PACS on loopback: seconds, at some studies a minute.

    python benchmarks/serve.py [--rates 1,20] [--studies 10,40] [--arrive poll,listen] [--json]

Needs Debian's packages orthanc and orthanc-dicomweb. `wardround hospital serve` runs as it does at a hospital, with one
adapted model of 64 x 64 px phantoms, and does not wait for a study to settle (settle_s = 0): the seconds that a site
waits for more images come on top. A study is one 512 x 512 slice of CT. poll: Orthanc is given it, and asked every
second by QIDO-RS. listen: it is sent to us by C-STORE. Either way the report goes to Orthanc by STOW-RS, and counts
from when Orthanc says that it has it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pydicom

import ingest as slices
from orthanc import Orthanc, free_port, installed
from wardround.cli import run

FEDERATION = """
name = "served"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
"""
PATIENCE_S = 180.0
PROGRAM = "from wardround.cli import run; import sys; sys.exit(run(sys.argv[1:]))"

Give = Callable[[Path], bool]
"""A file to whoever is asked first; whether it was taken."""


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
    """UID and file of each. No UID stands in two of them: a PACS may not find an object whose UID another has."""
    folder.mkdir()
    slices.write_slices(folder, count)
    made = []
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        data = pydicom.dcmread(path)
        data.PatientID, data.StudyInstanceUID = f"P{number}", f"1.2.5.{time.time_ns()}.{number}"
        data.SeriesInstanceUID, data.SOPInstanceUID = f"{data.StudyInstanceUID}.1", f"{data.StudyInstanceUID}.1.1"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.StudyDate, data.Modality = f"{dt.date.today():%Y%m%d}", "CT"
        data.save_as(path)
        made.append((str(data.StudyInstanceUID), path))
    return made


def latencies(home: Path, pacs: Orthanc, give: Give, todo: list[tuple[str, Path]], every_s: float) -> list[float]:
    """Give studies one after another, and see when each has a report."""
    arrived: dict[str, float] = {}
    found: dict[str, float] = {}
    start = last = time.monotonic()
    with httpx.Client(trust_env=False, timeout=60, base_url=pacs.rest) as client:
        since = client.get("/changes?last").json()["Last"]
        while arrived.keys() - found.keys() or len(arrived) < len(todo):
            if len(arrived) < len(todo) and time.monotonic() >= start + len(arrived) * every_s:
                uid, path = todo[len(arrived)]
                if not give(path):
                    raise SystemExit("a study is not taken")
                arrived[uid] = last = time.monotonic()
            told = client.get(f"/changes?since={since}&limit=100").json()
            since = told["Last"]
            for change in told["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    tags = client.get(f"/instances/{change['ID']}/simplified-tags").json()
                    if tags["Modality"] == "SR":
                        found[tags["StudyInstanceUID"]] = time.monotonic()
            if time.monotonic() > last + PATIENCE_S and arrived.keys() - found.keys():
                log = (home / "serve.log").read_text().splitlines()[-20:]
                raise SystemExit("\n".join([*log, f"{len(arrived.keys() - found.keys())} studies have no report"]))
            time.sleep(0.05)
    return [found[uid] - arrived[uid] for uid, _ in todo]


def by_c_store(port: int) -> Give:
    """Sends, as a PACS does: an association a study."""
    from pynetdicom import AE, build_context

    def give(path: Path) -> bool:
        ae, data = AE(ae_title="PACS"), pydicom.dcmread(path)
        association = ae.associate("127.0.0.1", port, [build_context(data.SOPClassUID)], ae_title="WARDROUND")
        if not association.is_established:  # it does not listen yet
            return False
        status = association.send_c_store(data).get("Status")
        association.release()
        return bool(status == 0)

    return give


@contextmanager
def serving(home: Path, pacs: Orthanc, arrive: str) -> Iterator[Give]:
    """The program runs."""
    port = free_port()
    text = (home / "hospital.toml").read_text().split("\n[pacs]")[0]
    chosen = {"on": True, "models": ["served"], "every_s": 1.0, "settle_s": 0.0, "arrive": arrive}
    if arrive == "listen":
        chosen |= {"listen": f"127.0.0.1:{port}", "callers": ["PACS"]}
    lines = [f"{name} = {json.dumps(value)}" for name, value in chosen.items()]
    (home / "hospital.toml").write_text("\n".join([text, "[pacs]", f'url = "{pacs.url}"', "[serve]", *lines, ""]))
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, "hospital", "serve", str(home)])
    try:
        yield by_c_store(port) if arrive == "listen" else lambda path: pacs.load([path]) == 1
    finally:
        program.terminate()
        program.wait()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1,20", help="studies a minute")
    parser.add_argument("--studies", default="10,40", help="how many of each")
    parser.add_argument("--arrive", default="poll,listen")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not installed():
        raise SystemExit("install Debian's packages orthanc and orthanc-dicomweb")
    rates = list(zip(map(float, options.rates.split(",")), map(int, options.studies.split(",")), strict=True))
    report = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        home, pacs = adapted(folder), Orthanc(folder / "pacs")
        pacs.start()
        try:
            for arrive in options.arrive.split(","):
                with serving(home, pacs, arrive) as give:
                    ((_, first),) = studies(folder / f"first-{arrive}", 1)
                    until = time.monotonic() + PATIENCE_S
                    while not give(first) and time.monotonic() < until:  # it starts
                        time.sleep(0.5)
                    latencies(home, pacs, give, studies(folder / f"second-{arrive}", 1), 0.0)
                    for rate, count in rates:
                        took = latencies(home, pacs, give, studies(folder / f"{arrive}-{rate}", count), 60 / rate)
                        report.append(
                            {
                                "arrive": arrive,
                                "studies_a_minute": rate,
                                "studies": count,
                                "median_s": round(statistics.median(took), 2),
                                "p95_s": round(float(np.percentile(took, 95)), 2),
                                "load": round(os.getloadavg()[1], 1),
                            }
                        )
        finally:
            pacs.kill()
    if options.json:
        print(json.dumps(report))
        return
    for line in report:
        print("{arrive}, {studies_a_minute:g} a minute, {studies} studies: ".format(**line), end="")
        print("median {median_s:.2f} s, p95 {p95_s:.2f} s; load average {load}".format(**line))


if __name__ == "__main__":
    main()
