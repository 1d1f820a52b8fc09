"""A pull, or its PACS, is killed in the middle: nothing is lost, doubled or left behind; little is fetched twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.client.intake.test_pull import from_folder, pulled
from tests.client.intake.test_pull_lies import rows
from tests.liar import Exchange, Liar, lying, on
from tests.pacs import content, environment, phantoms, running_orthanc, settings_toml, store_of

from orthanc import Orthanc
from wardround_client.intake.pacs import source as pacs_source

COMMAND = "from wardround.cli import run; import sys; sys.exit(run(sys.argv[1:]))"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("studies"), patients=2)


@pytest.fixture(scope="module")
def liar(store: Path) -> Iterator[Liar]:
    with lying(store) as running:
        yield running


def test_a_killed_pull_leaves_nothing_behind_and_goes_on(
    home: Path, store: Path, liar: Liar, capsys: pytest.CaptureFixture[str]
) -> None:
    """By kill -9 while a series is on its way; the process that talks to the PACS empties the spool."""
    labels = store / "labels.csv"
    settings_toml(home, url=liar.url)
    code, before = pulled(capsys, home, labels, "--dry-run")
    arguments = ["hospital", "pull", str(home), "--labels", str(labels), "--size", "16", "--workers", "1"]
    process: list[subprocess.Popen[bytes]] = []
    fetched: list[str] = []

    def kill(exchange: Exchange) -> bool:
        fetched.append(exchange.asked)
        if len(fetched) < 4 or not process:
            return False
        assert list((home / "spool").glob("*/*")), "a series lies in the spool"
        process.pop().send_signal(signal.SIGKILL)
        return False

    liar.lies = [on(False, kill)]
    running = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], env=environment(), start_new_session=True)
    process.append(running)
    assert running.wait() == -signal.SIGKILL
    while any((home / "spool").glob("*/*")):  # by the process that talks to the PACS, which ends with the pull
        liar.stop.wait(0.05)

    stored, earlier = rows(home / "cohort"), len(fetched)
    liar.lies = [on(False, lambda exchange: fetched.append(exchange.asked))]
    code, told = pulled(capsys, home, labels)
    assert code == 0 and told["used"] == before["found"] and told["already"] == len(stored)
    assert len(fetched) - earlier <= 10, "at most each series of the worklist once more"
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    liar.lies = [on(False, lambda exchange: fetched.append(exchange.asked))]
    earlier = len(fetched)
    assert pulled(capsys, home, labels)[0] == 0 and len(fetched) == earlier, "nothing is fetched again"
    assert content(from_folder(capsys, home, labels, store)) == content(home / "pulled")


def test_a_pacs_that_dies_in_the_middle_costs_nothing_but_time(
    home: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)
    labels = store / "labels.csv"
    with running_orthanc(tmp_path / "pacs") as pacs:
        pacs.load(store_of(store))
        settings_toml(home, url=pacs.url, attempts=2)
        _die_at(pacs, monkeypatch)
        code, told = pulled(capsys, home, labels)
        assert code == 6 and told["read"] == told["used"] + told["quarantined"]  # type: ignore[operator]
        assert (home / "cohort" / "quarantine.csv").read_text().count("the PACS did not give it") == told["quarantined"]
        code, _ = pulled(capsys, home, labels)
        assert code == 6, "nobody answers"
        assert wardround(capsys, "pull", home, "--check")[0] == 6
        monkeypatch.undo()
        pacs.start()
        code, told = pulled(capsys, home, labels)
        assert code == 0 and told["quarantined"] == 0
        assert content(from_folder(capsys, home, labels, store)) == content(home / "pulled")


def _die_at(pacs: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the third series is asked for."""
    left = iter([None, None])
    begin = pacs_source.PacsSource._begin

    def beginning(self: pacs_source.PacsSource, series: object) -> None:
        if next(left, pacs) is pacs:
            pacs.kill()
        begin(self, series)  # type: ignore[arg-type]

    monkeypatch.setattr(pacs_source.PacsSource, "_begin", beginning)
