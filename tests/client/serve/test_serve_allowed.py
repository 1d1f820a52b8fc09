"""What is left alone: who has withdrawn, models whose patients have, a paused hospital, mixed studies."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.served import server, study
from tests.client.serve.served import settings as serve_settings

from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.service.control import PAUSED


def outcome(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, int], list[str]]:
    """Serve -> the states, and why."""
    running = server(home, monkeypatch)
    queue = running.queue
    running.run(once=True)
    queue = type(queue)(home / "serve" / "queue.sqlite")
    try:
        return queue.counts(), list(queue.reasons("refused"))
    finally:
        queue.close()


def stored() -> int:
    return len(list((FolderPacs.folder / "stored").iterdir()))


def withdraw(home: Path, *pseudonyms: bytes) -> None:
    Hospital.open(home, ledger=Ledger(None)).patients.register.add(pseudonyms)


def pseudonym(home: Path, patient: str) -> bytes:
    from wardround_client.intake.pseudonyms import Pseudonyms

    return Pseudonyms(Hospital.open(home, ledger=Ledger(None)).patients.key).patient(patient)


def test_a_patient_who_has_withdrawn_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw(home, pseudonym(home, "NEW-1"))
    assert outcome(home, monkeypatch) == ({"refused": 1}, ["the patient has withdrawn"])
    assert stored() == 0


def test_who_withdraws_before_it_is_sent_gets_no_result(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = server(home, monkeypatch)
    while not running.queue.in_state("made"):
        running.step()
    running.close()
    withdraw(home, pseudonym(home, "NEW-1"))
    assert outcome(home, monkeypatch) == ({"refused": 1}, ["the patient has withdrawn"])
    assert stored() == 0 and not list((home / "serve" / "results").iterdir())


def test_a_model_whose_patient_has_withdrawn_predicts_no_more(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = server(home, monkeypatch)
    (model,) = running.models.ready()
    running.close()
    withdraw(home, model.adapted.support[0])
    assert outcome(home, monkeypatch) == ({}, []) and stored() == 0


def test_a_paused_hospital_does_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / PAUSED).touch()
    assert outcome(home, monkeypatch) == ({}, []) and stored() == 0
    (home / PAUSED).unlink()
    assert outcome(home, monkeypatch)[0] == {"sent": 1} and stored() == 1


def test_a_study_of_several_patients_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = study(FolderPacs.folder / "new", 1, images=2)[1]
    data = pydicom.dcmread(file)
    data.PatientID = "ANOTHER"
    data.save_as(file)
    assert outcome(home, monkeypatch) == ({"refused": 1}, ["its files name several patients"])


def test_no_more_is_taken_than_may_wait(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2, 6):
        study(FolderPacs.folder / "new", number)
    serve_settings(home, {"url": "http://127.0.0.1:9"}, most_waiting=2)
    running = server(home, monkeypatch)
    running.step()
    assert running.queue.open() == 2
    running.close()


def test_a_study_whose_objects_are_listed_later_is_asked_for_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = (FolderPacs.folder / "new").rglob("0")
    hidden = image.rename(FolderPacs.folder / "hidden")
    running = server(home, monkeypatch)
    for _ in range(3):
        running.step()
    hidden.rename(image)
    running.close()
    assert outcome(home, monkeypatch)[0] == {"sent": 1}
