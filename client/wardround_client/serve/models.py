"""The adapted models that predict for new studies: those that hospital.toml names, as long as they may."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import ConfigError, WardroundError
from wardround_client.hospital import Hospital
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.personal import adapted_file
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.predictions import Predictor, modalities_of

GONE = "the model is here no more"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model. digest: SHA-256 of its file, as it was loaded. predictor: without pictures."""

    name: str
    digest: str
    predictor: Predictor

    @property
    def adapted(self) -> AdaptedModel:
        """The model."""
        return self.predictor.adapted

    def takes(self, modalities: tuple[str, ...]) -> bool:
        """Whether it may be asked about a study of these modalities; () is not known."""
        known = self.predictor.modalities
        return not modalities or not known or any(each in known for each in modalities)


class Models:
    """Those that [serve] names. trouble: why one of them does not predict now, by name.

    Raises: ConfigError, where it names none, or one that predicts from tables.
    """

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        self._names = tuple(dict.fromkeys(hospital.config.serve.models))
        self._modalities = modalities_of(hospital)
        self._loaded: dict[str, tuple[tuple[int, ...], Served]] = {}
        self.trouble: dict[str, str] = {}
        if not self._names:
            raise ConfigError(
                f"{hospital.home / 'hospital.toml'}: [serve] models names no adapted model",
                allowed=", ".join(adapted_file.names(hospital.home)) or "none: nothing was adapted here yet",
                do='write models = ["NAME"]',
            )

    def ready(self) -> list[Served]:
        """Those that may predict now: their files are as they were loaded, and nobody of their support has withdrawn.

        A model that cannot be used is left out, and logged when that changes; it comes back by itself.
        """
        withdrawn, found, trouble = self._hospital.patients.register.read(), [], {}
        for name in self._names:
            try:
                served = self._current(name)
                served.adapted.check_consent(withdrawn)
                found.append(served)
            except WardroundError as error:
                trouble[name] = str(error)
                if self.trouble.get(name) != trouble[name]:
                    log.warning("model %s does not predict: %s", name, error)
        self.trouble = trouble
        return found

    def why_not(self, name: str) -> str:
        """Why a model that is not `ready` predicts nothing, in at most 500 characters."""
        why = self.trouble.get(name, "")
        return f"the model may not predict: {why}"[:500] if why else GONE

    def _current(self, name: str) -> Served:
        stamp = _stamp(adapted_file.folder(self._hospital.home, name) / adapted_file.MODEL)
        known = self._loaded.get(name)
        if known is None or known[0] != stamp or not stamp:
            known = stamp, self._load(name)
            if _stamp(adapted_file.folder(self._hospital.home, name) / adapted_file.MODEL) != stamp:
                raise ConfigError(f"the adapted model {name!r} is being written")  # it is looked at again
            self._loaded[name] = known
        return known[1]

    def _load(self, name: str) -> Served:
        home = self._hospital.home
        digest = adapted_file.model_digest(home, name) if name in adapted_file.names(home) else ""
        adapted = adapted_file.load(home, name, self._hospital.device)
        if adapted.federation.task.kind == "table":
            raise ConfigError(f"{name!r} predicts from tables", do="name models of images in [serve] models")
        log.info("model %s: SHA-256 %s", name, digest)
        pseudonyms = Pseudonyms(self._hospital.patients.key)
        return Served(name, digest, Predictor(adapted, pseudonyms, self._hospital.device, modalities=self._modalities))


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
