"""Predictions for new images or rows, as the command and the page make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from wardround.errors import ConfigError, DataError
from wardround.text import counted
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Item, Rules
from wardround_client.office.models import chosen, opened
from wardround_client.personal.adapted_file import model_digest
from wardround_client.personal.prediction_folder import FOLDER, PredictionFolder, is_unfinished
from wardround_client.personal.predictions import Predictor, items_of, modalities_of


@dataclass(frozen=True)
class Prediction:
    """What was asked, made ready. about: the model that predicts. results: in a folder, which may hold some already."""

    about: Mapping[str, Any]
    items: Sequence[Item]
    results: PredictionFolder
    predictor: Predictor

    @classmethod
    def ready(
        cls, home: Path, paths: Sequence[Path], *, adapted: str = "", out: Path | None = None, heatmap: bool = False
    ) -> Self:
        """Find the model and the files, and the folder in which an earlier call of the same was cut off.

        Args:
            home: the hospital's.
            paths: files, or folders with all that is in them.
            adapted: name of an adapted model; "": the only one.
            out: a new folder, or one to go on in; None: one in the home.
            heatmap: whether to draw where a prediction comes from.

        Raises: ConfigError, DataError, StorageError.
        """
        hospital = opened(home)
        model = chosen(hospital, adapted)
        kind = model.federation.task.kind
        if heatmap and kind != "image":
            what = {"table": "tables", "volume": "volumes", "inputs": "several inputs"}[kind]
            raise ConfigError(f"a heat map with {model.name!r}, which predicts from {what}", do="ask for none")
        about = {
            "adapted": model.name,
            "adapted_sha256": model_digest(hospital.home, model.name),
            "federation": model.federation.name,
            "federation_sha256": model.release.federation,
            "run": model.release.run,
            "round": model.release.round,
            "algorithm": model.federation.algorithm.name,
        }
        asked = {**about, "paths": [str(path.absolute()) for path in paths], "heatmap": heatmap}
        if out is None:
            folders = hospital.home / FOLDER
            unfinished = [folder for folder in sorted(folders.glob("*/")) if is_unfinished(folder, asked)]
            out = unfinished[-1] if unfinished else folders / f"{model.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        results = PredictionFolder(out.absolute(), model, asked)
        select, ids = hospital.config.select, hospital.config.patients
        rules = Rules(select, ids.model_copy(update={"allow_placeholders": True}))  # whose it is says the file name
        items = items_of(paths, model.federation.task, rules)
        predictor = Predictor(
            model, Pseudonyms(hospital.patients.key), hospital.device, results.folder, heatmap, modalities_of(hospital)
        )
        return cls(about, items, results, predictor)

    def run(self, tell: Callable[[int, int], None], workers: int | None = None) -> None:
        """Predict what is left. However it ends, what is done is kept, and the same call goes on.

        tell: is given how many are done, and of how many. workers: processes that read; None: one for each core.

        Raises: ConfigError, DataError, StorageError; Held, while another process does the same.
        """
        with self.results.writing(self.items) as left:
            tell(len(self.items) - len(left), len(self.items))
            for item, outcome in self.predictor.predict(left, workers=workers):
                self.results.add(item, outcome)
                tell(len(self.results.done), len(self.items))

    def check(self) -> None:
        """Raises: DataError, when no file could be used."""
        if not self.results.images:
            raise DataError(
                f"of {counted(len(self.results.refused), 'file')} none could be used",
                do=f"see {self.results.folder / 'refused.csv'} for the reasons",
            )
