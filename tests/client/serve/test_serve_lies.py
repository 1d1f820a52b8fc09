"""A PACS that lies, changes its mind, or gives our own results back; a clock and hours; models that come and go."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom.uid import UID
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.served import server, settings, study
from tests.client.serve.test_serve_allowed import outcome

from wardround.cli import run
from wardround_client.intake.pacs.archive import Found, Recent
from wardround_client.intake.pacs.trouble import trouble
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.serve import arrivals, loop
from wardround_client.serve.loop import Server
from wardround_client.serve.queue import Queue
from wardround_client.serve.study import MADE_HERE, MOVED

LINES = ("", "..", "../../etc/passwd", "1.2.826.9.1", "\x1b[2JSECRET", "SECRET\nERROR forged", "%s%n", "9" * 65)
UIDS = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
HOSTILE = st.sampled_from(LINES) | st.text(max_size=30).map(lambda text: f"SECRET{text}") | UIDS
PATIENT = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "StudyDate")
OBJECT = ("SeriesInstanceUID", "SOPInstanceUID", "Modality", "Manufacturer", "NumberOfFrames")


def until_made(running: Server) -> None:
    while not running.queue.in_state("made"):
        running.step()


def new(number: int = 1) -> Path:
    return FolderPacs.folder / "new" / f"1.2.826.9.{number}"


def corrected(patient: str, *, files: bool, number: int = 1) -> None:
    """Somebody gives a study to another patient: in the list of the PACS, and in its files too."""
    (FolderPacs.folder / f"patient-1.2.826.9.{number}").write_text(patient)
    for path in new(number).iterdir() if files else ():
        data = pydicom.dcmread(path)
        data.PatientID = data.PatientName = patient
        data.save_as(path)


# Whose a study is


def test_a_study_that_is_given_to_another_patient_before_its_result_is_sent(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = server(home, monkeypatch)
    until_made(running)
    corrected("RIGHT", files=True)
    running.close()
    assert outcome(home, monkeypatch)[0] == {"sent": 1}
    (report,) = FolderPacs.stored()
    assert (report.PatientID, report.PatientName) == ("RIGHT", "RIGHT")


def test_files_of_another_patient_than_the_pacs_lists(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It corrects its list and not its files: a report would go to whom the files name."""
    running = server(home, monkeypatch)
    until_made(running)
    corrected("RIGHT", files=False)
    running.close()
    assert outcome(home, monkeypatch) == ({"refused": 1}, [MOVED.reason])
    assert not FolderPacs.stored()


def test_a_study_that_is_deleted_before_its_result_is_sent_does_not_come_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = server(home, monkeypatch)
    until_made(running)
    shutil.rmtree(new())
    new().mkdir()
    monkeypatch.setattr(FolderPacs, "patients", lambda self, study: iter(()))
    running.close()
    assert outcome(home, monkeypatch)[0] == {"failed": 1}
    assert not FolderPacs.stored() and not list((home / "serve" / "results").iterdir())


# Our own results


def test_a_result_that_comes_back_under_other_uids_is_not_predicted_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(home, {"url": "http://127.0.0.1:9"}, write=["sr", "heatmap"])
    assert outcome(home, monkeypatch)[0] == {"sent": 1}
    before = {str(each.SOPInstanceUID) for each in FolderPacs.stored()}
    for number, data in enumerate(FolderPacs.stored()):
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.9.77", "1.2.826.9.77.1"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.9.77.1.{number}")
        data.Modality, data.SeriesDescription = "CT", "axial"
        new(77).mkdir(exist_ok=True)
        data.save_as(new(77) / str(number))
    assert outcome(home, monkeypatch) == ({"sent": 1, "refused": 1}, [MADE_HERE.reason])
    # Beside an image it is left out, and the image is predicted for.
    shutil.copytree(new(77), new(78))
    (image,) = study(FolderPacs.folder / "other", 78)
    image.rename(new(78) / "9")
    for path in (each for each in new(78).iterdir() if each.name != "9"):
        data = pydicom.dcmread(path)
        data.StudyInstanceUID, data.PatientID, data.IssuerOfPatientID = "1.2.826.9.78", "NEW-78", "WARD"
        data.save_as(path)
    assert outcome(home, monkeypatch)[0] == {"sent": 2, "refused": 1}
    (report,) = [
        each for each in FolderPacs.stored() if each.Modality == "SR" and str(each.SOPInstanceUID) not in before
    ]
    (of,) = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(of.ReferencedSOPSequence) == 1


