"""DIMSE (PS3.4 annex C, PS3.7): found by C-FIND, fetched by C-GET, or by C-MOVE to a C-STORE SCP of our own;
stored by C-STORE.
"""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ

from wardround_client.config import Pacs
from wardround_client.intake.pacs.archive import MOST_FILE_BYTES, MOST_UNASKED, Archive, Found, Recent
from wardround_client.intake.pacs.secrets import tls
from wardround_client.intake.pacs.source import PacsSource
from wardround_client.intake.pacs.trouble import TroubleError, trouble

# SOP classes of PS3.4 table C.6.2.1-1 and of PS3.4 annex A.
VERIFICATION = UID("1.2.840.10008.1.1")
FIND, MOVE, GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{n}") for n in (1, 2, 3))

_NO_IMAGE = ("MPEG", "HEVC", "SMPTE", "Referenced")  # videos, and pixels that lie elsewhere
SYNTAXES: list[str | UID] = [uid for uid in AllTransferSyntaxes if not any(word in uid.name for word in _NO_IMAGE)]

MOST_CONTEXTS = 127
"""Of one association, beside that of the question (PS3.8 7.1.1.13: odd numbers up to 255)."""

PDU_BYTES = 1 << 17
"""Of what is sent to us: with the usual 16 kB a CT slice is 32 pieces, each of which costs as much as a large one."""

LEVELS = {
    "PatientID": "STUDY",
    "AccessionNumber": "STUDY",
    "StudyInstanceUID": "STUDY",
    "SeriesInstanceUID": "SERIES",
    "SOPInstanceUID": "IMAGE",
}
KEYWORDS = {
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "SOPInstanceUID": "instance",
    "PatientID": "patient",
    "AccessionNumber": "accession",
    "SOPClassUID": "sop_class",
}
RETURNED = {
    "STUDY": ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyUpdateDateTime"),
    "SERIES": ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "AccessionNumber"),
    "IMAGE": (*KEYWORDS, "InstanceCreationDate", "InstanceCreationTime"),
}
OF_RECENT = ("StudyInstanceUID", "ModalitiesInStudy", "NumberOfStudyRelatedInstances", "StudyUpdateDateTime")
DUPLICATE = 0x0111
"""It has it already (PS3.7 annex C)."""
C_FIND_RSP = 0x8020  # the Command Field of an answer (PS3.7 9.3.2.2)
REJECTED = {
    # Source and diagnostic of A-ASSOCIATE-RJ (PS3.8 9.3.4).
    (1, 3): ("the PACS does not know our AE title", "have its administrator add it, or correct [pacs] calling"),
    (1, 7): ("the PACS has another AE title", "correct [pacs] called"),
}


