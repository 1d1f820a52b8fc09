"""What runs in a process of its own (`work`): the functions of the commands, and how far each says it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.text import counted

if TYPE_CHECKING:
    from wardround_client.audit import AuditReport
    from wardround_client.pages.process import Tell


def predict(home: Path, paths: Sequence[Path], adapted: str, heatmap: bool, tell: Tell) -> tuple[str, str]:
    """-> (what came of it, the file with all of it)."""
    from wardround_client.office.predicting import Prediction
    from wardround_client.personal.prediction_folder import LIST

    tell("looking for files")
    asked = Prediction.ready(home, paths, adapted=adapted, heatmap=heatmap)
    asked.run(lambda done, total: tell("images", done, total))
    asked.check()
    images, patients = len(asked.results.images), len(asked.results.patients())
    refused = len(asked.results.refused)
    said = f"{counted(images, 'image')} of {counted(patients, 'patient')}"
    return f"{said}; not used: {counted(refused, 'file')}" if refused else said, str(asked.results.folder / LIST)


def suggest(home: Path, count: int, where: str, labels: str, federation: str, tell: Tell) -> tuple[str, str]:
    """-> (what came of it, the list)."""
    from wardround_client.office.suggesting import STAGES, Wish
    from wardround_client.office.suggesting import suggest as suggest_to

    stages = iter(enumerate(chain(STAGES, [""])))

    def step() -> None:
        number, stage = next(stages)
        tell(stage, number, len(STAGES))

    step()
    wish = Wish(count, where, Path(labels) if labels else None, task=federation)
    done = suggest_to(home, wish, step)
    unnamed = done.found.unlabelled - done.found.named
    said = f"{counted(len(done.records), 'patient')} of {done.found.unlabelled:,} without a label"
    if unnamed:
        said += f"; {unnamed:,} of those cannot be named: their files are others, or were changed"
    return said, str(done.file)


def audit(home: Path, digest: str, trials: int, tell: Tell) -> AuditReport:
    """-> what it found."""
    from wardround_client.office.auditing import audited

    _, report = audited(home, digest, trials=trials, progress=lambda name, done, total: tell(name, done, total))
    return report
