"""A PACS that lies, stalls and breaks off: nothing enters that was not asked for, and nothing is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from tests.client.intake.dicom_files import KEY
from tests.liar import MULTIPART, Exchange, Liar, Lie, lying, multipart, on, status
from tests.pacs import named_by, phantoms

from wardround.errors import WardroundError
from wardround_client.config import Pacs
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.pacs.archive import Archive
from wardround_client.intake.pacs.line import Answering
from wardround_client.intake.pacs.trouble import TroubleError
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.sources.dicomweb import DicomWebSource

RECIPE = ImageRecipe(16, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("studies"), patients=2)


@pytest.fixture(scope="module")
def honest(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bytes, bytes], bytes]:
    """What the named files in a folder become."""
    folder = tmp_path_factory.mktemp("named")
    named_by(store / "labels.csv", store, folder / "dicom")
    source = DicomFolder(Asked(str(folder / "dicom"), store / "labels.csv"), DicomFolder.Settings())
    ingest(source, folder / "cohort", RECIPE, key=KEY, workers=0)
    return rows(folder / "cohort")


@pytest.fixture(scope="module")
def liar(store: Path) -> Iterator[Liar]:
    with lying(store) as running:
        yield running


class Inline:
    """The archive in this process, where nothing hangs: a process of its own takes a second to start."""

    def __init__(self, archive: type[Archive], settings: Pacs, home: Path, folder: Path) -> None:
        self._answering = Answering(archive, settings, home, lambda size: None)

    def ask(self, what: str, *arguments: Any, **named: Any) -> Iterator[Any]:
        for kind, payload in self._answering(what, arguments, named):
            if kind == "trouble":
                raise TroubleError(payload)
            if kind == "answer":
                yield payload

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)


@pytest.fixture
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_source, "Line", Inline)


def rows(cohort: Path, recipe: ImageRecipe = RECIPE) -> dict[tuple[bytes, bytes], bytes]:
    """(patient, instance) -> its rows."""
    if not (cohort / "index.sqlite").exists():
        return {}
    with closing(sqlite3.connect(cohort / "index.sqlite")) as index:
        kept = index.execute(
            "SELECT pseudonym, instance, first_row, rows FROM instances JOIN patients ON id = patient"
        ).fetchall()
    values, size = (cohort / "inputs.bin").read_bytes(), recipe.layout.row_bytes
    return {(patient, instance): values[first * size : (first + n) * size] for patient, instance, first, n in kept}


def pull(home: Path, store: Path, liar: Liar, *lies: Lie, **more: Any) -> tuple[Any, Any]:
    """(source, summary or error) of one pull with these lies."""
    liar.lies = list(lies)
    quick = {"attempts": 2, "read_timeout_s": 1.0, **more}
    source = DicomWebSource(Asked(liar.url, store / "labels.csv", home=home), Pacs(url=liar.url, **quick))
    with closing(source):
        try:
            summary = ingest(source, home / "cohort", RECIPE, key=KEY, workers=0)
            source.ended()
            result: Any = summary
        except WardroundError as error:
            result = error
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    return source, result


def strangers(exchange: Exchange) -> None:
    """Everything it has, whatever was asked."""
    exchange.found = [tags for tags, _ in exchange.objects]


def foreign(exchange: Exchange) -> None:
    exchange.parts = [data for _, data in exchange.objects]


def renamed(exchange: Exchange) -> None:
    """The right UIDs over the pixels of another patient."""
    exchange.parts = [edited(part, PatientID="PAT-9") for part in exchange.parts]


def elsewhere(exchange: Exchange) -> None:
    exchange.parts = [edited(part, StudyInstanceUID="1.2.3.4") for part in exchange.parts]


def disguised(exchange: Exchange) -> None:
    """The file meta information says what was asked for, the data set is another object."""
    exchange.parts = [edited(part, meta=False, SOPInstanceUID="1.2.3.4.5") for part in exchange.parts]


def edited(part: bytes, *, meta: bool = True, **attributes: str) -> bytes:
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(part))
    for name, value in attributes.items():
        setattr(data, name, value)
    buffer = pydicom.filebase.DicomBytesIO()
    data.save_as(buffer)
    return bytes(buffer.getvalue())


def truncated(exchange: Exchange) -> bool:
    body = multipart(exchange.parts)
    exchange.handler.close_connection = True
    return exchange.send(200, MULTIPART, body[: len(body) * 2 // 3])


def cut(exchange: Exchange) -> bool:
    """Fewer bytes than were announced."""
    body = multipart(exchange.parts)
    exchange.handler.send_response(200)
    exchange.handler.send_header("Content-Type", MULTIPART)
    exchange.handler.send_header("Content-Length", str(len(body)))
    exchange.handler.end_headers()
    exchange.handler.wfile.write(body[: len(body) // 2])
    exchange.handler.close_connection = True
    return True


def endless_parts(exchange: Exchange) -> bool:
    exchange.begin(MULTIPART)
    while True:
        exchange.chunk(b"--lie\r\n\r\n" + exchange.objects[0][1] + b"\r\n")


def endless_header(exchange: Exchange) -> bool:
    exchange.begin(MULTIPART)
    while True:
        exchange.chunk(b"--lie\r\nX: " + b"x" * 4096)


def stuttering(exchange: Exchange) -> bool:
    """A byte now and then: each comes in time, and the answer never ends."""
    exchange.begin(MULTIPART if exchange.found is None else "application/dicom+json")
    while True:
        exchange.chunk(b" ")
        if wait(exchange, 0.2):
            return True


def silent(exchange: Exchange) -> bool:
    wait(exchange, 3600)
    return True


def wait(exchange: Exchange, seconds: float) -> bool:
    """Until the test ends at most."""
    stop: bool = exchange.handler.server.stop.wait(seconds)  # type: ignore[attr-defined]
    return stop


def same_page(exchange: Exchange) -> None:
    """Every page is the first one."""
    wanted = dict(zip(*[iter(exchange.asked.split("/"))] * 2, strict=False))
    exchange.found = [tags for tags, _ in exchange.objects if tags["StudyInstanceUID"] in str(wanted)] or exchange.found


def ever_new(exchange: Exchange) -> None:
    base = (exchange.found or [{}])[0]
    exchange.found = [
        {**base, "SOPInstanceUID": f"1.2.{np.random.default_rng().integers(1 << 60)}"} for _ in range(1000)
    ]


def paths(exchange: Exchange) -> None:
    exchange.found = [{**tags, "SOPInstanceUID": "../../../etc/passwd"} for tags in exchange.found or []]


def nonsense(exchange: Exchange) -> bool:
    return exchange.send(200, "application/dicom+json", b'{"a": [[[' * 1000)


def numbers(exchange: Exchange) -> bool:
    return exchange.send(200, "application/dicom+json", b'[{"0020000D": {"Value": [7]}}, 3, null, {"00080018": []}]')


def deep(exchange: Exchange) -> bool:
    return exchange.send(200, "application/dicom+json", b"[" * 100_000 + b"]" * 100_000)


def twice(exchange: Exchange) -> None:
    exchange.parts = exchange.parts * 2
    exchange.found = None if exchange.found is None else exchange.found * 2


def html(exchange: Exchange) -> bool:
    return exchange.send(200, "text/html", b"<html>Please log in</html>")


def not_dicom(exchange: Exchange) -> None:
    exchange.parts = [b"<html>no</html>" for _ in exchange.parts]


def empty(exchange: Exchange) -> None:
    exchange.parts = [b"" for _ in exchange.parts]


IN_QIDO: tuple[Callable[[Exchange], Any], ...] = (
    strangers,
    same_page,
    paths,
    nonsense,
    numbers,
    deep,
    twice,
    html,
    status(500),
    status(404),
    status(503),
)
IN_WADO: tuple[Callable[[Exchange], Any], ...] = (
    foreign, renamed, elsewhere, disguised, truncated, cut, endless_parts, endless_header, twice, html, not_dicom,
    empty,
    status(500), status(404), status(503, Retry_After="1"), status(429), status(401), status(302, Location="http://127.0.0.2/"),
    status(200, Content_Encoding="gzip"),
)  # fmt: skip


def check(home: Path, store: Path, liar: Liar, honest: dict[tuple[bytes, bytes], bytes], *lies: Lie) -> None:
    """What is stored beside lies is true, and an honest answer completes it."""
    pull(home, store, liar, *lies)
    stored = rows(home / "cohort")
    assert stored.items() <= honest.items()
    source, summary = pull(home, store, liar)
    assert not isinstance(summary, WardroundError) and source.unasked == 0
    assert rows(home / "cohort") == honest and summary.read == summary.used + summary.quarantined == len(honest)


LIES = [on(True, change) for change in IN_QIDO] + [on(False, change) for change in IN_WADO]


@pytest.mark.usefixtures("_inline")
@pytest.mark.parametrize("lie", LIES)
def test_no_lie_enters_and_nothing_is_lost(
    lie: Lie, tmp_path: Path, store: Path, liar: Liar, honest: dict[tuple[bytes, bytes], bytes]
) -> None:
    check(tmp_path, store, liar, honest, lie)


@pytest.mark.parametrize("lie", [stuttering, silent])
@pytest.mark.parametrize("qido", [True, False])
def test_an_answer_that_does_not_come_ends(
    lie: Any, qido: bool, tmp_path: Path, store: Path, liar: Liar, honest: dict[tuple[bytes, bytes], bytes]
) -> None:
    liar.server.stop = liar.stop  # type: ignore[attr-defined]
    left = [1]

    def once(exchange: Exchange) -> bool:
        if not left:
            return False
        left.pop()
        return bool(lie(exchange))

    check(tmp_path, store, liar, honest, on(qido, once))