class Dimse(Archive):
    """A query/retrieve SCP. One association a question."""

    def __init__(self, settings: Pacs, home: Path, beat: Callable[[int], None]) -> None:
        """Raises: ConfigError."""
        self._settings, self._beat = settings, beat
        self._tls = tls(settings, home) if settings.tls else None
        self._host, _, port = settings.address.rpartition(":")
        self._host, self._port = self._host.strip("[]"), int(port)
        self._ae = AE(ae_title=settings.calling)
        self._ae.maximum_pdu_size = PDU_BYTES
        # All patience is in line.py: these count from the last whole message, which may be a long one.
        self._ae.dimse_timeout = self._ae.network_timeout = None
        self._ae.acse_timeout = self._ae.connection_timeout = settings.connect_timeout_s
        self._since = 0  # bytes since the last whole object
        self._left = 0  # objects that may still come
        self._folder = home
        self._unwritten: OSError | None = None
        self._arrived: SimpleQueue[tuple[str, Path]] = SimpleQueue()
        self._listens = False

    def check(self) -> Iterator[str]:
        """C-ECHO, and whether it would answer questions."""
        with self._association([build_context(VERIFICATION), build_context(FIND)]) as association:
            if association.send_c_echo().get("Status") != 0:
                raise trouble("broken", "the PACS does not answer C-ECHO")
            if not any(context.abstract_syntax == FIND for context in association.accepted_contexts):
                raise trouble("refused", "the PACS lets us ask nothing", "have its administrator allow C-FIND")
        yield f"DIMSE C-ECHO of {self._settings.called}"

    def find(self, key: str, value: str) -> Iterator[Found]:
        """Level by level, as every PACS must be able to (PS3.4 C.4.1.3.1.1)."""
        with self._association([build_context(FIND)]) as association:
            levels = ["STUDY", "SERIES", "IMAGE"][["STUDY", "SERIES", "IMAGE"].index(LEVELS[key]) :]
            yield from self._below(association, levels, {key: value}, key, value)

    def _below(
        self, association: Association, levels: Sequence[str], by: dict[str, str], key: str, value: str
    ) -> Iterator[Found]:
        answers = list(self._question(association, levels[0], by))
        for answer in answers:
            if len(levels) == 1:
                yield answer
            elif getattr(answer, KEYWORDS[key]) != value:
                yield answer  # not asked for: to be counted
            else:
                unique = {"StudyInstanceUID": answer.study}
                unique |= {"SeriesInstanceUID": answer.series} if levels[0] == "SERIES" else {}
                for below in self._below(association, levels[1:], unique, key, value):
                    yield below.within(answer)

    def _question(self, association: Association, level: str, by: dict[str, str]) -> Iterator[Found]:
        do = _COMPLAINT if level != "STUDY" and len(by) == 1 else ""
        for answer in self._answers(association, level, RETURNED[level], by, do):
            told = {word: str(answer.get(word, "") or "") for word in RETURNED[level]}
            changed = " ".join(value for word, value in told.items() if value and word not in KEYWORDS)
            yield Found(**{name: told.get(word, "") for word, name in KEYWORDS.items()}, changed=changed)

    def _answers(
        self, association: Association, level: str, wanted: Sequence[str], by: dict[str, str], do: str = ""
    ) -> Iterator[Dataset]:
        question = Dataset()
        question.SpecificCharacterSet = "ISO_IR 192"
        question.QueryRetrieveLevel = level
        for keyword in wanted:
            setattr(question, keyword, "")
        for keyword, value in by.items():
            setattr(question, keyword, value)
        received = heard = 0

        def count(event: evt.Event) -> None:
            nonlocal received
            received += event.message.command_set.get("CommandField") == C_FIND_RSP

        association.bind(evt.EVT_DIMSE_RECV, count)
        for status, answer in association.send_c_find(question, FIND):
            heard += 1
            code = status.get("Status")
            if code in (0xFF00, 0xFF01) and answer is not None:
                yield answer
            elif code != 0:
                raise self._failed(code, "C-FIND", do)
        association.unbind(evt.EVT_DIMSE_RECV, count)
        if received != heard:  # on a busy machine pynetdicom's own thread may take one for a request, and drop it
            raise trouble("broken", "an answer of the PACS was lost here", "ask again")

    def patients(self, study: str) -> Iterator[str]:
        """By a C-FIND."""
        with self._association([build_context(FIND)]) as association:
            for found in self._question(association, "STUDY", {"StudyInstanceUID": study}):
                if found.study == study:
                    yield found.patient

    def recent(self, first: str, last: str) -> Iterator[Recent]:
        """By their Study Date."""
        with self._association([build_context(FIND)]) as association:
            for answer in self._answers(association, "STUDY", OF_RECENT, {"StudyDate": f"{first}-{last}"}):
                study, modalities, *changed = (_values(answer, word) for word in OF_RECENT)
                yield Recent("".join(study[:1]), modalities, " ".join(value for each in changed for value in each))

    def store(self, files: Sequence[Path]) -> Iterator[str]:
        """In one association."""
        objects = [dcmread(path) for path in files]
        classes = dict.fromkeys(str(each.SOPClassUID) for each in objects)
        contexts = [build_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for uid in classes]
        with self._association(contexts) as association:
            taken = {str(context.abstract_syntax) for context in association.accepted_contexts}
            for each in objects:
                if each.SOPClassUID not in taken:
                    name = UID(each.SOPClassUID).name
                    raise trouble("refused", f"the PACS takes no {name}", "have its administrator allow it")
                code = association.send_c_store(each).get("Status")
                if code not in (0x0000, DUPLICATE) and not (code is not None and 0xB000 <= code <= 0xBFFF):
                    raise self._failed(code, "C-STORE")
                yield str(each.SOPInstanceUID)

    def _failed(self, code: int | None, what: str, do: str = "") -> TroubleError:
        if code is None:
            return trouble("broken", f"the PACS broke off in the middle of a {what}")
        if 0xA700 <= code <= 0xA7FF:
            return trouble("busy", f"the PACS answers {what} with status {code:04X}: it is out of resources")
        if code == 0xA801:
            return trouble("refused", "the PACS does not know our AE title as a destination", "have it added there")
        return trouble("broken", f"the PACS answers {what} with status {code:04X}", do)

    def fetch(self, found: Sequence[Found], folder: Path, *, whole: bool) -> Iterator[tuple[str, Path | None]]:
        """The series, or object by object."""
        questions = [(found[0], "SERIES", len(found))] if whole else [(each, "IMAGE", 1) for each in found]
        moves = self._settings.retrieve == "move"
        storage = [] if moves else _contexts({each.sop_class for each in found})
        roles = [build_role(uid, scp_role=True) for uid in {str(context.abstract_syntax) for context in storage}]
        self._unwritten = None
        self._folder, self._left = folder, len(found) + MOST_UNASKED
        for _ in _drained(self._arrived):  # of an answer that was broken off
            pass
        if moves:
            self._listen()
        with self._association([build_context(MOVE if moves else GET), *storage], roles) as association:
            for each, level, expected in questions:
                sent = 0
                for _ in self._retrieve(association, each, level):
                    for uid, path in _drained(self._arrived):
                        sent += 1
                        yield uid, path
                if not sent and expected == 1:
                    yield each.instance, None

    def _retrieve(self, association: Association, each: Found, level: str) -> Iterator[None]:
        """Yields whenever objects may have arrived, and at the end."""
        question = Dataset()
        question.QueryRetrieveLevel = level
        question.StudyInstanceUID, question.SeriesInstanceUID = each.study, each.series
        if level == "IMAGE":
            question.SOPInstanceUID = each.instance
        if self._settings.retrieve == "move":
            answers = association.send_c_move(question, self._settings.calling, MOVE)
        else:
            answers = association.send_c_get(question, GET)
        for status, _ in answers:
            code = status.get("Status")
            if self._unwritten is not None:
                raise self._unwritten
            if code is None or not (code in (0x0000, 0xFF00) or 0xB000 <= code <= 0xBFFF):
                if code == 0xA702 and level == "IMAGE":  # it could not send this one
                    break
                raise self._failed(code, self._settings.retrieve.upper().join(("C-", "")))
            yield
        yield

    @property
    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DATA_RECV, self._data),
            (evt.EVT_DATA_SENT, self._sent),
            (evt.EVT_C_STORE, self._store),
        ]

    def _opened(self, event: evt.Event) -> None:
        """Send at once: else the second part of each question waits 40 ms for an acknowledgement (measured)."""
        connection = event.assoc.dul.socket.socket if event.assoc.dul.socket else None
        if connection is not None:
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _data(self, event: evt.Event) -> None:
        self._since += len(event.data)
        self._beat(len(event.data))
        if self._since > MOST_FILE_BYTES:
            _cut(event.assoc)

    def _sent(self, event: evt.Event) -> None:
        self._beat(len(event.data))

    def _store(self, event: evt.Event) -> int:
        self._since, self._left = 0, self._left - 1
        if self._left < 0:
            _cut(event.assoc)
            return 0xA700
        scratch, path = self._folder / f"part-{secrets.token_hex(4)}", self._folder / secrets.token_hex(8)
        try:
            scratch.write_bytes(event.encoded_dataset())
            scratch.rename(path)
        except OSError as error:  # pynetdicom would answer, and go on
            self._unwritten = error
            _cut(event.assoc)
            return 0xA700
        self._arrived.put((str(getattr(event.request, "AffectedSOPInstanceUID", "")), path))
        return 0x0000

    def _listen(self) -> None:
        """Open the port that C-MOVE sends to; it closes with this process."""
        if self._listens:
            return
        host, _, port = self._settings.listen.rpartition(":")
        receiver = AE(ae_title=self._settings.calling)
        receiver.require_called_aet, receiver.maximum_pdu_size = True, PDU_BYTES
        receiver.dimse_timeout = receiver.network_timeout = None
        for context in AllStoragePresentationContexts:
            receiver.add_supported_context(str(context.abstract_syntax), SYNTAXES)
        try:
            receiver.start_server((host, int(port)), block=False, evt_handlers=self._handlers)
        except OSError as error:
            raise trouble(
                "refused", f"[pacs] listen {self._settings.listen} cannot be opened ({error.strerror})", "correct it"
            ) from None
        self._listens = True

    @contextmanager
    def _association(self, contexts: Sequence[Any], roles: Sequence[Any] = ()) -> Iterator[Association]:
        rejections: list[A_ASSOCIATE_RJ] = []

        def received(event: evt.Event) -> None:
            rejections.extend([event.pdu] if isinstance(event.pdu, A_ASSOCIATE_RJ) else [])

        association = self._ae.associate(
            self._host,
            self._port,
            contexts=list(contexts),
            ae_title=self._settings.called,
            ext_neg=list(roles),
            tls_args=(self._tls, self._host) if self._tls else None,
            evt_handlers=[*self._handlers, (evt.EVT_PDU_RECV, received)],
        )
        association.unbind(evt.EVT_PDU_RECV, received)
        if not association.is_established:
            raise self._refused(rejections)
        try:
            if not any(
                context.abstract_syntax == contexts[0].abstract_syntax for context in association.accepted_contexts
            ):
                name = contexts[0].abstract_syntax.name
                raise trouble("refused", f"the PACS does not offer {name}", "have its administrator allow it")
            yield association
        finally:
            _end(association)

    def _refused(self, rejections: Sequence[A_ASSOCIATE_RJ]) -> TroubleError:
        """By what the PACS sent: pynetdicom forgets it where the PACS hangs up soon after, and calls that an abort."""
        if rejections:
            reason = (rejections[0].source or 0, rejections[0].reason_diagnostic or 0)
            if reason[0] == 3:
                return trouble("busy", "the PACS has no association to spare")
            what, do = REJECTED.get(reason, ("the PACS rejects our association", "have its administrator look why"))
            return trouble("refused", what, do)
        where = f"{self._settings.address}"
        try:
            with socket.create_connection((self._host, self._port), self._settings.connect_timeout_s) as plain:
                if self._tls is None:
                    return trouble(
                        "broken", f"{where} answers, but not as DICOM", "check [pacs] address, called and tls"
                    )
                with self._tls.wrap_socket(plain, server_hostname=self._host):
                    return trouble("broken", f"{where} answers, but not as DICOM", "check [pacs] address and called")
        except ssl.SSLError as error:
            reason_tls = getattr(error, "verify_message", "") or error.reason or "no TLS there"
            return trouble("refused", f"TLS to {where} is not accepted ({reason_tls})", "check [pacs] ca_file and tls")
        except ConnectionResetError:
            return trouble("refused", f"{where} is not accepted: it hangs up at once", "check [pacs] address and tls")
        except OSError as error:
            return trouble(
                "away", f"nobody answers at {where} ({error.strerror or 'no answer in time'})", "check [pacs] address"
            )


