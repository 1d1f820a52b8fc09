"""The intake as tests call it: a folder of DICOM files, or a table, in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from wardround.task import Task
from wardround_client.intake.recipe import ImageRecipe, TableRecipe
from wardround_client.intake.source import DEFAULTS, Asked, Rules, opened
from wardround_client.intake.summary import IngestSummary


def ingest_dicom(
    folder: Path,
    cohort: Path,
    *,
    key: bytes,
    size: int = 8,
    channels: int = 1,
    labels: Path | None = None,
    columns: tuple[str, ...] | None = None,
    recipe: Mapping[str, Any] | None = None,
    rules: Rules = DEFAULTS,
    workers: int | None = 0,
    **more: Any,
) -> IngestSummary:
    """A folder of DICOM files and its labels.csv; read in this process unless workers says otherwise."""
    from wardround_client.intake.ingest import ingest  # torch, two seconds of each process that reads for a test

    asked = Asked(str(folder), labels or folder / "labels.csv", columns, leave_out=(cohort,), rules=rules)
    made = ImageRecipe(size, channels, **(recipe or {}))
    return ingest(opened("dicom-folder", asked, {}), cohort, made, key=key, workers=workers, **more)


def ingest_table(
    path: Path,
    cohort: Path,
    *,
    key: bytes,
    features: Sequence[str],
    labels: Sequence[str],
    patient_column: str = "",
    constants: Mapping[str, float | None] | None = None,
    columns: Sequence[str] = (),
    withdrawn: Collection[bytes] = (),
    **more: Any,
) -> IngestSummary:
    """A CSV of measurements. columns: of a file without a header."""
    from wardround_client.intake.ingest import ingest

    task = Task(label_column=labels[0], classes=("0", "1"), kind="table", features=tuple(features))
    settings = {"patient_column": patient_column, "columns": ",".join(columns)}
    source = opened("table", Asked(str(path), columns=tuple(labels), task=task), settings)
    recipe = TableRecipe(tuple(features), dict(constants or {}))
    return ingest(source, cohort, recipe, key=key, withdrawn=withdrawn, **more)
