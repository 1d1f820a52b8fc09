"""The recipes of CONTRIBUTING.md, followed in a package of somebody else's: a section's code blocks become files."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install what the section `### heading` says, in `folder`, as pip would -> the package's folder.

    A block with a title is a file; the toml block's entry points are the package's.
    """
    text = CONTRIBUTING.read_text(encoding="utf-8")
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING.md has no recipe {heading!r}"
    info = folder / "recipe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recipe\nVersion: 1.0\n")
    blocks = _BLOCK.findall(found[1])
    for language, title, body in blocks:
        if title:
            file = folder / title
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(body, encoding="utf-8")
        if language == "toml" and "entry-points" in body:
            points = re.sub(r'\[project\.entry-points\."(.+?)"\].*', r"[\1]", body)
            (info / "entry_points.txt").write_text(points.replace('"', ""))
    assert (info / "entry_points.txt").exists() and any(title for _, title, _ in blocks), "nothing to install"
    ours = {Path(title).parts[0] for _, title, _ in blocks if title}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]  # of another recipe, followed before in another folder
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder
