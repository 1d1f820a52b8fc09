"""What a model answers for a study's files: results on the disk, or why there is none."""

from __future__ import annotations

import logging
from pathlib import Path

from wardround.errors import WardroundError
from wardround_client.hospital import Hospital
from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rejection, Rules
from wardround_client.intake.workers import Readers
from wardround_client.serve.fetching import Fetched
from wardround_client.serve.models import Served
from wardround_client.serve.predicted import Predicted, predicted
from wardround_client.serve.queue import Queue, Work
from wardround_client.serve.results import Results
from wardround_client.serve.study import read_study

log = logging.getLogger(__name__)


class Answering:
    """workers: processes that read files; None: one for each core; 0: none but this one."""

    def __init__(self, hospital: Hospital, queue: Queue, results: Results, workers: int | None) -> None:
        self._hospital, self._queue, self._results, self._workers = hospital, queue, results, workers
        self._pseudonyms, self._rules = Pseudonyms(hospital.patients.key), Rules.of(hospital.config)
        self._readers: dict[str, Readers] = {}

    def answer(self, served: Served, work: Work, fetched: Fetched, folder: Path) -> None:
        """The queue says what came of it. folder: of masks and pictures on their way. Raises: WardroundError, OSError:
        of the disk.
        """
        try:
            with quiet():  # pydicom logs what headers hold
                found = self._found(served, work, fetched, folder)
                why = self._results.make(found, work.study, work.key) if isinstance(found, Predicted) else found
        except WardroundError:
            raise
        except OSError as error:
            if error.errno is not None:  # Pillow's, of what is in a file, have none
                raise
            why = _cannot(error)
        except Exception as error:  # of one study: it must not end the others'
            why = _cannot(error)
        if why is None:
            assert isinstance(found, Predicted)
            self._queue.becomes(work, "made", patient=found.patient)
            return
        self._queue.becomes(work, "refused", why.reason)
        log.info("a study is not answered by %s: %s", served.name, why.reason)

    def _found(self, served: Served, work: Work, fetched: Fetched, folder: Path) -> Predicted | Rejection:
        readers = self._readers_of(served)
        study = read_study(work.uid, fetched.files, readers, self._rules.select, fetched.patients)
        if isinstance(study, Rejection):
            return study
        withdrawn = self._hospital.patients.register.read()
        pictures = "heatmap" in self._hospital.config.serve.write
        return predicted(served, study, self._rules, readers, folder, withdrawn, pictures=pictures)

    def _readers_of(self, served: Served) -> Readers:
        if served.digest not in self._readers:
            self.close()  # one model's at a time: each has processes
            self._readers = {served.digest: Readers(served.predictor.recipe, self._pseudonyms, self._workers)}
        return self._readers[served.digest]

    def close(self) -> None:
        """End the processes."""
        for readers in self._readers.values():
            readers.close()
        self._readers = {}


def _cannot(error: Exception) -> Rejection:
    return Rejection(f"it cannot be predicted ({type(error).__name__})")
