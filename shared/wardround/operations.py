"""[operations] of hospital.toml and coordinator.toml: how a daemon is watched. Nothing that arrives sets any of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wardround.toml import Section


class Operations(Section):
    """log_format: of the daemon's log, lines of text or of JSON. metrics_port: on loopback, for Prometheus; 0: off."""

    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