_COMPLAINT = "key the labels CSV by StudyInstanceUID: this PACS may not find a series or an image without its study"


def _values(answer: Dataset, keyword: str) -> tuple[str, ...]:
    value = answer.get(keyword)
    several = value if isinstance(value, list | MultiValue) else [value] if value not in (None, "") else []
    return tuple(str(each).strip()[:64] for each in several)


def _contexts(classes: set[str]) -> list[Any]:
    """One for each class and transfer syntax, so that everything comes as it is kept."""
    if "" in classes or len(classes) * len(SYNTAXES) > MOST_CONTEXTS:
        known = sorted(classes - {""}) or [str(each.abstract_syntax) for each in AllStoragePresentationContexts]
        return [build_context(uid, SYNTAXES) for uid in known[:MOST_CONTEXTS]]
    return [build_context(uid, syntax) for uid in sorted(classes) for syntax in SYNTAXES]


def _drained(queue: SimpleQueue[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    with suppress(Empty):
        while True:
            yield queue.get_nowait()


def _end(association: Association) -> None:
    if association.is_established:
        association.release()
    else:
        _cut(association)


def _cut(association: Association) -> None:
    """Without waiting for the other side."""
    association.kill()
    if association.dul.socket is not None:
        association.dul.socket.close()


class DimseSource(PacsSource):
    """A PACS by DIMSE."""

    archive = Dimse


source = DimseSource
