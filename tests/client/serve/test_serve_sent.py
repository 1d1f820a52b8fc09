"""Studies that are sent to us: taken whole or refused with a status, whoever sends whatever; bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.client.serve.sent import listening, objects, send
from tests.client.serve.served import server, settings, study
from tests.client.serve.test_serve_lies import corrected, until_made

from orthanc import free_port
from wardround_client.serve.study import MOVED


def test_only_who_is_named_may_send_and_a_full_hospital_says_so(tmp_path: Path) -> None:
    one = pydicom.dcmread(study(tmp_path / "new", 1)[0])
    with listening(tmp_path / "received") as (port, folder, _, full):
        assert send(port, one, caller="STRANGER") == []
        assert send(port, one, called="ANOTHER") == []
        assert send(port, one) == [0x0000] == send(port, one)
        assert len(objects(folder)) == 1
        assert pydicom.dcmread(objects(folder)[0]).PixelData == one.PixelData
        assert "1.2.826" not in "".join(map(str, objects(folder)))
        full.set()
        assert send(port, one) == [0xA700]
    with listening(tmp_path / "small", gigabytes=1e-9) as (port, folder, _, _):
        assert send(port, one) == [0x0000] and send(port, one) == [0xA700], "it is full now"
    two = [pydicom.dcmread(path) for path in study(tmp_path / "new", 2, images=3)]
    with listening(tmp_path / "few", greatest_objects=2) as (port, folder, told, _):
        assert send(port, *two) == [0x0000, 0x0000, 0xA700]
        assert told == [("PACS", "its study has too many objects")]


@pytest.mark.filterwarnings("ignore")  # of pydicom, about what is sent here on purpose
def test_whatever_is_sent_stays_in_its_folder(tmp_path: Path) -> None:
    (file,) = study(tmp_path / "new", 1)
    with listening(tmp_path / "received") as (port, folder, told, _):

        @examples(max_examples=15)
        @given(
            st.fixed_dictionaries(
                {},
                optional={
                    "StudyInstanceUID": st.sampled_from(["", "../../etc", "1.2\\1.3", "x" * 64, None]),
                    "SOPInstanceUID": st.sampled_from(["1.2.3.4", "..", "9" * 64]),
                    "PatientName": st.text(max_size=20),
                    "PixelData": st.binary(max_size=40).map(lambda data: data + b"\0" * (len(data) % 2)),
                },
            )
        )
        def one_after_another(changed: dict[str, Any]) -> None:
            one = pydicom.dcmread(file)
            for keyword, value in changed.items():
                if value is None:
                    delattr(one, keyword)
                else:
                    one[keyword].value = value
            before = set(objects(tmp_path))
            told.clear()
            (code,) = send(port, one)
            kept = set(objects(tmp_path)) - before
            assert all(path.is_relative_to(folder) for path in kept)
            assert (code == 0x0000) or (told and not kept)
            assert all("Neu" not in why for _, why in told)

        one_after_another()


def test_a_study_that_is_sent_is_answered(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that listens; killed, and started again, it has what it said that it had."""
    port = free_port()
    settings(
        home, {"url": "http://127.0.0.1:9"}, arrive="listen", listen=f"127.0.0.1:{port}", callers=["PACS"], settle_s=0.0
    )
    files = [pydicom.dcmread(path) for path in study(tmp_path / "new", 1, images=2)]
    first = server(home, monkeypatch)
    assert send(port, files[0]) == [0x0000]
    first.close()  # its process is killed
    second = server(home, monkeypatch)
    assert send(port, files[1]) == [0x0000]
    bad = pydicom.dcmread(study(tmp_path / "new", 2)[0])
    bad.StudyInstanceUID = ""
    assert send(port, bad) == [0xC000]
    assert second.run(once=True)
    (report,) = (tmp_path / "pacs" / "stored").iterdir()
    sent = pydicom.dcmread(next(report.iterdir()))
    assert sent.PatientID == "NEW-1"
    evidence = sent.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert len(evidence) == 2
    third = server(home, monkeypatch)
    assert third.queue.aside(5)[0][1:3] == ("PACS", "it names no study")
    assert send(port, files[0]) == [0x0000], "it is known, and dropped"
    assert third.run(once=True) and len(list((tmp_path / "pacs" / "stored").iterdir())) == 1


def test_a_study_that_is_corrected_and_sent_again_is_answered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its prediction and its result the PACS gives it to another patient."""
    port = free_port()
    settings(home, {"url": "http://127.0.0.1:9"}, arrive="listen", listen=f"127.0.0.1:{port}", callers=["PACS"])
    one = pydicom.dcmread(study(tmp_path / "new", 1)[0])
    running = server(home, monkeypatch)
    assert send(port, one) == [0x0000]
    until_made(running)
    corrected("RIGHT", files=False)
    running.step()
    assert running.queue.counts() == {} and running.queue.aside(1)[0][2] == MOVED.reason
    assert not any((home / "serve" / "results").iterdir()) and not any((tmp_path / "pacs" / "stored").iterdir())
    one.PatientID = "RIGHT"
    assert send(port, one) == [0x0000]
    assert running.run(once=True)
    (report,) = (tmp_path / "pacs" / "stored").iterdir()
    assert pydicom.dcmread(next(report.iterdir())).PatientID == "RIGHT"
