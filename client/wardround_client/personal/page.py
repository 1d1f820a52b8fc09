"""What is to be answered for one item: its images, as they are and as the model sees them, and where pictures go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wardround.files import cannot_write, private_folder, write_atomically
from wardround_client.intake.source import Instance
from wardround_client.personal.adapted_model import AdaptedModel

Row = dict[str, Any]
"""What is predicted for one image, or one row of a table, as it is written."""

Columns = Mapping[str, Any]
"""A line of a table, by the names of its columns."""


@dataclass(frozen=True)
class Page:
    """One item. x: [n, ...], its inputs. z: [n cells, ...], encoded. folder: of the predictions. heatmap: whether a
    picture of each image is wanted.
    """

    adapted: AdaptedModel
    name: str
    instance: Instance
    x: Tensor
    z: Tensor
    folder: Path
    heatmap: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names."""
        return self.adapted.federation.task.classes

    def write(self, folder: str, number: int, ending: str, content: bytes) -> str:
        """Write a file about an image -> where it is, relative to the folder of the predictions. Nothing of the item
        stands in its name. Raises: StorageError.
        """
        secret = f"{self.name}\0{number}".encode("utf-8", "surrogateescape")
        path = self.folder / folder / f"{hashlib.sha256(secret).hexdigest()[:16]}{ending}"
        try:
            private_folder(path.parent)
            write_atomically(path, content)
        except OSError as error:
            raise cannot_write(path, error, do="give the same command again: it goes on") from None
        return f"{folder}/{path.name}"
