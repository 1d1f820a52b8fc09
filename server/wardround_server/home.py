"""The coordinator's home folder: what lies where, and coordinator.toml."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from wardround.errors import ConfigError, StorageError, Unreachable
from wardround.files import private_folder, write_atomically
from wardround.operations import Operations
from wardround.toml import Section, load
from wardround_server.network.tls import TlsFiles

OPTIONS = "options.json"
Port = Annotated[int, Field(ge=0, le=65535)]


class Listen(Section):
    """host, port: where hospitals connect. admin_port, health_port: on loopback. Port 0 takes any free one."""

    host: str
    port: Port
    admin_port: Port
    health_port: Port


class Limits(Section):
    """connections: on the hospitals' port, in all. connections_per_address: of one address, unsigned still."""

    connections: Annotated[int, Field(ge=16, le=100_000)] = 512
    connections_per_address: Annotated[int, Field(ge=4, le=10_000)] = 64


class CoordinatorConfig(Section):
    """coordinator.toml. address: the host name or IP address that hospitals dial; the certificate is made for it.

    sinks: event sinks that are switched on, with their settings.
    """

    address: Annotated[str, Field(min_length=1)]
    listen: Listen
    limits: Limits = Limits()
    operations: Operations = Operations()
    sinks: dict[str, dict[str, Any]] = Field(default_factory=dict)


class RunOptions(BaseModel):
    """How a run goes, beside what was agreed: options.json in its folder.

    Flower takes no setting that the bundle does not name, and each hospital approved the bundle's bytes.

    wait_s: how long all registered hospitals are waited for before the first round.
    """

    wait_s: float = 0.0

    @classmethod
    def of(cls, run_folder: Path) -> Self:
        """Those of a run; the defaults, where none were chosen."""
        file = run_folder / OPTIONS
        return cls.model_validate_json(file.read_bytes()) if file.exists() else cls()


COORDINATOR_TOML = """\
# The coordinator. Changes count from the next `wardround coordinator up`.

# The host name or IP address that hospitals dial. The server's certificate is made for it.
address = "{address}"

[listen]
# Hospitals connect here. Only this port needs to be open to them; it serves nothing but the hospitals' own paths.
host = "{host}"
port = {port}
# These two are on loopback only. admin_port: for `run`, `register` and `status`. health_port: the gRPC health service.
admin_port = {admin_port}
health_port = {health_port}

# [limits]
# For more than about a hundred hospitals, or many behind one address:
# connections = 512               # in all; each costs a file descriptor and 0.3 MB
# connections_per_address = 64    # of one address, by which no hospital has signed a request yet

# [operations]
# log_format = "json"             # of coordinator.log: a JSON object a line, instead of text
# metrics_port = 9188             # of 127.0.0.1, for Prometheus; 0 is off
# hook = ["/usr/local/bin/notify"]  # told, as JSON on its standard input, what waits for a person

# What else happens to the events of every run: a table for each sink, ours (mlflow) or an installed package's.
# [sinks.NAME]
# setting = "value"
"""

FEDERATION_TOML = """\
# The agreement. Every hospital reads it and approves it as a whole; each number below is then fixed.
name = "example"

[task]
label_column = "finding"          # a column of every hospital's labels CSV
classes = ["normal", "nodule", "diffuse", "effusion"]  # its values, in the order of the model's outputs
labels = "one"                    # or "several": classes are findings, each there or not ("nodule;effusion")
image_size_px = 64
units = "display"                 # or "HU" (CT), "SUV" (PET), with window = [centre, width]: the same range everywhere
augment = []                      # "flip-horizontal", ...: only what leaves a label true (no flip where sides matter)

[model]
family = "encoder-head"           # a frozen public encoder, and a small head that is trained privately

[algorithm]
name = "reptile"                  # or discriminant, prototypical, fomaml, fedavg, ...: an unknown name lists all
local_steps = 1
local_learning_rate = 1.0

[outer]
optimizer = "sgd"                 # or adam, yogi
learning_rate = 10.0

[privacy]
epsilon = 8.0                     # for the whole run, for each patient of each hospital
clip_norm = 1.0

[rounds]
rounds = 40
quorum = 2                        # a round needs so many good replies
deadline_s = 120.0                # and is closed at this time if it has them
evaluate_every = 0                # 10: judge the model every 10 rounds, from private counts that cost epsilon
"""


@dataclass(frozen=True)
class Home:
    """A coordinator's home folder."""

    folder: Path

    @property
    def config_file(self) -> Path:
        """coordinator.toml."""
        return self.folder / "coordinator.toml"

    @property
    def tls(self) -> TlsFiles:
        """The certificates."""
        return TlsFiles(self.folder / "tls")

    def config(self) -> CoordinatorConfig:
        """Read coordinator.toml. Raises: ConfigError, also when this is no coordinator's home."""
        if not self.config_file.exists():
            raise ConfigError(
                f"{self.folder} is no coordinator's home", do=f"make it with `wardround coordinator init {self.folder}`"
            )
        return load(self.config_file, CoordinatorConfig)

    def run_folder(self, run: str) -> Path:
        """Where a run keeps its agreement, checkpoint, events and report."""
        return self.folder / "runs" / run

    def write(self, name: str, text: str) -> Path:
        """Replace a text file of the home. Raises: StorageError."""
        path = self.folder / name
        try:
            private_folder(path.parent)
            write_atomically(path, text.encode())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})", do="check the disk") from None
        return path

    def invite(self, config: CoordinatorConfig, port: int) -> Path:
        """Write invitation.toml: the address, and the CA by which hospitals know that it is us."""
        host = f"[{config.address}]" if ":" in config.address else config.address
        pem, endorsements = self.tls.invitation(), json.dumps(self.tls.endorsements())
        return self.write(
            "invitation.toml",
            "# For the hospitals, over any road that both sides trust. It holds no secret.\n"
            f'address = "{host}:{port}"\nendorsements = {endorsements}\nca_pem = """\n{pem}"""\n',
        )

    def move_to(self, address: str) -> CoordinatorConfig:
        """Let hospitals dial another host name or IP address; all else in coordinator.toml stays as it is.

        Raises: ConfigError, StorageError.
        """
        text = self.config_file.read_text(encoding="utf-8")
        self.write("coordinator.toml", re.sub(r"(?m)^address\s*=.*$", f'address = "{address}"', text, count=1))
        return self.config()

    def announce(self, ports: Mapping[str, int]) -> None:
        """Say in up.json that the coordinator runs, and where."""
        self.write("up.json", json.dumps({"pid": os.getpid(), **ports}) + "\n")

    def retire(self) -> None:
        """Take up.json away."""
        (self.folder / "up.json").unlink(missing_ok=True)

    def running(self) -> dict[str, Any]:
        """What `announce` said. Raises: Unreachable, when no coordinator runs on this home."""
        try:
            announced: dict[str, Any] = json.loads((self.folder / "up.json").read_text(encoding="utf-8"))
            os.kill(int(announced["pid"]), 0)
        except (OSError, ValueError, KeyError):
            raise Unreachable(
                f"no coordinator runs on {self.folder}", do=f"start it with `wardround coordinator up {self.folder}`"
            ) from None
        return announced
