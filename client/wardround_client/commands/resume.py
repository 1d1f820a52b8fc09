"""`wardround hospital resume`."""

from __future__ import annotations

from wardround.command import Command, JsonOption
from wardround_client.commands._common import HERE, HomeArgument
from wardround_client.commands._status import set_paused


def resume(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Answer rounds again after `pause`."""
    set_paused(home, False, as_json)


command = Command(resume, panel="Take part", place=4, examples=("wardround hospital resume ~/st-anna",))