# What it says


@pytest.mark.filterwarnings("ignore")  # of pydicom, about what is written here on purpose
@examples(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    uids=st.lists(HOSTILE, max_size=5),
    modalities=st.lists(HOSTILE, max_size=3),
    changed=HOSTILE,
    names=st.lists(HOSTILE, min_size=4, max_size=4),
    header=st.dictionaries(st.sampled_from(PATIENT + OBJECT), HOSTILE),
)
def test_nothing_that_a_pacs_says_reaches_a_log_or_a_name_of_a_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    uids: list[str], modalities: list[str], changed: str, names: list[str], header: dict[str, str],
) -> None:  # fmt: skip
    (image,) = new().iterdir()
    before = image.read_bytes()
    data = pydicom.dcmread(image)
    for keyword, value in header.items():
        try:
            setattr(data, keyword, value)
        except Exception:  # pydicom does not write it
            continue
    try:
        data.save_as(image)
    except Exception:
        image.write_bytes(before)

    def recent(self: FolderPacs, first: str, last: str) -> Iterator[Recent]:
        yield Recent("1.2.826.9.1", tuple(modalities), changed)
        yield from (Recent(uid, tuple(modalities), changed) for uid in uids)

    def find(self: FolderPacs, key: str, value: str) -> Iterator[Found]:
        yield Found(value, "1.2.826.9.1.1", "1.2.826.9.1.1.0")
        yield Found(names[0], names[1], names[2])
        yield Found(value, names[1], names[2], patient="", sop_class=names[3])

    monkeypatch.setattr(FolderPacs, "recent", recent)
    monkeypatch.setattr(FolderPacs, "find", find)
    shutil.rmtree(home / "serve", ignore_errors=True)
    caplog.clear()
    running = server(home, monkeypatch)
    said = list[str]()
    monkeypatch.setattr(running, "_say", said.append)
    running.run(once=True)
    image.write_bytes(before)
    queue = Queue(home / "serve" / "queue.sqlite")
    reasons = [reason for state in ("waiting", "made", "refused", "failed") for reason in queue.reasons(state)]
    queue.close()
    told = [record.getMessage() for record in caplog.records] + said + reasons
    told += [str(path.relative_to(home)) for path in home.rglob("*")]
    assert not any("SECRET" in line or "\x1b" in line for line in told), told
    assert {path.name for path in home.parent.iterdir()} <= {"home", "pacs"}


def test_a_pacs_that_lists_more_than_anyone_can_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_ASKED", 50)
    listed = 0

    def recent(self: FolderPacs, first: str, last: str) -> Iterator[Recent]:
        nonlocal listed
        for number in range(100_000):
            listed += 1
            yield Recent(f"1.2.3.{number}", ("PR",) if number % 2 else ("CT",), "1")

    monkeypatch.setattr(FolderPacs, "recent", recent)
    settings(home, {"url": "http://127.0.0.1:9"}, most_waiting=7)
    running = server(home, monkeypatch)
    running.step()
    assert running.queue.open() == 7 and listed == 51
    assert all(int(work.uid.rsplit(".", 1)[1]) % 2 == 0 for work in running.queue.in_state("waiting"))
    running.close()


