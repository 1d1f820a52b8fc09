"""`pull --check`, and settings that are wrong: one line that says what is missing."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.command_line import wardround
from tests.liar import Exchange, lying, on, status
from tests.pacs import phantoms, running_orthanc, settings_toml, tls_files

from orthanc import Orthanc, free_port
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.pacs.hours import within


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    settings = {"AuthenticationEnabled": True, "RegisteredUsers": {"ward": "round"}, "DicomAlwaysAllowFind": False}
    with running_orthanc(tmp_path_factory.mktemp("pacs"), **settings) as running:
        yield running


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return path.name


def check(capsys: pytest.CaptureFixture[str], home: Path, **pacs: Any) -> tuple[int, str]:
    settings_toml(home, **{"attempts": 1, "read_timeout_s": 5.0, **pacs})
    code, out, err = wardround(capsys, "pull", home, "--check")
    return code, " ".join((out + err).split())


def test_each_mistake_of_a_set_up_is_said(home: Path, pacs: Orthanc, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(home / "good.toml", 'username = "ward"\npassword = "round"\n')
    bad = write(home / "bad.toml", 'username = "ward"\npassword = "wrong"\n')
    open_to_all = write(home / "open.toml", 'username = "ward"\npassword = "round"\n', 0o644)
    dimse = {"address": f"127.0.0.1:{pacs.dimse}", "called": "ORTHANC"}
    assert check(capsys, home, url=pacs.url, credentials_file=good) == (0, "The PACS answers: DICOMweb.")
    for code, words, settings in (
        (6, "401: the credentials are not accepted", {"url": pacs.url}),
        (6, "401: the credentials are not accepted", {"url": pacs.url, "credentials_file": bad}),
        (2, "others may read or change it (mode 0644)", {"url": pacs.url, "credentials_file": open_to_all}),
        (2, "No such file", {"url": pacs.url, "credentials_file": "none.toml"}),
        (6, "404. Next: check the path", {"url": f"{pacs.rest}/dicomweb", "credentials_file": good}),
        (6, "the connection is refused", {"url": f"http://127.0.0.1:{free_port()}/dicom-web"}),
        (6, "no TLS there", {"url": pacs.url.replace("http", "https")}),
        (2, "without TLS", {"url": "http://pacs.example/dicom-web", "credentials_file": good}),
        (2, "names no PACS", {}),
        (2, "names url and address", {"url": pacs.url, **dimse}),
        (6, "the PACS has another AE title", {**dimse, "called": "NOBODY"}),
        (6, "nobody answers", {**dimse, "address": f"127.0.0.1:{free_port()}"}),
        (6, "not as DICOM", {**dimse, "address": f"127.0.0.1:{pacs.http}"}),
        (6, "is not accepted", {**dimse, "tls": True}),
        (2, "without listen", {**dimse, "retrieve": "move"}),
    ):
        found, said = check(capsys, home, **settings)
        assert (found, words in said) == (code, True), said
    assert check(capsys, home, **dimse) == (0, "The PACS answers: DIMSE C-ECHO of ORTHANC.")


def test_who_answers_by_tls_is_checked(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the authority that hospital.toml names, and no other."""
    ours, theirs = tls_files(home / "ours"), tls_files(tmp_path / "theirs")
    with lying(phantoms(tmp_path / "store", patients=1)) as pacs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ours.certificate, ours.key)
        pacs.server.socket = context.wrap_socket(pacs.server.socket, server_side=True)
        url = pacs.url.replace("http://127.0.0.1", "https://localhost")
        assert check(capsys, home, url=url, ca_file=str(ours.authority))[0] == 0
        for ca_file in (str(theirs.authority), ""):
            code, said = check(capsys, home, url=url, ca_file=ca_file)
            assert code == 6 and "certificate of the PACS is not accepted" in said


def test_a_redirect_is_not_followed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = phantoms(tmp_path / "store", patients=1)
    with lying(store) as pacs, lying(store) as other:
        pacs.lies = [on(True, status(302, Location=f"{other.url}/studies"))]
        code, said = check(capsys, home, url=pacs.url)
        assert code == 6 and "sends us elsewhere" in said and not other.asked


def test_hours_and_patience(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of the hours nothing is asked; 503 is waited for as it says, and not for ever."""
    store, slept = phantoms(tmp_path / "store", patients=1), list[float]()
    labels = store / "labels.csv"
    monkeypatch.setattr(pacs_source, "pause", slept.append)
    monkeypatch.setattr(pacs_source, "clock", lambda: dt.time(12, 0))
    with lying(store) as pacs:
        settings_toml(home, url=pacs.url, hours="20:00-06:00")
        code, _, err = wardround(capsys, "pull", home, "--labels", labels)
        assert code == 6 and "20:00-06:00" in err and not pacs.asked
        left = [status(503, Retry_After="7"), status(429)]

        def busy(exchange: Exchange) -> bool:
            return bool(left and left.pop()(exchange))

        pacs.lies = [busy]
        settings_toml(home, url=pacs.url)
        assert wardround(capsys, "pull", home, "--labels", labels, "--size", 8)[0] == 0
        assert len(slept) == 2 and slept[0] <= 2 and slept[1] == 7
        pacs.lies = [status(503, Retry_After="86400")]
        assert wardround(capsys, "pull", home, "--labels", labels, "--size", 8)[0] == 6 and len(slept) == 2


MINUTES = st.integers(0, 24 * 60 - 1)


@given(start=MINUTES, end=MINUTES, now=MINUTES)
def test_hours_may_go_over_midnight(start: int, end: int, now: int) -> None:
    def at(minutes: int) -> dt.time:
        return dt.time(minutes // 60, minutes % 60)

    inside = within(f"{at(start):%H:%M}-{at(end):%H:%M}", at(now))
    assert inside == ((now - start) % 1440 < (end - start) % 1440 or start == end)
    assert within("", at(now))


def test_a_wildcard_is_asked_of_nobody(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = phantoms(tmp_path / "store", patients=1)
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,finding\n*,a\nPAT-?,a\nPAT\\PAT-1,a\nPAT-0,a\n")
    with lying(store) as pacs:
        settings_toml(home, url=pacs.url)
        code, out, _ = wardround(capsys, "pull", home, "--labels", labels, "--size", 8)
        assert code == 0 and "line 2, 3, 4" in out
        asked = [path for path in pacs.asked if "PatientID" in path]
        assert asked and all("PatientID=PAT-0&" in path for path in asked)


@pytest.mark.parametrize(
    ("source", "diagnostic", "says"),
    [
        (1, 3, "does not know our AE title"), (1, 7, "has another AE title"), (1, 1, "rejects our association"),
        (3, 2, "no association to spare"),
    ],
)  # fmt: skip
def test_a_pacs_that_rejects_and_hangs_up_is_told_from_one_that_is_no_pacs(
    source: int, diagnostic: int, says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4), and the end of the line before it was looked at: often, for it is a race."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def rejects() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listening.accept()
                    with line:
                        line.recv(65536)
                        line.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 1, source, diagnostic]))

        thread = threading.Thread(target=rejects)
        thread.start()
        try:
            for _ in range(8):
                code, said = check(capsys, home, address=f"127.0.0.1:{listening.getsockname()[1]}", called="A")
                assert code == 6 and says in said, said
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
