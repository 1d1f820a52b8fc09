"""Agreements that nobody would write: generators for tests of whatever reads a federation.toml."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from wardround.cli import run

Sections = dict[str, dict[str, Any]]

BASE: Sections = {
    "": {"name": "hearts"},
    "task": {"label_column": "y", "classes": ["no", "yes"], "kind": "table", "features": ["a", "b"]},
    "model": {"family": "logistic"},
    "algorithm": {"name": "fedavg"},
    "outer": {"optimizer": "sgd"},
    "privacy": {"epsilon": 1.0},
    "rounds": {"rounds": 3},
}
# Every setting, some of them with values that are valid and far out.
FAR: dict[tuple[str, str], list[Any]] = {
    ("", "name"): ["a", "a" * 63, "a" * 64, "../up", "no name", "a\n", "CON"],
    ("task", "label_column"): ["=1+1", "[red]y[/]", "y" * 100, "y" * 101, " y", "y\u0301"],
    ("task", "classes"): [["no"], ["no", "no"], ["no[/b]", "[/]"], ["a", "\u202eb"], ["x", "x\ufe0f"], ["a", "A"]],
    ("task", "labels"): ["one", "several", "mask", "points", "survival"],
    ("task", "event_column"): ["", "dead", "[red]", "y", "=1+1"],
    ("task", "ends"): [[], [1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [1e-6, 1e9], [1.0] * 300],
    ("task", "kind"): ["table", "image", "volume", "inputs"],
    ("task", "depth"): [0, 2, 1, 512, 513],
    ("task", "spacing_mm"): [[], [1.0, 1.0], [0.01, 100.0], [1.0], [0.0, 1.0]],
    ("task", "units"): ["display", "HU", "SUV", "x"],
    ("task", "window"): [[], [40.0, 400.0], [0.0, 0.0], [1e6, 1e-3], [1.0]],
    ("task", "values"): [
        {},
        {"-1": "yes"},
        {"x": ""},
        {"[red]": "no"},
        {"a": "nothing"},
        {f"v{n}": "no" for n in range(300)},
    ],
    ("task", "cell_px"): [1, 4, 16, 3],
    ("task", "cells_per_image"): [1, 4096, 4097, 0],
    ("task", "inputs"): [
        [],
        [{"name": "front"}, {"name": "blood", "kind": "table", "features": ["a"], "centre": [1e9], "spread": [1e-9]}],
        [{"name": "ct", "kind": "volume", "depth": 512, "image_size_px": 1024}],
        [{"name": "a"}, {"name": "a"}],
        [{"name": f"i{n}"} for n in range(17)],
        [{"name": "front", "modality": "[red]", "view": "\u202e", "series": "*" * 100}],
    ],
    ("task", "image_size_px"): [8, 64, 1024, 7, 1025],
    ("task", "channels"): [1, 2, 3],
    ("task", "features"): [[], ["a"], ["a", "a"], ["a"] * 5000, [f"f{n}" for n in range(300)]],
    ("task", "may_miss"): [[], ["a"], ["*"], ["c"], ["a", "a"], ["[red]"]],
    ("task", "ranks"): [False, True],
    ("task", "centre"): [[], [0.0], [1e9, -1e9], [1e308, 0], [float("nan"), 0.0]],
    ("task", "spread"): [[], [1e-9, 1e9], [0.0, 1.0], [1e-320, 1.0]],
    ("task", "augment"): [["shift"], ["flip-horizontal", "rotate-90", "shift"], ["shift"] * 3],
    ("model", "family"): ["logistic", "mlp", "conv4", "encoder-head", "projection"],
    ("model", "encoder"): ["builtin", "own.safetensors", "../own.safetensors", "/dev/zero", ".safetensors"],
    ("model", "encoder_sha256"): ["", "0" * 64, "x" * 64],
    ("model", "features"): [2, 32, 4096, 4097, 1],
    ("model", "embedding"): [0, 1, 4096],
    ("model", "width"): [1, 64, 1025, 0],
    ("algorithm", "name"): ["reptile", "fomaml", "maml", "ridge", "prototypical", "learned-optimizer", "fedprox", "x"],
    ("algorithm", "tasks"): ["auto", "hospitals", "episodes"],
    ("algorithm", "local_steps"): [1, 100, 10_000, 10_001],
    ("algorithm", "local_learning_rate"): [1e-6, 1e4, 1e-7, 1e5],
    ("algorithm", "local_batches"): [1, 10_000],
    ("algorithm", "proximal"): [0.0, 1e6, -1.0],
    ("algorithm", "regularization"): [1e-6, 1e6, 0.0],
    ("algorithm", "adapt_steps"): [0, 10_000],
    ("algorithm", "adapt_pull"): [0.0, 1e6, 1e7],
    ("outer", "learning_rate"): [1e-6, 1e4, 0.0],
    ("outer", "momentum"): [0.0, 0.999999, 1.0],
    ("outer", "rule"): ["mean", "median", "x"],
    ("outer", "liars"): [0.01, 0.49, 0.5, 0.0],
    ("privacy", "epsilon"): [1e-3, 8.0, 1e4, 1e9, 1e10, 1e-4],
    ("privacy", "clip_norm"): [1e-6, 10.0, 1e6],
    ("privacy", "images_per_patient"): [1, 1024, 1025],
    ("privacy", "patients_per_episode"): [2, 10**6],
    ("privacy", "support_share"): [1e-4, 0.9999, 0.0],
    ("privacy", "statistics_share"): [1e-4, 0.5, 0.9999],
    ("privacy", "evaluation_share"): [1e-4, 0.5, 0.9999],
    ("rounds", "rounds"): [1, 2_000, 100_001, 0],
    ("rounds", "quorum"): [1, 10_000],
    ("rounds", "deadline_s"): [0.1, 604_800.0, 0.0],
    ("rounds", "evaluate_every"): [0, 1, 100_000],
    ("rounds", "questions"): [[], ["statistics"], ["statistics", "x"], ["gradient"] * 2, ["../up"]],
}
LETTERS = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\0\r\n\t\x9b\u202e\u2066\u200b\ufeff[]{}=\"'#\\;")), max_size=40
)
ODD = st.one_of(
    LETTERS,
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from([1e308, -1e308, 5e-324, 10**39, -(2**63), 2**64, "x" * 20_000, [], {}, [[[[]]]], [{"a": {}}]]),
    st.lists(LETTERS, max_size=5),
    st.dictionaries(LETTERS, st.integers(), max_size=2),
)


def toml(sections: Sections) -> str:
    """The agreement as TOML."""
    lines = []
    for section, settings in sections.items():
        lines += [f"[{section}]"] if section else []
        lines += [f"{key} = {_value(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = (c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value)
        return '"' + "".join(plain) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(str(key))} = {_value(each)}" for key, each in value.items()) + "}"
    return repr(value)


@st.composite
def settings(draw: st.DrawFn) -> str:
    """A valid agreement in which a few settings are far out, odd, foreign or gone."""
    sections = {name: dict(values) for name, values in BASE.items()}
    for section, key in draw(st.lists(st.sampled_from(sorted(FAR)), min_size=1, max_size=4, unique=True)):
        sections[section][key] = draw(st.one_of(st.sampled_from(FAR[section, key]), ODD))
    if draw(st.booleans()):
        section = draw(st.sampled_from(sorted(sections)))
        for key in draw(st.lists(st.sampled_from([*sections[section], "seed", "n\x1b"]), max_size=2)):
            if sections[section].pop(key, None) is None:
                sections[section][json.dumps(key)] = 1
    return toml(sections)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An agreement whose bytes were cut, doubled, exchanged or filled up."""
    data = draw(settings()).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        filling = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(data[start:stop] * 3),
                st.tuples(
                    st.sampled_from(
                        [b"[", b"{", b"a.", b"9", b'"', b"'", b"\n", b" ", b"#", b"[[x]]\n", b"\\", b"k=", b","]
                    ),
                    st.sampled_from([2, 50, 3_000, 120_000]),
                ).map(lambda drawn: drawn[0] * drawn[1]),
            )
        )
        data = data[:start] + filling + data[stop:]
    return data


@dataclass(frozen=True)
class Said:
    """What a command ended with, and all that it wrote."""

    code: int
    out: str
    err: str


def said(*arguments: object) -> Said:
    """Run `wardround ARGUMENTS`, and assert what holds for every command on any file.

    It ends with a documented code, speaks of no bug, and writes no control character but line ends.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    told = Said(code, out.getvalue(), err.getvalue())
    everything = told.out + told.err
    assert code in (0, 2, 3, 4, 6, 7), told
    assert "internal error" not in everything
    assert "Traceback" not in everything
    assert not {letter for letter in everything if ord(letter) < 32 or 127 <= ord(letter) < 160} - {"\n"}, told
    assert not set(everything) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    return told


def approvals(home: Path) -> dict[str, bytes]:
    """What is approved at that home: digest -> the stored agreement."""
    return {file.parent.name: file.read_bytes() for file in (home / "approved").glob("*/federation.toml")}
