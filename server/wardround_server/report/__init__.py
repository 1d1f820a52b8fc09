"""report.html: one self-contained file that says in plain words and pictures what a run did and what it cost.

Nothing in it is fetched and no script runs, so it opens anywhere and can be mailed or archived as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from wardround.errors import StorageError
from wardround_server.report.data import read_run
from wardround_server.report.page import page

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder from what lies there; may be called again at any time.

    Args:
        run_dir: the folder with events.jsonl and, where there are such, federation.toml, simulation.json,
            comparison.json, membership.json and audit.json.

    Returns:
        The report's path.

    Raises:
        DataError: no events there, or a file that is not JSON.
        ConfigError: the run's federation.toml does not parse.
        StorageError: the report cannot be written.
    """
    html = page(read_run(run_dir))
    target, scratch = run_dir / "report.html", run_dir / "report.html.tmp"
    try:
        scratch.write_text(html, encoding="utf-8")
        os.replace(scratch, target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror})", do="free some space") from None
    return target
