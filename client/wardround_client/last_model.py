"""The model of each federation as this hospital saw it last, kept in its home for use at home.

    models/DIGEST.safetensors   theta, shift and scale of the last request that was answered

It is the coordinator's public word: whoever is in the federation got the same. A run's last words, the outer step of
its last round, do not come to a hospital in a request; the coordinator's own checkpoint has them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from wardround.files import private_folder, write_atomically
from wardround.release import Release
from wardround.wire import RoundRequest

log = logging.getLogger(__name__)
MODELS = "models"


def last_seen(home: Path, digest: str) -> Path:
    """Where a home keeps the model of the federation `digest`, whether it is there or not."""
    return home / MODELS / f"{digest}.safetensors"


def remember(home: Path, request: RoundRequest) -> None:
    """Keep the model that a request brought, in the place of the one before. Never raises.

    Called after the reply is paid for and stored, so that whatever the disk says costs no round.
    """
    header = request.header
    theta, shift, scale = (torch.from_numpy(array.copy()) for array in (request.theta, request.shift, request.scale))
    path = last_seen(home, header.federation)
    try:
        private_folder(path.parent)
        write_atomically(path, Release(header.run, header.federation, header.round, theta, shift, scale).pack())
    except Exception as error:  # whatever it is, the reply is worth more
        log.warning("%s could not be written (%s): `adapt` will need --model", path, error)
