"""Whoever reaches the port that studies are sent to: silent, slow, lying, cut off or without a certificate."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from tests.client.intake.dicom_files import KEY
from tests.client.serve.sent import CT, listening, objects, send, stored
from tests.client.serve.served import study
from tests.pacs import TlsFiles, tls_files

from wardround_client.config import Pacs, Serve
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.serve import listening as port_of
from wardround_client.serve import reception as reception_of
from wardround_client.serve.reception import Reception

# pynetdicom's threads end as they can when a stranger leaves; pydicom warns of what is sent here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")
STRANGER = "127.0.0.2"


@pytest.fixture
def one(tmp_path: Path) -> Dataset:
    return pydicom.dcmread(study(tmp_path / "new", 1)[0])


def said(port: int, data: Dataset) -> bytes:
    """All that an honest sender of one object says."""
    words = bytearray()
    association = AE(ae_title="PACS").associate(
        "127.0.0.1", port, [build_context(CT)], ae_title="WARDROUND",
        evt_handlers=[(evt.EVT_DATA_SENT, lambda event: words.extend(event.data))],
    )  # fmt: skip
    association.send_c_store(data)
    association.release()
    return bytes(words)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return tls_files(tmp_path_factory.mktemp("tls") / "ours")


def of_tls(files: TlsFiles) -> Pacs:
    names = {"ca_file": files.authority, "certificate_file": files.certificate, "key_file": files.key}
    return Pacs.model_validate({"address": "127.0.0.1:9", "tls": True} | {name: str(f) for name, f in names.items()})


def stranger(port: int) -> socket.socket:
    """At another address of this machine; whatever it waits for, it does not wait for ever."""
    return socket.create_connection(("127.0.0.1", port), 60, (STRANGER, 0))


def until_cut_off(line: socket.socket, trickle: bytes = b"") -> None:
    """Say something now and then, until the other side has had enough."""
    line.settimeout(0.05 if trickle else 60)
    while True:
        try:
            if trickle:
                line.sendall(trickle)
            if not line.recv(4096):
                return
        except TimeoutError:
            assert trickle, "nobody cut it off"
        except OSError:
            return


def speak(line: socket.socket, words: bytes) -> None:
    """Wait for an answer to what may be a request for an association, say the rest, and hang up."""
    first = 6 + int.from_bytes(words[2:6], "big")
    with suppress(OSError):
        line.sendall(words[:first])
        if words[:1] == b"\1" and len(words) > first:
            line.recv(1)
        line.sendall(words[first:])
        line.shutdown(socket.SHUT_WR)
    until_cut_off(line)


KINDS = {
    "says nothing": (b"", b""),
    "says a byte now and then": (b"", b"\1"),
    "begins to ask for an association and stops": (b"\1\0\0\0\0\xc8\0\1", b""),
    "announces a unit of 4 GB and fills it": (b"\1\0\xff\xff\xff\xff", bytes(1 << 16)),
    "speaks HTTP": (b"GET / HTTP/1.1\r\n\r\n", b""),
    "speaks TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    "sends units that nobody asked for": (b"\4\0\0\0\0\x10" + bytes(16), b""),
}


def test_whoever_does_not_speak_keeps_nobody_out(tmp_path: Path, one: Dataset) -> None:
    with listening(tmp_path / "received", associations=len(KINDS)) as (port, folder, _, _):
        lines = [stranger(port) for _ in range(3 * len(KINDS))]
        for line, (begins, _) in zip(lines, KINDS.values(), strict=False):
            line.sendall(begins)
        assert send(port, one) == [0x0000], "the PACS has a share of its own"
        assert len(objects(folder)) == 1
        for line in lines:
            line.close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_whoever_does_not_speak_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: TlsFiles, encrypted: bool
) -> None:
    monkeypatch.setattr(port_of, "PATIENCE_S", 0.5)
    with listening(tmp_path / "received", of_tls(ours) if encrypted else None, associations=8) as (port, folder, _, _):
        lines = [stranger(port) for _ in KINDS]
        for line, (begins, _) in zip(lines, KINDS.values(), strict=True):
            line.sendall(begins)
        for line, (_, goes_on) in zip(lines, KINDS.values(), strict=True):
            until_cut_off(line, goes_on)
            line.close()
        assert not objects(folder)


def test_one_address_cannot_open_more_than_its_share(tmp_path: Path, one: Dataset) -> None:
    with listening(tmp_path / "received", associations=2) as (port, _, _, _):
        lines = [stranger(port) for _ in range(200)]
        for line in lines[2:]:
            until_cut_off(line)  # at once: patience is half a minute here
        assert send(port, one) == [0x0000]
        for line in lines:
            line.close()


def test_an_honest_conversation_with_anything_in_it(tmp_path: Path, one: Dataset) -> None:
    """Bytes exchanged, left out, put in; cut off anywhere; a part of it again."""
    parts = st.floats(0, 1)
    with listening(tmp_path / "received") as (port, folder, told, _):
        honest = said(port, one)

        @examples(max_examples=25, derandomize=True, database=None)
        @given(parts, st.integers(0, 64), st.binary(max_size=64), parts, parts)
        def whatever(start: float, length: int, put: bytes, end: float, again: float) -> None:
            at = int(start * len(honest))
            words = honest[:at] + put + honest[at + length :]
            with stranger(port) as line:
                speak(line, words[: int(end * len(words))] + honest[int(again * len(honest)) :])

        whatever()
        assert send(port, one) == [0x0000]
        assert all(pydicom.dcmread(path).StudyInstanceUID for path in objects(folder))
        assert not any("Neu" in why for _, why in told)


def test_an_object_that_breaks_off_is_not_kept_and_what_came_of_it_goes(
    tmp_path: Path, one: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception_of, "LOOK_S", 0.0)
    one.PixelData = bytes(1 << 20)  # several units
    with listening(tmp_path / "received") as (port, folder, _, _):
        honest = said(port, one)
        (kept,) = objects(folder)
        kept.unlink()
        with stranger(port) as line:
            speak(line, honest[: len(honest) // 2])
        (left,) = (tmp_path / "incoming").iterdir()
        assert not objects(folder)
        os.utime(left, (0, 0))
        assert send(port, one) == [0x0000]
        assert not left.exists() and len(objects(folder)) == 1


def test_what_is_too_large_is_refused_object_by_object_and_study_by_study(tmp_path: Path) -> None:
    files = [pydicom.dcmread(path) for path in study(tmp_path / "new", 1, images=3)]
    for data, size in zip(files, (600_000, 600_000, 4_000_000), strict=True):
        data.PixelData = bytes(size)
    with listening(tmp_path / "received", greatest_study_mb=1) as (port, folder, told, _):
        assert send(port, files[0], files[1]) == [0x0000, 0xA700]
        assert send(port, files[2]) == [None], "it is cut off before it is whole"
        assert told == [("PACS", "it is larger than a study may be")]
        assert len(objects(folder)) == 1
    with listening(tmp_path / "many", most_waiting=2) as (port, folder, _, _):
        several = [pydicom.dcmread(study(tmp_path / "new", number)[0]) for number in (2, 3, 4)]
        assert send(port, *several) == [0x0000, 0x0000, 0xA700]


def test_the_last_object_of_a_uid_counts(tmp_path: Path, one: Dataset) -> None:
    """As when somebody corrected it, and the PACS sends it again."""
    with listening(tmp_path / "received") as (port, folder, _, _):
        assert send(port, one) == [0x0000]
        one.PatientID = "CORRECTED"
        assert send(port, one) == [0x0000]
        (kept,) = objects(folder)
        assert pydicom.dcmread(kept).PatientID == "CORRECTED"


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Reception]:
    """Without a port."""
    told = list[tuple[str, str]]()
    made = Reception(tmp_path / "received", Serve(), Pseudonyms(KEY), lambda: False, lambda *line: told.append(line))
    yield made
    assert not any("Neu" in why for _, why in told)


@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6), st.floats(0, 1))
def test_an_object_with_anything_in_it_is_kept_whole_or_refused(
    tmp_path: Path, one: Dataset, taken: Reception, changes: list[tuple[float, bytes]], end: float
) -> None:
    content = bytearray((tmp_path / "new" / str(one.StudyInstanceUID) / "0").read_bytes())
    header = content.index(bytes(one.PixelData)[:64])
    for place, put in changes:
        at = 132 + int(place * (header - 132))
        content[at : at + len(put)] = put
    path = tmp_path / "odd"
    path.write_bytes(content[: len(content) if end > 0.3 else int(end * 3 * len(content))])
    before = {each: each.read_bytes() for each in objects(taken.folder)}
    status = stored(taken, path, str(one.SOPClassUID), str(one.SOPInstanceUID))
    assert status in (0x0000, 0xA700, 0xA900, 0xC000)
    changed = [each for each in objects(taken.folder) if before.get(each) != each.read_bytes()]
    assert status == 0x0000 or not changed
    assert all(each.read_bytes() == path.read_bytes() for each in changed)


def test_an_object_that_unfolds_without_end(
    tmp_path: Path, one: Dataset, taken: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception_of, "GREATEST_INFLATED", 1 << 16)
    one.PixelData = bytes(1 << 20)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    one.save_as(tmp_path / "bomb", enforce_file_format=True)
    assert (tmp_path / "bomb").stat().st_size < 10_000
    assert stored(taken, tmp_path / "bomb", str(one.SOPClassUID), str(one.SOPInstanceUID)) == 0xC000
    assert not objects(taken.folder)


def client(authority: Path, shown: TlsFiles | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def test_with_tls_only_certificates_of_the_authority_are_heard(tmp_path: Path, one: Dataset, ours: TlsFiles) -> None:
    theirs = tls_files(tmp_path / "theirs")
    with listening(tmp_path / "received", of_tls(ours)) as (port, folder, _, _):
        silent = stranger(port)  # it does not even shake hands
        assert send(port, one, tls=client(ours.authority, ours)) == [0x0000]
        assert send(port, one, tls=client(ours.authority, None)) == [], "no certificate"
        assert send(port, one, tls=client(ours.authority, theirs)) == [], "of another authority"
        assert send(port, one, tls=client(theirs.authority, ours)) == [], "it does not trust us"
        assert send(port, one) == [], "without TLS"
        assert send(port, one, caller="STRANGER", tls=client(ours.authority, ours)) == []
        silent.close()
        assert len(objects(folder)) == 1
