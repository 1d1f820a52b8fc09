"""DICOMweb (PS3.18): found by QIDO-RS, fetched by WADO-RS, in the transfer syntax in which the PACS keeps it, and
stored by STOW-RS.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from requests.adapters import HTTPAdapter

from wardround_client.config import Pacs
from wardround_client.intake.pacs.archive import MOST_FILE_BYTES, MOST_UNASKED, Archive, Found, Recent
from wardround_client.intake.pacs.line import PIECE
from wardround_client.intake.pacs.multipart import MultipartError, parts
from wardround_client.intake.pacs.secrets import credentials, tls
from wardround_client.intake.pacs.source import PacsSource
from wardround_client.intake.pacs.trouble import TroubleError, trouble

PAGE = 1000
"""Answers of one request."""

MOST_JSON_BYTES = 1 << 26
"""Of one page."""

TAGS = {
    "study": "0020000D",
    "series": "0020000E",
    "instance": "00080018",
    "patient": "00100020",
    "accession": "00080050",
    "sop_class": "00080016",
}
UPDATED, MADE = ("0008041F",), ("00080012", "00080013")
"""What tells that there may be something else: Study Update DateTime, Instance Creation Date and Time."""

MODALITIES, IMAGES = "00080061", "00201208"  # Modalities in Study, Number of Study Related Instances
REFERENCED, STORED_UID = "00081199", "00081155"  # Referenced SOP Sequence and SOP Instance UID of PS3.18 table 10.5.3-1

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""As it is kept: without the asterisk a PACS decodes it first (PS3.18 8.7.3.5.2)."""


T = TypeVar("T")


