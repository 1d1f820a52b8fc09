"""`wardround hospital pause`."""

from __future__ import annotations

from wardround.command import Command, JsonOption
from wardround_client.commands._common import HERE, HomeArgument
from wardround_client.commands._status import set_paused


def pause(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Refuse every round until `resume`, also over a restart. A round that is being answered is finished."""
    set_paused(home, True, as_json)


command = Command(pause, panel="Take part", place=3, examples=("wardround hospital pause ~/st-anna",))