def test_a_pacs_that_takes_longer_to_list_than_it_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two lists the work is done."""
    now, recent = [0.0], FolderPacs.recent

    def slow(self: FolderPacs, first: str, last: str) -> Iterator[Recent]:
        now[0] += 60
        yield from recent(self, first, last)

    monkeypatch.setattr(FolderPacs, "recent", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    running = server(home, monkeypatch)
    for _ in range(4):
        running.step()
    assert running.queue.counts() == {"sent": 1}
    running.close()


# The clock


def test_outside_of_its_hours_nothing_is_done_and_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(home, {"url": "http://127.0.0.1:9", "hours": "20:00-06:00"})
    monkeypatch.setattr(loop, "clock", lambda: dt.time(12))
    running = server(home, monkeypatch)
    said = list[str]()
    monkeypatch.setattr(running, "_say", said.append)
    assert not running.run(once=True), "not everything is done"
    assert said == ["it is not within [pacs] hours, 20:00-06:00: nothing is fetched, predicted or sent"]
    monkeypatch.setattr(loop, "clock", lambda: dt.time(23, 30))
    assert outcome(home, monkeypatch)[0] == {"sent": 1}


def test_a_clock_that_is_set_back_puts_nothing_off_for_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (FolderPacs.folder / "ills").write_text("well well well well away")  # at sending
    running = server(home, monkeypatch)
    monkeypatch.setattr(loop, "wait_s", lambda attempt, trouble: 600.0)
    until_made(running)
    while not any(work.attempts for work in running.queue.in_state("made")):
        running.step()
    running.close()
    day = 86_400.0
    queue = Queue(home / "serve" / "queue.sqlite")
    assert queue.due("made", time.time()) is None and queue.due("made", time.time() - day) is not None
    queue.close()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - day)
    assert outcome(home, monkeypatch)[0] == {"sent": 1}


# Models


def adapt(home: Path, draw: int) -> None:
    """The model under its name anew."""
    folder = home.parent / "again"
    folder.mkdir(exist_ok=True)
    from tests.client.conftest import FEDERATION_TOML
    from tests.client.personal.test_shared_model import model_of, write_release

    from wardround.config import load_federation

    (folder / "federation.toml").write_text(FEDERATION_TOML)
    agreed = load_federation(folder / "federation.toml")
    write_release(folder / "model", agreed, theta=model_of(agreed).initial().detach())
    given = ("--task", folder / "federation.toml", "--model", folder / "model", "--name", "lungs")
    assert run(["hospital", "adapt", str(home), *map(str, given), "--replace", "--draw", str(draw)]) == 0


@pytest.mark.parametrize("state", ["waiting", "made"])
def test_a_model_that_is_adapted_again_answers_instead(home: Path, monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    running = server(home, monkeypatch)
    while not running.queue.in_state(state):
        running.step()
    adapt(home, 7)
    running.run(once=True)
    queue = Queue(home / "serve" / "queue.sqlite")
    assert queue.counts() == {"refused": 1, "sent": 1} and list(queue.reasons("refused")) == [
        "the model is here no more"
    ]
    (sent,) = queue.in_state("sent")
    queue.close()
    (report,) = FolderPacs.stored()
    assert report.DeviceSerialNumber == sent.model[:16]


def test_a_model_that_is_removed_sends_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = server(home, monkeypatch)
    until_made(running)
    shutil.rmtree(home / "adapted" / "lungs")
    running.run(once=True)
    queue = Queue(home / "serve" / "queue.sqlite")
    assert queue.counts() == {"refused": 1} and "the model may not predict" in next(iter(queue.reasons("refused")))
    queue.close()
    assert not FolderPacs.stored() and not list((home / "serve" / "results").iterdir())


class NoPort:
    """Nobody sends."""

    alive = True

    def __init__(self, *_: Any) -> None:
        pass

    def full(self, yes: bool) -> None:
        pass

    def refused(self) -> list[tuple[str, str]]:
        return []

    def close(self) -> None:
        pass


def test_a_study_that_was_sent_waits_for_a_model_that_is_adapted_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was told that it is here."""
    monkeypatch.setattr(loop, "Receiver", NoPort)
    listen = {"arrive": "listen", "listen": "127.0.0.1:1", "callers": ["PACS"]}
    settings(home, {"url": "http://127.0.0.1:9"}, **listen)
    running = server(home, monkeypatch)
    folder = home / "serve" / "received" / Pseudonyms(running.hospital.patients.key).study("1.2.826.9.1").hex()
    shutil.copytree(new(), folder)
    ahead = time.time() + 10_000  # by a clock that was set back since
    os.utime(folder, (ahead, ahead))
    while not running.queue.in_state("waiting"):
        running.step()
    adapt(home, 9)
    assert running.run(once=True)
    (report,) = FolderPacs.stored()
    assert report.PatientID == "NEW-1" and not folder.exists()


