"""Three hospitals and a coordinator, as a consortium would run them: real processes, TLS, crashes and all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tests.story.processes import running, typed
from tests.story.recorder import Recorder, found, recording

from orthanc import free_port
from wardround.experience.file import FILE, read
from wardround_client.cohort.store import CohortStore
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import make_profiles, write_hospital

pytestmark = pytest.mark.story

NAMES = ("north", "south", "west")
ROUNDS = 12
FEDERATION = f"""
name = "story"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
image_size_px = 32
[model]
features = 16
[rounds]
rounds = {ROUNDS}
quorum = 2
deadline_s = 15
"""


def set_up_hospital(
    folder: Path, name: str, data: Path, recorder: Recorder, federation: Path, invitation: Path
) -> Path:
    """What a hospital's IT types once."""
    home = folder / name
    typed("hospital", "init", home, "--name", name, "--patients", 40)
    typed("hospital", "ingest", home, data, "--labels", data / "labels.csv", "--federation", federation, "--workers", 1)
    typed("hospital", "join", home, invitation)
    config = home / "hospital.toml"  # the recorder stands where the coordinator would be
    text = config.read_text()
    address = next(line for line in text.splitlines() if line.startswith("address ="))
    config.write_text(text.replace(address, f'address = "127.0.0.1:{recorder.port}"'))
    typed("hospital", "approve", home, federation, "--yes")
    return home


def test_three_hospitals_learn_through_crashes_and_no_patient_leaves(tmp_path: Path) -> None:
    federation = tmp_path / "federation.toml"
    federation.write_text(FEDERATION)
    coordinator = tmp_path / "coordinator"
    port = free_port()
    typed("coordinator", "init", coordinator, "--host", "127.0.0.1", "--port", port)
    data = {}
    for name, profile in zip(NAMES, make_profiles(3, patients=(30, 40), seed=5), strict=True):
        data[name] = tmp_path / "pacs" / name
        write_hospital(profile, data[name])

    with recording(port, coordinator / "tls") as recorder, running(tmp_path) as start:
        homes = {
            name: set_up_hospital(tmp_path, name, data[name], recorder, federation, coordinator / "invitation.toml")
            for name in NAMES
        }
        for home in homes.values():
            typed("coordinator", "register", coordinator, home / "join.json")

        server = start("coordinator", "up", coordinator)
        server.wait_for(lambda line: "is up" in line, "sign of life")
        daemons = {name: start("hospital", "up", home) for name, home in homes.items()}
        for daemon in daemons.values():
            daemon.wait_for(lambda line: "connected" in line.lower(), "connection")

        run = start("coordinator", "run", coordinator, federation, "--run", "spring", "--json")
        run.wait_for_event(lambda e: e["event"] == "round" and e["replied"] == 3 and e["round"] >= 2, "full round")

        # A hospital dies in the middle; the others go on; it comes back by itself.
        daemons["south"].kill()
        run.wait_for_event(lambda e: e["event"] == "round" and e["replied"] == 2, "round without south")
        daemons["south"] = start("hospital", "up", homes["south"])
        run.wait_for_event(lambda e: e["event"] == "round" and e["replied"] == 3, "round with south again")

        # The coordinator dies and resumes at the next round.
        server.kill()
        run.kill()
        before = last_round(coordinator / "runs" / "spring")
        assert before < ROUNDS
        server = start("coordinator", "up", coordinator)
        server.wait_for(lambda line: "is up" in line, "sign of life")
        run = start("coordinator", "run", coordinator, federation, "--run", "spring", "--resume", "--json")
        first = run.wait_for_event(lambda e: e["event"] == "round", "round after the restart")
        assert first["round"] in (before, before + 1)  # a round whose checkpoint was not written is asked again
        done = run.wait_for_event(lambda e: e["event"] == "done", "end of the run")
        assert run.wait() == 0
        assert Path(done["report"]).is_file()
        (row,) = read(coordinator / FILE).rows  # of a run that went on after a crash
        assert len(row.task.hospitals) == 3 and row.settings["rounds.rounds"] == ROUNDS
        assert not any(name in row.line() for name in (*NAMES, "nodule", "spring"))

        status = json.loads(typed("hospital", "status", homes["north"], "--json"))
        assert status["run"] == "spring"
        for daemon in daemons.values():
            assert daemon.stop() == 0
        assert server.stop() == 0

    assert_each_paid_once(homes)
    assert_no_patient_left(recorder, data, homes)


def last_round(run: Path) -> int:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return max(int(event["round"]) for event in events if event["event"] == "round")


def assert_each_paid_once(homes: dict[str, Path]) -> None:
    """No ledger passes the run's epsilon, whatever crashed, and every chain is whole."""
    for home in homes.values():
        typed("hospital", "ledger", home, "--verify")
        ledger = Ledger(home / "ledger.sqlite")
        assert 0 < ledger.spent(Hospital.open(home, ledger=ledger).config.delta) <= 8.0


def assert_no_patient_left(recorder: Recorder, data: dict[str, Path], homes: dict[str, Path]) -> None:
    """Search all that crossed for identifiers, pixels and features of every image of the cohort."""
    outbound, inbound = bytes(recorder.outbound), bytes(recorder.inbound)
    # The search can find: what did cross is there in plain text.
    ledger = Ledger(homes["north"] / "ledger.sqlite")
    reply = ledger.reply_of("spring", 1)
    assert reply is not None
    assert reply[-64:] in outbound
    assert found(outbound, b"north")
    assert b"spring" in inbound

    for name, folder in data.items():
        for file in folder.rglob("*.dcm"):
            header = pydicom.dcmread(file)
            for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                secret = str(header[keyword].value).encode()
                assert not found(outbound, secret), f"{keyword} of {file} left {name}"
            rows = np.frombuffer(header.PixelData, np.uint8)
            assert not found(outbound, telling(rows)), f"pixels of {file} left {name}"
        for image in np.asarray(CohortStore.open(homes[name] / "cohort", withdrawn=()).inputs):
            assert not found(outbound, telling(np.ascontiguousarray(image).view(np.uint8).ravel()))
            as_float = (image.astype(np.float32) / 65535).ravel().view(np.uint8)
            assert not found(outbound, telling(as_float))


def telling(pixels: np.ndarray[tuple[int], np.dtype[np.uint8]], size: int = 24) -> bytes:
    """The stretch of pixel data that varies most: background would be found anywhere."""
    windows = pixels[: len(pixels) // size * size].reshape(-1, size)
    return bytes(windows[np.argmax([len(np.unique(window)) for window in windows])])
