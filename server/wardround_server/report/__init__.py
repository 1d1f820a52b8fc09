"""report.html: one self-contained file that says in plain words and pictures what a run did and what it cost.

Nothing in it is fetched and no script runs, so it opens anywhere and can be mailed or archived as it is.
"""

from __future__ import annotations

from pathlib import Path

from wardround.files import cannot_write, write_atomically
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
    target = run_dir / "report.html"
    try:
        write_atomically(target, html.encode())
    except OSError as error:
        raise cannot_write(target, error, "make the report again") from None
    return target
