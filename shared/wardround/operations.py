"""[operations] of hospital.toml and coordinator.toml: how a daemon is watched. Nothing that arrives sets any of it."""

from __future__ import annotations

from typing import Literal

from wardround.toml import Section


class Operations(Section):
    """log_format: of the daemon's log, lines of text or of JSON."""

    log_format: Literal["text", "json"] = "text"
