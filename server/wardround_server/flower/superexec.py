"""Flower's process that starts the runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from wardround.errors import FederationError
from wardround.proxies import spare_loopback
from wardround_server.network.listening import LOOPBACK
from wardround_server.network.tls import TlsFiles

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
log = logging.getLogger(__name__)


class SuperExec:
    """Flower's `flower-superexec`, which starts a process for each run. It is restarted when it dies."""

    def __init__(self, tls: TlsFiles, admin_port: int, output: IO[bytes]) -> None:
        self._command = [
            str(Path(sys.executable).with_name("flower-superexec")),
            *("--root-certificates", str(tls.ca)),
            *("--runtime-api-address", f"{LOOPBACK}:{admin_port}"),
            *("--parent-pid", str(os.getpid())),
        ]
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._wait_s, self._not_before = FIRST_WAIT_S, 0.0

    def start(self) -> None:
        """Start it. Raises: FederationError."""
        # It looks its own helpers up on PATH, where a virtual environment that is not activated is missing.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        spare_loopback()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=os.environ | {"PATH": path, "WARDROUND_COORDINATOR_PID": str(os.getpid())},
                start_new_session=True,  # Ctrl-C at the terminal is for the coordinator; it then stops this one
            )
        except OSError as error:
            raise FederationError(
                f"flower-superexec cannot be started ({error.strerror})", do="install flwr beside wardround"
            ) from None

    def keep_alive(self) -> None:
        """Start it again if it has ended; the more rarely, the less it lives."""
        if self._process is None or self._process.poll() is None or (now := time.monotonic()) < self._not_before:
            return
        if now > self._not_before + LONGEST_WAIT_S:
            self._wait_s = FIRST_WAIT_S  # it has lived
        log.warning("flower-superexec ended with %s: starting it again", self._process.returncode)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        self._not_before = now + self._wait_s
        self.start()

    def stop(self) -> None:
        """Stop it, and with it the runs that it started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
