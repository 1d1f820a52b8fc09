"""Two processes work in one home: whatever is listed, one of them goes, or a new one comes, before it is looked at."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.doctor import only_its_owner_s
from wardround.files import private_folder, remove_folder, shut
from wardround_client.cohort import features
from wardround_client.intake.pacs.spool import SPOOL, Spool
from wardround_client.office.at_home import prediction_folders, suggestion_lists
from wardround_client.personal.forget import forget_predictions, forget_suggestions
from wardround_client.serve.loop import size_of

WHO = b"\xab" * 16
LISTERS = ("scandir", "listdir")


class _Entries:
    """What os.scandir gave, read to its end."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._left = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._left

    def __next__(self) -> os.DirEntry[str]:
        return next(self._left)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...


@dataclass
class Another:
    """The other process. at: at which listing it acts. entry: on which of what is there. comes: it writes instead."""

    below: Path
    at: int
    entry: int
    comes: bool
    seen: int = 0
    acts: bool = False
    real: dict[str, Callable[..., Any]] = field(default_factory=lambda: {name: getattr(os, name) for name in LISTERS})

    def listing(self, name: str, where: Any = ".") -> Any:
        listed = self.real[name](where)
        if name == "scandir":
            with listed:
                listed = list(listed)
        folder = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else Path(os.fspath(where))
        if not self.acts and (folder == self.below or self.below in folder.parents):
            self.acts, number = True, self.seen
            self.seen += 1
            if number == self.at:
                self._act(folder, sorted({getattr(each, "name", each) for each in listed} - {"lock"}))
            self.acts = False
        return _Entries(listed) if name == "scandir" else listed

    def _act(self, folder: Path, names: list[str]) -> None:
        if self.comes:
            (folder / "came").write_bytes(b"")
            (folder / "came").chmod(0o600)
        elif names and (gone := folder / names[self.entry % len(names)]).is_dir():
            shutil.rmtree(gone)
        elif names:
            gone.unlink()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in LISTERS:
                patch.setattr(os, name, partial(self.listing, name))
            yield


def _home(folder: Path) -> Path:
    home = folder / "home"
    for name, content in {
        "predictions/a/predictions.json": json.dumps({"complete": True, "images": [{"patient": WHO.hex()}]}),
        "predictions/a/deep/1.png": "",
        "predictions/b/predictions.json": json.dumps({"complete": True, "images": []}),
        "predictions/c/predictions.jsonl": "{}",
        "suggestions/a.csv": WHO.hex(),
        "suggestions/b.csv": "nobody",
        f"{SPOOL}/old/series/1": "x",
        f"{SPOOL}/old/series/2": "x",
        f"{SPOOL}/older/1": "x",
        f"cohort/{features.FOLDER}/a.sqlite": "x" * 40,
        f"cohort/{features.FOLDER}/b.sqlite": "x" * 40,
        "serve/results/key/sr.dcm": "x" * 10,
        "serve/received/study/1": "x" * 10,
    }.items():
        private_folder((home / name).parent)
        (home / name).write_text(content)
    for here, _, names in os.walk(home):
        for each in (Path(here), *(Path(here, name) for name in names)):
            each.chmod(0o700)
    return home


def _read(home: Path) -> str:
    return "".join(Path(here, name).read_text() for here, _, names in os.walk(home) for name in names)


def _nothing_to_say(_: Path) -> None: ...


def _forgotten(home: Path) -> None:
    """Of the other process's file nobody knows whose it is: here it is empty."""
    assert WHO.hex() not in _read(home / "predictions") and not (home / "predictions" / "c").exists()


def _no_list(home: Path) -> None:
    assert WHO.hex() not in _read(home / "suggestions")


def _cache(home: Path) -> None:
    cache = features.FeatureCache(home / "cohort", bytes(32), "f", torch.device("cpu"))
    cache._shrink()


def _spool(home: Path) -> None:
    spool = Spool(home)
    assert {each.name for each in (home / SPOOL).iterdir()} - {"came"} == {"lock", spool.folder.name}
    spool.close()
    assert {each.name for each in (home / SPOOL).iterdir()} - {"came"} == {"lock"}


CALLS: dict[str, tuple[Callable[[Path], object], Callable[[Path], None]]] = {
    "doctor": (only_its_owner_s, _nothing_to_say),
    "shut": (shut, _nothing_to_say),
    "size": (size_of, _nothing_to_say),
    "remove": (remove_folder, lambda home: pytest.fail("it is there") if home.exists() else None),
    "predictions": (prediction_folders, _nothing_to_say),
    "suggestions": (suggestion_lists, _nothing_to_say),
    "forget predictions": (lambda home: forget_predictions(home, [WHO]), _forgotten),
    "forget suggestions": (lambda home: forget_suggestions(home, [WHO]), _no_list),
    "cache": (_cache, _nothing_to_say),
    "spool": (_spool, _nothing_to_say),
}


@pytest.mark.parametrize("name", CALLS)
@given(at=st.integers(0, 12), entry=st.integers(0, 5), comes=st.booleans())
@settings(max_examples=40)
def test_nothing_is_lost_and_nobody_is_told_that_something_is_wrong(
    name: str, at: int, entry: int, comes: bool
) -> None:
    call, holds = CALLS[name]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "MOST_BYTES", 50)
        home = _home(Path(folder))
        with Another(home, at, entry, comes).at_work():
            call(home)
        holds(home)


def test_a_folder_that_is_written_into_for_ever_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(39, "not empty")))
        with pytest.raises(OSError, match="not empty"):
            remove_folder(tmp_path / "one")
