"""A page of the docs, typed: its blocks in order, those of other terminals beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.story.processes import environment, forked, running

from orthanc import free_port

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Typed:
    """folder: where the page works. bodies, said: each block, and what it printed, in order."""

    folder: Path
    bodies: list[str]
    said: list[str]

    def after(self, command: str) -> str:
        """What the block that holds this command printed."""
        return next(said for body, said in zip(self.bodies, self.said, strict=True) if command in body)


@contextmanager
def typing(
    page: str, home: Path, name: str, instead: Mapping[str, str], after: Callable[[str], None] = lambda body: None
) -> Iterator[Typed]:
    """Type a page; the terminals stay open inside. Its `wardround` is a fork (tests.story.zygote).

    Args:
        page: in docs/.
        home: what ~ is.
        name: of the folder in ~ that the page works in.
        instead: what is typed instead of what stands there; ports are always our own.
        after: called with each block that was typed in the first terminal.
    """
    blocks = re.findall(
        r"^```bash([^\n]*)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    folder = home / name
    env = environment() | {"HOME": str(home), "COLUMNS": "100"}
    env["PATH"] = f"{Path(forked()).parent}:{Path(sys.executable).parent}:{env['PATH']}"
    ports = f"--host 127.0.0.1 --port {free_port()} --admin-port {free_port()} --health-port {free_port()}"
    typed = Typed(folder, [body for _, body in blocks], [])
    with running(home) as start:
        for title, body in blocks:
            for there, here in {**instead, "--host 127.0.0.1": ports}.items():
                body = body.replace(there, here)
            if "Terminal" in title:
                terminal = start(body, command=("bash", "-ec"), env=env)
                line = terminal.wait_for(lambda line: "is up" in line or "connected to" in line, "sign of life")
                typed.said.append(line)
                continue
            done = subprocess.run(
                ["bash", "-euc", body],
                cwd=folder if folder.exists() else home,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"$ {body}\n{done.stdout}\n{done.stderr}"
            typed.said.append(done.stdout)
            after(body)
        yield typed
