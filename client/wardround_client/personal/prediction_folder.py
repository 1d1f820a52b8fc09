"""Predictions on the disk: a line an item as they come, and at the end, also after Ctrl-C, JSON and CSV of all.

    predictions.jsonl   what was asked; then a line for each file, or row of a table, as soon as it is done
    predictions.json    all of it                       predictions.csv   a line an image
    patients.csv        what they come to, by patient   refused.csv       what cannot be used, and why
    lock                held by the process that writes
    masks/, heatmaps/   of each image                   findings.csv      a line a finding, of points

The same call goes on in a folder that is not complete, and does again what has changed since.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from wardround.errors import ConfigError
from wardround.files import Held, cannot_write, locked, private_folder, replacing, write_atomically
from wardround_client.intake.source import Item, Rejection
from wardround_client.intake.spreadsheet import harmless
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.kinds import AtHome, at_home
from wardround_client.personal.page import Row

FOLDER = "predictions"
"""In a hospital's home: what was not sent elsewhere with --out."""
LINES, LIST, LOCK = "predictions.jsonl", "predictions.json", "lock"
_IMAGE_COLUMNS = (
    *("file", "number", "patient", "manufacturer", "modality", "learned_from", "predicted"),
    *("ood_score", "out_of_distribution", "unfamiliar"),
)
_PATIENT_COLUMNS = ("patient", "images", "out_of_distribution", "predicted")


def asked_in(folder: Path) -> Mapping[str, Any] | None:
    """What was asked of a folder that is not complete; None of any other."""
    return None if is_complete(folder) else next(_lines(folder), None)


def is_unfinished(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a call that asked the same was cut off in this folder."""
    return asked_in(folder) == asked


@dataclass
class PredictionFolder:
    """The results of a call. asked: what decides them. done: records by the name of their item, in order."""

    folder: Path
    adapted: AdaptedModel
    asked: Mapping[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def writing(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Open the folder, or go on in it -> the items that are left. However it ends, what is done is written.

        Raises:
            ConfigError: the folder holds something else.
            Held: another process writes into it.
            StorageError.
        """
        wanted = {item.name: item.fingerprint() for item in items}
        busy = Held(f"somebody predicts into {self.folder} already", do="wait for the end of that")
        try:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                self._check()
            private_folder(self.folder)
            with locked(self.folder / LOCK, busy=busy):
                if (self.folder / LINES).exists():  # it may be another's since
                    self._check()
                known = (record for record in _lines(self.folder) if "fingerprint" in record)
                self.done = {
                    record["file"]: record
                    for record in known
                    if record["fingerprint"] and record["fingerprint"] == wanted.get(record["file"])
                }
                with replacing(self.folder / LINES) as file:
                    file.writelines(map(_line, (self.asked, *self.done.values())))
                with (self.folder / LINES).open("ab") as self._file:
                    complete = False
                    try:
                        yield [item for item in items if item.name not in self.done]
                        complete = True
                    finally:
                        self._summarise(complete=complete)
        except OSError as error:
            raise cannot_write(self.folder, error, do="give the same command again: it goes on") from None

    def _check(self) -> None:
        """Raises: ConfigError, where it holds something else."""
        if not is_unfinished(self.folder, self.asked):
            raise ConfigError(f"{self.folder} is there already", do="name a new folder with --out")

    _file: BinaryIO = field(init=False, repr=False)

    def add(self, item: Item, outcome: list[Row] | Rejection) -> None:
        """Write what became of an item. Raises: OSError, caught by `writing`."""
        record: dict[str, Any] = {"file": item.name, "fingerprint": item.fingerprint()}
        if isinstance(outcome, Rejection):
            record["refused"] = {"reason": outcome.reason, "detail": outcome.detail}
        else:
            record["images"] = outcome
        self._file.write(_line(record))
        self._file.flush()
        self.done[item.name] = record

    @property
    def images(self) -> list[Row]:
        """Of all items, in order."""
        return [row for record in self.done.values() for row in record.get("images", ())]

    @property
    def refused(self) -> list[dict[str, str]]:
        """Items that cannot be used: file, reason, detail."""
        return [{"file": name, **record["refused"]} for name, record in self.done.items() if "refused" in record]

    def patients(self) -> list[dict[str, Any]]:
        """Each patient's pseudonym, number of images and of those out of distribution, and what their answers come to
        (`kinds`).
        """
        of_patient: dict[str, list[Row]] = {}
        for row in self.images:
            of_patient.setdefault(row["patient"], []).append(row)
        return [
            {
                "patient": patient,
                "images": len(rows),
                "out_of_distribution": sum(row["out_of_distribution"] for row in rows),
                **self._kind.pooled(rows, self.adapted),
            }
            for patient, rows in of_patient.items()
        ]

    @property
    def _kind(self) -> AtHome:
        return at_home(self.adapted.learner.loss.labels)

    def _summarise(self, *, complete: bool) -> None:
        classes, images, patients, kind = self.adapted.federation.task.classes, self.images, self.patients(), self._kind
        everything = {
            **self.asked,
            "complete": complete,
            "classes": list(classes),
            "images": images,
            "patients": patients,
            "refused": self.refused,
        }
        of_images, of_patients = (kind.columns(classes, patients=patients) for patients in (False, True))
        tables = {
            "predictions.csv": _csv([{**row, **kind.flat(row)} for row in images], (*_IMAGE_COLUMNS, *of_images)),
            "patients.csv": _csv([{**row, **kind.flat(row)} for row in patients], (*_PATIENT_COLUMNS, *of_patients)),
            "refused.csv": _csv(self.refused, ("file", "reason", "detail")),
            **{name: _csv(lines, columns) for name, (columns, lines) in kind.tables(images).items()},
            LIST: json.dumps(everything, indent=1) + "\n",  # last: it says whether all is there
        }
        for name, text in tables.items():
            write_atomically(self.folder / name, text.encode("utf-8", "backslashreplace"))


def is_complete(folder: Path) -> bool:
    """Whether all that was asked stands in it."""
    try:
        return bool(json.loads((folder / LIST).read_bytes())["complete"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True  # not ours, or of a version that wrote everything at the end


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The records; not the last one, if it was cut off."""
    try:
        with (folder / LINES).open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except (FileNotFoundError, ValueError):
        return


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _csv(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(harmless, names))
    writer.writerows([harmless(line[name]) for name in names] for line in lines)
    return file.getvalue()
