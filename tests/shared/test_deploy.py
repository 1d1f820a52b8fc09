"""The units restart what a restart mends, and they and the container keep files, memory and ports to their owner."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wardround.errors import ConfigError, DataError, PortInUse, StorageError, Unreachable, WardroundError
from wardround_client.one_life import Stopped

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
HOME = "/var/lib/wardround"
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


def settings_of(who: str) -> dict[str, str]:
    lines = (UNITS / f"wardround-{who}.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("who", NEED_A_PERSON)
def test_both_units_are_shut_as_far_as_torch_runs(who: str) -> None:
    """Of these only `MemoryDenyWriteExecute` would keep torch from starting; and both units are shut alike."""
    told = settings_of(who)
    shut = {key for key, value in told.items() if value == "yes"}
    assert {"NoNewPrivileges", "PrivateUsers", "RestrictNamespaces", "ProtectKernelLogs", "LockPersonality"} <= shut
    assert "MemoryDenyWriteExecute" not in told
    assert told["CapabilityBoundingSet"] == "" and told["ProtectSystem"] == "strict"
    other = settings_of(next(each for each in NEED_A_PERSON if each != who))
    assert shut == {key for key, value in other.items() if value == "yes"}


CONTAINER = UNITS.parent / "container"


def test_the_container_s_paths_are_there_and_it_is_shut() -> None:
    """It cannot be built here; what it copies, runs and opens can be read."""
    lines = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    for words in (value.split() for key, value in steps if key == "COPY" and not value.startswith("--from")):
        for source in words[:-1]:
            assert (ROOT / source).exists() or source.startswith("dist/wardround_hospital-"), source
    last = dict(steps)
    assert last["USER"] == "10001" and "--uid 10001" in str(steps) and "EXPOSE" not in last
    assert json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"]) == ["wardround", "hospital", "up", HOME]
    installs = [value for key, value in steps if key == "RUN" and "pip install" in value and "torch" not in value]
    assert all("--require-hashes" in value or "wardround_hospital" in value for value in installs)
    torch = re.findall(r"torch==[\d.]+", (ROOT / "deploy/hospital/requirements.txt").read_text())
    assert torch[0] in str(steps)


def test_nothing_of_the_compose_file_is_published_but_on_loopback() -> None:
    services = yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]
    hospital, orthanc = services["hospital"], services["orthanc"]
    assert hospital["read_only"] and hospital["user"] == "10001" and "ports" not in hospital
    assert (CONTAINER / hospital["build"]["context"] / hospital["build"]["dockerfile"]).is_file()
    written = [each.split(":")[1] for each in hospital["volumes"] if not each.endswith(":ro")]
    assert written == [HOME]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    told = json.loads((CONTAINER / "orthanc.json").read_text())
    published = {int(port.split(":")[-1]) for port in orthanc["ports"]}
    assert published == {told["DicomPort"]}, "its web service asks for no password"
    assert not any(told[f"DicomAlwaysAllow{what}"] for what in ("Find", "Get", "Move"))
    assert f":{told['HttpPort']}{told['DicomWeb']['Root'].rstrip('/')} " in (CONTAINER / "compose.yaml").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_units_and_rates_them_shut(tmp_path: Path) -> None:
    """Looked at offline. To be verified a unit needs a program and a user of this machine; it is rated as it stands."""
    for unit in sorted(UNITS.glob("*.service")):
        text = re.sub(r"^(ExecStart=)\S+", rf"\g<1>{sys.executable}", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.M))
        path = str(tmp_path / unit.name)
        verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
        assert (verified.returncode, unit.name in verified.stderr) == (0, False), verified.stderr
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)]
        rated = subprocess.run(command, capture_output=True, text=True, check=False)  # in tenths: exposure 1.5
        assert rated.returncode == 0, rated.stdout[-500:] + rated.stderr
