"""`wardround hospital check`: can this hospital reach its coordinator?"""

from __future__ import annotations

import os

from wardround.command import Command, JsonOption
from wardround.terminal import say
from wardround_client.commands._common import HERE, HomeArgument, checked, tell_step


def check(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Test the way to the coordinator, step by step: proxy, DNS, TCP, TLS, clock and key.

    It needs no cohort and no approval, and answers no round. Do it after `join`, and whenever the link is down; stop
    the daemon first. Ends with the exit code of the step that fails.
    """
    home = checked(home)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported
    from functools import partial

    from wardround_client.flower.connectivity import steps
    from wardround_client.hospital import Hospital
    from wardround_client.keys import load_node_key
    from wardround_client.service.daemon import MEMORY, coordinator_of, locked

    with locked(home):  # a second session under one key would end the daemon's
        hospital = Hospital.open(home)
        hospital.ledger.close()
        coordinator = coordinator_of(hospital)
        if not as_json:
            say(f"{hospital.config.hospital.name} -> {coordinator.address}", "bold")
        for step in steps(coordinator, partial(load_node_key, home), home / MEMORY):
            tell_step(step, as_json=as_json)
            if step.error:
                raise step.error
    if not as_json:
        say("This hospital can take part. Next: wardround hospital approve HOME federation.toml")


command = Command(
    check,
    panel="Set up",
    place=5,
    examples=("wardround hospital check ~/st-anna", "wardround hospital check ~/st-anna --json"),
)
