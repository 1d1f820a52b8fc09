"""A result on its way into the PACS, as long as it may go there."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread

from wardround_client.hospital import Hospital
from wardround_client.intake.pacs.line import Line
from wardround_client.intake.pacs.trouble import Trouble, TroubleError
from wardround_client.serve.models import Models
from wardround_client.serve.predicted import WITHDRAWN, withdrew
from wardround_client.serve.queue import Queue, Work
from wardround_client.serve.results import Results
from wardround_client.serve.study import MOVED

log = logging.getLogger(__name__)
DELETED = "the PACS lists the study no more"
AGAIN_S = 10.0
"""Until such a study is looked at again: others come first."""


class Sending:
    """To the PACS that a line leads to."""

    def __init__(self, hospital: Hospital, line: Line, queue: Queue, results: Results, models: Models) -> None:
        self._hospital, self._line = hospital, line
        self._queue, self._results, self._models = queue, results, models

    def send(self, work: Work) -> bool:
        """Whether it is in the PACS now; where not, the queue says what becomes of it.

        Raises: TroubleError: the PACS did not take it; StorageError.
        """
        if (why := self._may_not_go(work)) is not None:
            self._queue.becomes(work, "refused", why)
            self._results.drop(work.key)
            return False
        files = self._results.of(work.key)
        if not files and self._hospital.config.serve.write != ("fhir",):  # somebody removed them
            self._queue.becomes(work, "waiting")  # again, under the same UIDs
            return False
        if files and (why := self._elsewhere(work, files)):
            log.warning("a result is not sent: %s", why)
            if work.uid:  # its images are fetched anew
                self._queue.becomes(work, "waiting", why)
                self._queue.later(work, why, time.time() + AGAIN_S)
            else:  # its images are gone: sent again, as the PACS has them now, they are a new study
                self._queue.forget(work, why)
            self._results.drop(work.key)
            return False
        if files and len(set(self._line.ask("store", files))) < len(files):
            raise TroubleError(Trouble("broken", "the PACS did not say that it has everything"))
        self._queue.becomes(work, "sent")
        self._results.drop(work.key)
        return True

    def _may_not_go(self, work: Work) -> str | None:
        """Somebody may have withdrawn since it was made: the patient, or one whom the model learned from."""
        if withdrew(work.patient, self._hospital.patients.register.read()):
            return WITHDRAWN.reason
        if any(served.digest == work.model for served in self._models.ready()):
            return None
        return self._models.why_not(work.name)

    def _elsewhere(self, work: Work, files: Sequence[Path]) -> str:
        """Why the study is not where it was: a result must not bring it back, nor go to another patient's."""
        of = dcmread(files[0], specific_tags=["StudyInstanceUID", "PatientID"])
        try:
            patients = {str(each).strip() for each in self._line.ask("patients", str(of.StudyInstanceUID))}
        except TroubleError as error:
            if work.uid or error.trouble.kind in ("away", "busy"):
                raise
            return ""  # who sends to us may let us ask nothing
        if not patients:
            return DELETED if work.uid else ""
        return "" if {"", str(of.PatientID).strip()} & patients else MOVED.reason
