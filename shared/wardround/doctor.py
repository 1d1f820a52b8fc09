"""What a doctor's command looks at in a home: each look by itself, whatever another one found, and what to do about it.

A look is a function that says in a few words what it found, or raises what is wrong. One that waits for something else
to be mended says the same error again: it is shown once.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import typer

from wardround.certificates import WARN_DAYS, days_left, until
from wardround.errors import ConfigError, StorageError, WardroundError
from wardround.files import room_on_disk
from wardround.operations import Operations
from wardround.terminal import emit, say
from wardround.text import counted, shown

Looks = Iterable[tuple[str, Callable[[], str]]]
LEAST_FREE = 2 << 30  # bytes, of the disk that a home is on
_LONGEST = 600


class Soon(WardroundError):
    """What is not wrong yet, or only if nobody meant it so."""


@dataclass(frozen=True)
class Found:
    """look: at what. state: "waits" for an earlier look. said: what was found. do: what to do. code: an exit code."""

    look: str
    state: Literal["ok", "soon", "wrong", "waits"]
    said: str
    do: str = ""
    code: int = 0


def examined(looks: Looks) -> Iterator[Found]:
    """What each look found, in their order."""
    known: dict[str, str] = {}
    for name, look in looks:
        try:
            yield Found(name, "ok", look())
        except Soon as error:
            yield Found(name, "soon", _said(error), error.do)
        except WardroundError as error:
            yield _wrong(name, error, known)
        except (OSError, ValueError) as error:  # a file that no reader of ours expects to be so
            yield _wrong(
                name, StorageError(f"it cannot be looked at ({error})", do="restore it from your backup"), known
            )


def _wrong(name: str, error: WardroundError, known: dict[str, str]) -> Found:
    if (first := known.setdefault(str(error), name)) != name:
        return Found(name, "waits", f"for {first}")
    return Found(name, "wrong", _said(error), error.do, error.exit_code)


def _said(error: WardroundError) -> str:
    return f"{error.what}. Allowed: {error.allowed}" if error.allowed else error.what


def tell(looks: Looks, as_json: bool) -> None:
    """Show what is found, as it is found. Raises: typer.Exit, with the code of the first that is wrong."""
    code, counts = 0, dict.fromkeys(("wrong", "soon"), 0)
    for found in examined(looks):
        code = code or found.code
        if found.state in counts:
            counts[found.state] += 1
        if as_json:
            emit(event="doctor", **asdict(found))
            continue
        style = {"wrong": "red", "soon": "yellow"}.get(found.state, "")
        word = found.state.upper() if found.state in counts else found.state
        say(f"  {word:7}{found.look:22}{shown(found.said, _LONGEST)}", style)
        if found.do:
            say(f"         next: {shown(found.do, _LONGEST)}")
    if not as_json:
        say(f"{counted(counts['wrong'], 'thing')} wrong, {counts['soon']} to see to soon.")
    raise typer.Exit(code)


def certificate(name: str, end: datetime) -> str:
    """When one ends. Raises: ConfigError, when it has; Soon, within the days on which the daemons warn."""
    renew = "the coordinator renews it: `wardround coordinator renew-ca`; hospitals then join the new invitation.toml"
    if days_left(end) < 0:
        raise ConfigError(f"the {name} has ended ({until(end)})", do=renew)
    if days_left(end) <= max(WARN_DAYS):
        raise Soon(f"the {name} ends on {until(end)}", do=renew)
    return f"ends on {until(end)}"


def only_its_owner_s(home: Path) -> str:
    """Whether nobody else reads or writes in a home. Raises: ConfigError; changes nothing."""
    entries, opened, others = 0, [], []
    for path in (home, *_below(home)):
        try:
            about = path.lstat()
        except FileNotFoundError:  # the daemon's own, gone meanwhile
            continue
        entries += 1
        if not stat.S_ISLNK(about.st_mode) and about.st_mode & 0o077:
            opened.append(str(path.relative_to(home)))
        if about.st_uid != os.geteuid():
            others.append(str(path.relative_to(home)))
    if others:
        do = (
            f"`sudo chown -R USER {home}`, with the name of the user who runs the daemon; the commands run as this user"
        )
        raise ConfigError(f"{_some(others)} of another user than you", do=do)
    if opened:
        raise ConfigError(f"{_some(opened)} open to other users of this machine", do=f"`chmod -R go= {home}`")
    return f"{counted(entries, 'file')}, yours alone"


def _some(paths: list[str]) -> str:
    return f"{paths[0]} is" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more are"


def _below(home: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == home:
            raise error

    for folder, folders, files in os.walk(home, onerror=failed):
        yield from (Path(folder, name) for name in (*folders, *files))


def hook(operations: Operations) -> str:
    """Whether the site's command for notices can be started. Raises: ConfigError; does not start it."""
    if not operations.hook:
        return "none is set: nobody is told what waits for a person"
    program = Path(operations.hook[0])
    if not program.is_file() or not os.access(program, os.X_OK):
        raise ConfigError(
            f"operations.hook names {program}, which is {'not executable' if program.is_file() else 'not there'}",
            do=f"make it executable for the daemon's user: `chmod u+x {program}`, or name another",
        )
    return str(program)


def room(home: Path) -> str:
    """How much the disk still takes. Raises: StorageError, Soon."""
    free = shutil.disk_usage(home).free
    if not room_on_disk(home):
        raise StorageError(
            "the disk is full, or the user's quota", do="make room: no round is answered or stored until then"
        )
    if free < LEAST_FREE:
        raise Soon(f"{free / 1e9:.1f} GB are free on its disk", do="make room before it is full")
    return f"{free / 1e9:,.1f} GB free"


def ends(found: Callable[[], Mapping[str, datetime]]) -> Iterator[tuple[str, Callable[[], str]]]:
    """A look at each certificate; one look, where they cannot be read."""
    try:
        each = found()
    except (WardroundError, OSError, ValueError):
        yield "certificates", lambda: ", ".join(found())
        return
    for name, end in each.items():
        yield name, lambda name=name, end=end: certificate(name, end)  # type: ignore[misc]
