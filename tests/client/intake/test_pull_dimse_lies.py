"""A PACS that lies by DIMSE: the same walls as behind DICOMweb."""

from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from tests.client.intake.dicom_files import KEY
from tests.client.intake.test_pull_lies import RECIPE, Inline, rows
from tests.liar import TAGS
from tests.pacs import named_by, phantoms, store_of, tls_files

from orthanc import free_port
from wardround.errors import WardroundError
from wardround_client.config import Pacs
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.sources.dimse import FIND, GET, SYNTAXES, DimseSource

Change = Callable[[list[Dataset]], list[Any]]


class Scp:
    """Answers C-FIND and C-GET from a folder. find, get: change what is answered; a number is a status instead."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.objects = [pydicom.dcmread(file) for file in store_of(folder)]
        self.find: Change = list
        self.get: Change = list
        ae = AE(ae_title="LIAR")
        ae.add_supported_context(FIND)
        ae.add_supported_context(GET)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), SYNTAXES, scu_role=True, scp_role=True)
        self.port = free_port()
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, _at_once), (evt.EVT_C_FIND, self._found), (evt.EVT_C_GET, self._got)]
        where = ("127.0.0.1", self.port)
        self.server: Any = ae.start_server(where, block=False, evt_handlers=handlers, ssl_context=tls)

    def _matching(self, question: Dataset) -> list[Dataset]:
        wanted = {name: str(question.get(name, "")) for name in TAGS if question.get(name)}
        return [each for each in self.objects if all(str(each.get(n, "")) == value for n, value in wanted.items())]

    def _found(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        one = level[event.identifier.QueryRetrieveLevel]
        for each in self.find(list({each[one].value: each for each in self._matching(event.identifier)}.values())):
            if isinstance(each, int):
                yield each, None
                return
            answer = Dataset()
            for name in TAGS:
                setattr(answer, name, each.get(name, ""))
            yield 0xFF00, answer

    def _got(self, event: evt.Event) -> Iterator[Any]:
        answers = self.get(self._matching(event.identifier))
        yield len(answers)
        for each in answers:
            yield (0xFF00, each) if isinstance(each, Dataset) else (each, None)


def _at_once(event: evt.Event) -> None:
    """No waiting for the other side's acknowledgement before the second half of an answer: 40 ms each."""
    association: Any = event.assoc
    association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("studies"), patients=1, series=3)


@pytest.fixture(scope="module")
def scp(store: Path) -> Iterator[Scp]:
    running = Scp(store)
    yield running
    running.server.shutdown()


@pytest.fixture(scope="module")
def honest(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bytes, bytes], bytes]:
    folder = tmp_path_factory.mktemp("named")
    named_by(store / "labels.csv", store, folder / "dicom")
    source = DicomFolder(Asked(str(folder / "dicom"), store / "labels.csv"), DicomFolder.Settings())
    ingest(source, folder / "cohort", RECIPE, key=KEY, workers=0)
    return rows(folder / "cohort")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process of its own, and without a pause before it is asked again."""
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)
    monkeypatch.setattr(pacs_source, "Line", Inline)


def pull(home: Path, store: Path, scp: Scp, **more: Any) -> Any:
    settings = Pacs(**{"address": f"127.0.0.1:{scp.port}", "called": "LIAR", "attempts": 1, **more})
    source = DimseSource(Asked("", store / "labels.csv", home=home), settings)
    with closing(source):
        try:
            summary = ingest(source, home / "cohort", RECIPE, key=KEY, workers=0)
            source.ended()
        except WardroundError as error:
            return error
    return summary


def changed(**attributes: str) -> Change:
    def change(answers: list[Dataset]) -> list[Any]:
        copies = deepcopy(answers)
        for copy in copies:
            for name, value in attributes.items():
                setattr(copy, name, value)
        return list(copies)

    return change


LIES: tuple[tuple[str, Any], ...] = (
    ("find", None),
    ("find", changed(PatientID="PAT-9")),
    ("find", changed(SOPInstanceUID="../../etc/passwd")),
    ("find", lambda answers: answers * 3),
    ("find", lambda answers: []),
    ("find", lambda answers: [0xC001]),
    ("find", lambda answers: [0xA700]),
    ("get", None),
    ("get", changed(PatientID="PAT-9")),
    ("get", changed(StudyInstanceUID="1.2.3")),
    ("get", changed(SOPInstanceUID="1.2.3.4.5")),
    ("get", lambda answers: answers[:-1]),
    ("get", lambda answers: answers * 2),
    ("get", lambda answers: []),
    ("get", lambda answers: [0xC001]),
    ("get", lambda answers: [0xA701]),
)


@pytest.mark.parametrize(("what", "lie"), LIES)
def test_no_lie_enters_and_nothing_is_lost(
    what: str,
    lie: Change | None,
    tmp_path: Path,
    store: Path,
    scp: Scp,
    honest: dict[tuple[bytes, bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scp, what, lie or (lambda answers: scp.objects))
    pull(tmp_path, store, scp)
    assert rows(tmp_path / "cohort").items() <= honest.items()
    monkeypatch.setattr(scp, what, list)
    summary = pull(tmp_path, store, scp, attempts=3)
    assert not isinstance(summary, WardroundError) and summary.quarantined == 0
    assert rows(tmp_path / "cohort") == honest


@pytest.mark.parametrize("lost", range(6))
@pytest.mark.parametrize("always", [False, True])
def test_an_answer_that_pynetdicom_loses_is_noticed(
    lost: int,
    always: bool,
    tmp_path: Path,
    store: Path,
    scp: Scp,
    honest: dict[tuple[bytes, bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine its reactor takes an answer for a request now and then (5 of 370 studies): nothing is said, and
    less would have been learned from.
    """
    ask, heard = Association.send_c_find, [0]

    def loses(association: Association, *question: Any) -> Iterator[Any]:
        for status, answer in ask(association, *question):
            pending = answer is not None
            heard[0] += pending
            if not (pending and (heard[0] == lost + 1 or (always and heard[0] > lost))):
                yield status, answer

    monkeypatch.setattr(Association, "send_c_find", loses)
    summary = pull(tmp_path, store, scp, attempts=3)
    if always:
        assert isinstance(summary, WardroundError) or summary.quarantined
    else:
        assert not isinstance(summary, WardroundError) and rows(tmp_path / "cohort") == honest


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's server, of a handshake that failed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_over_tls_the_authority_that_is_named_decides(
    tmp_path: Path, store: Path, honest: dict[tuple[bytes, bytes], bytes]
) -> None:
    """A peer that speaks TLS only, and asks for our certificate too."""
    ours, theirs = tls_files(tmp_path / "ours"), tls_files(tmp_path / "theirs")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ours.authority))
    context.load_cert_chain(ours.certificate, ours.key)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate = {"certificate_file": str(ours.certificate), "key_file": str(ours.key)}
    scp = Scp(store, context)
    try:
        there = {"address": f"localhost:{scp.port}", "tls": True, **certificate}
        refused = pull(tmp_path / "home", store, scp, **there, ca_file=str(theirs.authority))
        assert isinstance(refused, WardroundError) and "TLS" in str(refused) and "ca_file" in str(refused)
        summary = pull(tmp_path / "home", store, scp, **there, ca_file=str(ours.authority))
        assert not isinstance(summary, WardroundError), summary
        assert rows(tmp_path / "home" / "cohort") == honest
    finally:
        scp.server.shutdown()
        gc.collect()
