"""Items that crash, loop or eat memory. Worker processes import this module, so it goes without torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection


@dataclass(frozen=True)
class Made:
    """An item that behaves as its way says."""

    number: int
    way: str = "fine"
    marker: Path = Path()
    line: int = 0
    labels: tuple[str | None, ...] = ()

    @property
    def name(self) -> str:
        return f"item {self.number}"

    def fingerprint(self) -> str:
        return ""

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        match self.way:
            case "hangs":
                threading.Event().wait()
            case "dies":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "dies once":
                if not self.marker.exists():
                    self.marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "eats":
                np.zeros(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4, np.uint8)
            case "raises":
                raise RuntimeError("a name of a patient")
            case "panics":
                raise BaseException("a PanicException of PyO3 is no Exception")
            case "exits":
                sys.exit("a name of a patient")
            case "unreadable":
                raise PermissionError(13, "Permission denied")
            case "refuses":
                return Rejection("no")
            case "other shape":
                return Instance(b"p", b"", b"i", np.zeros((1, 3, 8, 8), np.uint16))
        patient = pseudonyms.patient(f"P{self.number % 3}")
        return Instance(patient, b"", pseudonyms.exact("x", self.name), np.full((1, 1, 8, 8), self.number, np.uint16))
