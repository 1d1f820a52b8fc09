"""What goes back to the PACS: the bytes of each object, in a folder of its study and model until it is there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from wardround.files import cannot_write, private_folder, sync_folder, write_atomically
from wardround_client.config import Serve
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rejection
from wardround_client.serve.about import About
from wardround_client.serve.fhir import as_json
from wardround_client.serve.pictures import captures, segmentations
from wardround_client.serve.predicted import Predicted
from wardround_client.serve.report import as_bytes, report
from wardround_client.serve.uids import series_uid, uid

log = logging.getLogger(__name__)

KINDS = ("sr", "seg", "heatmap")
"""Of what is sent, each a series of its own."""

FHIR = "fhir.json"
NOTHING = Rejection("there is nothing of what [serve] writes")
NOT_ENOUGH = "the images' headers do not say enough for a {}"


class Results:
    """HOME/serve/results."""

    def __init__(self, folder: Path, fhir: Path, settings: Serve, pseudonyms: Pseudonyms) -> None:
        self._folder, self._fhir, self._settings, self._pseudonyms = folder, fhir, settings, pseudonyms
        private_folder(folder)

    def of(self, key: str) -> list[Path]:
        """The files of a study and model."""
        return sorted(self._folder.joinpath(key).glob("*.dcm"))

    def series(self, study: bytes, models: Sequence[str]) -> set[str]:
        """UIDs of the series that results are in."""
        return {series_uid(self._pseudonyms, study, model, kind) for model in models for kind in KINDS}

    def make(self, predicted: Predicted, study: bytes, key: str) -> Rejection | None:
        """Write them, whole and durable when it returns, or say why there is none. Raises: StorageError."""
        about = About(predicted.served, self._settings.intended_use)
        objects: dict[str, bytes] = {}
        for kind in self._settings.write:
            try:
                objects |= dict(self._made(kind, predicted, about, study))
            except Exception as error:  # a header may lack, or hold, whatever highdicom does not bear
                log.warning("no %s of a study: %s", kind, type(error).__name__)
                return Rejection(NOT_ENOUGH.format({"sr": "report"}.get(kind, kind)), type(error).__name__)
        if not objects:
            return NOTHING
        folder = self._folder / key
        try:
            if FHIR in objects:
                private_folder(self._fhir)
                write_atomically(self._fhir / f"{key}.json", objects.pop(FHIR))
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it said so
            private_folder(folder)
            for name, content in objects.items():
                write_atomically(folder / name, content)
            sync_folder(self._folder)
        except OSError as error:
            raise cannot_write(folder, error) from None
        return None

    def _made(self, kind: str, predicted: Predicted, about: About, study: bytes) -> Iterator[tuple[str, bytes]]:
        model = predicted.served.digest

        def of(what: str) -> str:
            return uid(self._pseudonyms, study, model, what)

        series = series_uid(self._pseudonyms, study, model, kind)
        if kind == "sr":
            yield "sr.dcm", as_bytes(report(predicted, about, of, series))
        elif kind == "fhir":
            yield FHIR, as_json(predicted, about, of("sr"))
        else:
            made = segmentations if kind == "seg" else captures
            for number, each in enumerate(made(predicted, about, of, series), start=1):
                yield f"{kind}-{number}.dcm", as_bytes(each)

    def drop(self, key: str) -> None:
        """They are in the PACS, or not wanted."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def keep_only(self, keys: set[str]) -> None:
        """Drop what a process that was killed left."""
        for folder in self._folder.iterdir():
            if folder.name not in keys:
                shutil.rmtree(folder, ignore_errors=True)