class DicomWeb(Archive):
    """A DICOMweb service."""

    def __init__(self, settings: Pacs, home: Path, beat: Callable[[int], None]) -> None:
        """Raises: ConfigError."""
        self._beat = beat
        self._session = _Session(settings, home, beat)
        self._client = DICOMwebClient(settings.url.rstrip("/"), session=self._session, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)

    def check(self) -> Iterator[str]:
        """A QIDO-RS for one study."""
        self._client.search_for_studies(limit=1, fields=["0020000D"])
        yield "DICOMweb"

    def find(self, key: str, value: str) -> Iterator[Found]:
        """Studies, then their objects; or the object itself."""
        by = {key: value}
        if key == "SOPInstanceUID":
            yield from self._instances(Found("", "", value), by)
        elif key == "SeriesInstanceUID":
            for series in self._pages(self._client.search_for_series, by, ("study", "series", "patient", "accession")):
                if series.series == value:
                    yield from self._instances(series)
        else:
            for study in self._pages(self._client.search_for_studies, by, ("study", "patient", "accession"), UPDATED):
                if value in (study.study, study.patient, study.accession):
                    yield from self._instances(study)
                else:
                    yield study  # not asked for: to be counted

    def _instances(self, of: Found, filters: Mapping[str, str] | None = None) -> Iterator[Found]:
        """Objects of a study or a series. What they do not say of these, these have said."""

        def search(**more: Any) -> list[dict[str, Any]]:
            return self._client.search_for_instances(of.study or None, of.series or None, **more)

        for found in self._pages(search, filters or {}, tuple(TAGS), MADE):
            yield found.within(of)

    def _pages(
        self,
        search: Callable[..., list[dict[str, Any]]],
        filters: Mapping[str, str],
        names: Sequence[str],
        changes: Sequence[str] = (),
    ) -> Iterator[Found]:
        fields = [*(TAGS[name] for name in names), *changes]
        return self._read(search, filters, fields, lambda answer: _found(answer, names, changes))

    def _read(
        self,
        search: Callable[..., list[dict[str, Any]]],
        filters: Mapping[str, str],
        fields: Sequence[str],
        read: Callable[[Mapping[str, Any]], T],
    ) -> Iterator[T]:
        """Page by page, until one is empty or brings nothing new."""
        seen: set[T] = set()
        offset = 0
        while True:
            page = search(limit=PAGE, offset=offset, fields=fields, search_filters=filters)
            fresh = [found for found in map(read, page) if found not in seen]
            if not fresh:
                return
            yield from fresh
            seen.update(fresh)
            offset += len(page)

    def fetch(self, found: Sequence[Found], folder: Path, *, whole: bool) -> Iterator[tuple[str, Path | None]]:
        """The series in one answer, or object by object."""
        base = f"{self._client.base_url}/studies/{found[0].study}/series/{found[0].series}"
        if whole:
            yield from self._parts(base, folder, len(found))
            return
        for each in found:
            try:
                yield from self._parts(f"{base}/instances/{each.instance}", folder, 1)
            except TroubleError as error:
                if error.trouble.kind != "absent":
                    raise
                yield each.instance, None

    def patients(self, study: str) -> Iterator[str]:
        """By a QIDO-RS."""
        by = {"StudyInstanceUID": study}
        for found in self._pages(self._client.search_for_studies, by, ("study", "patient")):
            if found.study == study:
                yield found.patient

    def recent(self, first: str, last: str) -> Iterator[Recent]:
        """By their Study Date."""
        fields, days = [TAGS["study"], MODALITIES, IMAGES, *UPDATED], {"StudyDate": f"{first}-{last}"}
        yield from self._read(self._client.search_for_studies, days, fields, _recent)

    def store(self, files: Sequence[Path]) -> Iterator[str]:
        """One by one: a PACS that refuses one says nothing of the others."""
        for path in files:
            meta = dcmread(path, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
            study, uid = str(meta.StudyInstanceUID), str(meta.SOPInstanceUID)
            try:
                stored = uid in self._post(study, path.read_bytes())
            except TroubleError as error:  # also where it was there already (PS3.18 10.5.3)
                if error.trouble.kind in ("away", "busy") or not self._has(study, uid):
                    raise
                stored = True
            if not (stored or self._has(study, uid)):
                raise trouble("broken", "the PACS does not say that it has stored a result", "look in its log")
            yield uid

    def _post(self, study: str, data: bytes) -> set[str]:
        """STOW-RS -> the UIDs that the PACS says it has stored."""
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        with self._session.post(
            f"{self._client.base_url}/studies/{study}",
            data=_Body(head + data + f"\r\n--{boundary}--\r\n".encode(), self._beat),
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
        ) as answer:
            body = b"".join(_chunks(answer))
        try:
            told = json.loads(body)
            return {str(one[STORED_UID]["Value"][0]) for one in told[REFERENCED]["Value"]}
        except (ValueError, LookupError, TypeError, RecursionError):  # it is asked whether it has it
            return set()

    def _has(self, study: str, uid: str) -> bool:
        """Whether the PACS finds an object in a study."""
        return any(found.instance == uid for found in self._instances(Found(study, "", ""), {"SOPInstanceUID": uid}))

    def _parts(self, url: str, folder: Path, expected: int) -> Iterator[tuple[str, Path]]:
        with self._session.get(url, headers={"Accept": STORED}, stream=True) as answer:
            kind = answer.headers.get("Content-Type", "")
            boundary = re.search(r'boundary="?([^";,]+)', kind, re.IGNORECASE)
            if not kind.lower().startswith("multipart/related") or boundary is None:
                raise trouble("broken", "the PACS did not answer with DICOM objects", "check the path in [pacs] url")
            try:
                for number, body in enumerate(parts(_chunks(answer), boundary[1].strip().encode())):
                    if number >= expected + MOST_UNASKED:
                        raise trouble("broken", "the PACS sends more objects than were asked for")
                    yield _written(body, folder)
            except MultipartError as error:
                raise trouble("broken", f"the answer of the PACS is not whole: {error}") from None


def _written(body: Iterator[bytes], folder: Path) -> tuple[str, Path]:
    """(SOP Instance UID of the file meta information, file)."""
    scratch, size = folder / "part", 0
    with scratch.open("wb") as file:
        for data in body:
            size += len(data)
            if size > MOST_FILE_BYTES:
                raise trouble("broken", f"the PACS sends an object of more than {MOST_FILE_BYTES:,} bytes")
            file.write(data)
    path = folder / secrets.token_hex(8)
    scratch.rename(path)
    try:
        return str(read_file_meta_info(path).get("MediaStorageSOPInstanceUID", "")), path
    except Exception:  # not DICOM: it is counted as not asked for
        return "", path


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    while data := answer.raw.read(PIECE):
        yield data


def _found(answer: Mapping[str, Any], names: Sequence[str], changes: Sequence[str]) -> Found:
    """Of DICOM JSON (PS3.18 annex F): what was asked for; a study that names a series says nothing about the others."""

    def value(tag: str) -> str:
        values = answer.get(tag, {}).get("Value") or [""]
        return values[0] if isinstance(values[0], str) else ""

    told = {name: value(tag) if name in names else "" for name, tag in TAGS.items()}
    return Found(**told, changed=" ".join(filter(None, map(value, changes))))


def _recent(answer: Mapping[str, Any]) -> Recent:
    def values(tag: str) -> tuple[str, ...]:
        return tuple(str(value)[:64] for value in answer.get(tag, {}).get("Value") or [])

    return Recent("".join(values(TAGS["study"])[:1]), values(MODALITIES), " ".join(values(IMAGES) + values(UPDATED[0])))


class _Body:
    """What is sent, counted as it goes."""

    def __init__(self, data: bytes, beat: Callable[[int], None]) -> None:
        self._data, self._beat = memoryview(data), beat

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def read(self, size: int = PIECE) -> bytes:
        data, self._data = bytes(self._data[:size]), self._data[size:]
        self._beat(len(data))
        return data


class _Counted:
    """An answer's body, counted, at most so long."""

    def __init__(self, raw: Any, most: int, beat: Callable[[int], None]) -> None:
        self._raw, self._most, self._beat = raw, most, beat

    def read(self, size: int = PIECE, **_: object) -> bytes:
        try:
            data: bytes = self._raw.read(min(size, PIECE))
        except Exception as error:
            raise trouble("broken", f"the answer of the PACS is not whole ({type(error).__name__})") from None
        self._beat(len(data))
        self._most -= len(data)
        if self._most < 0:
            raise trouble("broken", "the answer of the PACS is longer than is allowed")
        return data

    def close(self) -> None:
        self._raw.close()

    def release_conn(self) -> None:
        self._raw.release_conn()


class _Session(requests.Session):
    """To one host: no redirect, no proxy, no .netrc. Whatever is wrong becomes a `TroubleError`."""

    def __init__(self, settings: Pacs, home: Path, beat: Callable[[int], None]) -> None:
        super().__init__()
        self._patience = (settings.connect_timeout_s, settings.read_timeout_s)
        self._where, self._beat = settings.url, beat
        self.trust_env = False
        self.headers.update({"Accept-Encoding": "identity", "User-Agent": "wardround"})
        given = credentials(settings, home)
        url = urlsplit(settings.url)
        if given.username:
            self.auth = (given.username, given.password)
        elif given.token:
            self.headers["Authorization"] = f"Bearer {given.token}"
        if url.scheme == "https":
            self.mount("https://", _Adapter(tls(settings, home)))

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Raises: TroubleError."""
        kwargs |= {"allow_redirects": False, "stream": True, "timeout": self._patience}
        self._beat(0)
        try:
            answer = super().send(request, **kwargs)
        except requests.exceptions.SSLError as error:
            raise trouble(
                "refused", f"the certificate of the PACS is not accepted ({_reason(error)})", "check [pacs] ca_file"
            ) from None
        except requests.exceptions.ReadTimeout:
            raise trouble("broken", "the PACS did not answer in time", "raise [pacs] read_timeout_s") from None
        except requests.exceptions.ConnectionError as error:
            raise trouble(
                "away", f"nobody answers at {self._where} ({_reason(error)})", "check [pacs] url and the firewall"
            ) from None
        try:
            self._check(answer)
        except TroubleError:
            answer.close()
            raise
        wado = "multipart" in str(request.headers.get("Accept", ""))
        answer.raw = _Counted(answer.raw, 1 << 50 if wado else MOST_JSON_BYTES, self._beat)
        return answer

    def _check(self, answer: requests.Response) -> None:
        status, of = answer.status_code, f"the PACS answers {answer.status_code}"
        if status in (429, 503):
            after = _after(answer.headers.get("Retry-After", ""))
            raise trouble("busy", f"{of}: it asks for patience", "pull again later", after)
        if status in (401, 403):
            raise trouble("refused", f"{of}: the credentials are not accepted", "check [pacs] credentials_file")
        if status in (404, 410):
            raise trouble("absent", of, "check the path in [pacs] url")
        if 300 <= status < 400:
            raise trouble("refused", f"{of}: it sends us elsewhere", "write the address it means in [pacs] url")
        if 400 <= status < 500:
            post = answer.request.method == "POST"
            raise trouble(
                "refused",
                f"{of}: it does not take the {'result' if post else 'question'}",
                f"ask its administrator: {'STOW-RS' if post else 'QIDO-RS and WADO-RS'}",
            )
        if status not in (200, 202, 204, 206):
            raise trouble("broken", of, "look in the log of the PACS")
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise trouble("broken", "the PACS compresses its answers though it was asked not to")


class _Adapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)


def _after(text: str) -> float:
    """Seconds of Retry-After: a number, or a date (RFC 9110 10.2.3)."""
    if text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    """The innermost of a chain of libraries' errors, by its kind."""
    words = str(error)
    for known, said in {
        "refused": "the connection is refused",
        "resolve": "the name is not known",
        "Name or service": "the name is not known",
        "timed out": "no answer in time",
        "certificate verify failed: Hostname": "it is another host's",
        "self-signed": "its authority is not known",
        "self signed": "its authority is not known",
        "unable to get local issuer": "its authority is not known",
        "expired": "it is out of date",
        "Hostname mismatch": "it is another host's",
        "WRONG_VERSION": "no TLS there",
    }.items():
        if known in words:
            return said
    return type(error).__name__


class DicomWebSource(PacsSource):
    """A PACS by DICOMweb."""

    archive = DicomWeb


source = DicomWebSource