def test_what_is_done_already_does_not_fill_the_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Receiver", NoPort)
    monkeypatch.setattr(loop, "_SIZE_S", 0.0)
    listen = {"arrive": "listen", "listen": "127.0.0.1:1", "callers": ["PACS"], "gigabytes": 0.005}
    settings(home, {"url": "http://127.0.0.1:9"}, **listen)
    running = server(home, monkeypatch)
    folder = home / "serve" / "received" / Pseudonyms(running.hospital.patients.key).study("1.2.826.9.1").hex()
    shutil.copytree(new(), folder)
    assert running.run(once=True)
    shutil.copytree(new(), folder)  # sent again, and more than there is room for
    (folder / "more").write_bytes(bytes(10_000_000))
    running = server(home, monkeypatch)
    said = list[str]()
    monkeypatch.setattr(running, "_say", said.append)
    for _ in range(4):
        running._asked = -1e9
        running.step()
    running.close()
    assert not folder.exists() and said[-1] == "there is room again"


# What it does not take


def test_a_result_that_it_never_takes_waits_for_a_person_and_keeps_no_study_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(home, {"url": "http://127.0.0.1:9"}, most_waiting=1)
    study(FolderPacs.folder / "new", 2)
    monkeypatch.setattr(loop, "MOST_SENDS", 3)
    monkeypatch.setattr(loop, "wait_s", lambda *_: 0.0)
    with monkeypatch.context() as refuses:
        refuses.setattr(FolderPacs, "store", refused)
        assert outcome(home, monkeypatch)[0] == {"failed": 2}
    results = home / "serve" / "results"
    made = {path.name for path in results.iterdir()}
    assert len(made) == 2 and outcome(home, monkeypatch)[0] == {"failed": 2}
    assert {path.name for path in results.iterdir()} == made, "its results went"
    running = server(home, monkeypatch)
    assert running.queue.again() == 2 and running.queue.counts() == {"made": 2}, "nothing is predicted anew"
    running.close()
    assert outcome(home, monkeypatch)[0] == {"sent": 2}


def refused(pacs: FolderPacs, files: object) -> Iterator[str]:
    if files:
        raise trouble("refused", "it takes no SR of anybody")
    yield ""


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("listens", [False, True])
def test_all_that_is_there_is_done_once_however_few_may_wait(
    listens: bool, at: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it looks for more, and finds that as many wait as may."""
    monkeypatch.setattr(loop, "Receiver", NoPort)
    listen: dict[str, Any] = {"arrive": "listen", "listen": "127.0.0.1:1", "callers": ["PACS"]} if listens else {}
    settings(home, {"url": "http://127.0.0.1:9"}, most_waiting=1, **listen)
    study(FolderPacs.folder / "new", 2)
    running = server(home, monkeypatch)
    if listens:
        pseudonyms = Pseudonyms(running.hospital.patients.key)
        for number in (1, 2):
            shutil.copytree(new(number), home / "serve" / "received" / pseudonyms.study(f"1.2.826.9.{number}").hex())
    step, did = running.step, [False]

    def stepped() -> bool:
        """It looks at one step in between, and where there was nothing else to do."""
        running._asked = -1e9 if len(did) == at + 1 or not did[-1] else time.monotonic()
        did.append(step())
        return did[-1]

    monkeypatch.setattr(running, "step", stepped)
    assert running.run(once=True)
    assert sorted(str(report.PatientID) for report in FolderPacs.stored()) == ["NEW-1", "NEW-2"]
