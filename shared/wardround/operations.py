"""[operations] of hospital.toml and coordinator.toml: how a daemon is watched. Nothing that arrives sets any of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from wardround.toml import Section


def _absolute(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and not command[0].startswith("/"):
        raise ValueError("the first is the program, by its absolute path; allowed: /path/to/program and arguments")
    return command


Argument = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
Command = Annotated[tuple[Argument, ...], Field(max_length=32), AfterValidator(_absolute)]


class Operations(Section):
    """log_format: of the daemon's log, lines of text or of JSON. metrics_port: on loopback, for Prometheus; 0: off.

    hook: a command and its arguments, run without a shell for each notice, which it finds as JSON on its standard
    input; empty: none. hook_timeout_s: how long it may take before it is killed.
    """

    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    hook: Command = ()
    hook_timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
