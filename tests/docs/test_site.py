"""The documentation builds without a warning, links and anchors included, and loads nothing from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\bsrc="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not _LOADED.search(page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize(
    ("page", "holds"),
    [
        ("commands", ["wardround hospital approve", "wardround coordinator run", "Exit codes"]),
        ("settings", ["greatest_clip_norm", "local_learning_rate", "quorum", "at least 2"]),
        ("parts", ["scaffold", "geometric-median", "wardround.sources"]),
        ("api", ["Cohort", "outer", "ConfigError"]),
    ],
)
def test_the_reference_is_made_from_the_code(site: Path, page: str, holds: list[str]) -> None:
    text = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    assert [each for each in holds if each not in text] == []
