"""The units for systemd restart what a restart mends, and keep files and memory to their owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardround.errors import ConfigError, DataError, PortInUse, StorageError, Unreachable, WardroundError
from wardround_client.one_life import Stopped

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NEED_A_PERSON: dict[str, set[type[WardroundError]]] = {
    "hospital": {ConfigError, DataError, Stopped},
    "coordinator": {ConfigError},
}


@pytest.mark.parametrize("who", NEED_A_PERSON)
def test_the_unit_of(who: str) -> None:
    lines = (UNITS / f"wardround-{who}.service").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert set(told["RestartPreventExitStatus"].split()) == {str(each.exit_code) for each in NEED_A_PERSON[who]}
    assert not {str(each.exit_code) for each in (Unreachable, StorageError, PortInUse)} & set(
        told["RestartPreventExitStatus"].split()
    )
    assert (told["UMask"], told["LimitCORE"], told["Restart"]) == ("0077", "0", "on-failure")
    assert set(told["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}
    assert f"wardround {who} up {told['ReadWritePaths']}" in told["ExecStart"]
