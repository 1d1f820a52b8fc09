"""A pull, or its PACS, is killed in the middle: nothing is lost, doubled or left behind; little is fetched twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from tests.client.command_line import wardround
from tests.client.intake.test_pull import from_folder, pulled
from tests.client.intake.test_pull_dimse_lies import Scp
from tests.client.intake.test_pull_lies import rows
from tests.liar import Exchange, lying, on
from tests.pacs import content, environment, phantoms, running_orthanc, settings_toml, store_of

from orthanc import Orthanc
from wardround_client.intake.pacs import source as pacs_source

COMMAND = "from wardround.cli import run; import sys; sys.exit(run(sys.argv[1:]))"


Fetching = Callable[[Callable[[], None]], None]
"""Has something called whenever a series is asked for."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("studies"), patients=2, series=3)


@pytest.fixture(params=["dicomweb", "dimse"])
def pacs(request: pytest.FixtureRequest, store: Path, home: Path) -> Iterator[Fetching]:
    """By each protocol."""
    if request.param == "dicomweb":
        with lying(store) as liar:
            settings_toml(home, url=liar.url)

            def then(call: Callable[[], None]) -> None:
                def lie(_: Exchange) -> None:
                    call()

                liar.lies = [on(False, lie)]

            yield then
        return
    scp = Scp(store)
    settings_toml(home, address=f"127.0.0.1:{scp.port}", called="LIAR")

    def later(call: Callable[[], None]) -> None:
        def answered(answers: list[Dataset]) -> list[Dataset]:
            call()
            return answers

        scp.get = answered

    yield later
    scp.server.shutdown()


def test_a_killed_pull_leaves_nothing_behind_and_goes_on(
    home: Path, store: Path, pacs: Fetching, capsys: pytest.CaptureFixture[str]
) -> None:
    """By kill -9 while a series is on its way; the process that talks to the PACS empties the spool."""
    labels = store / "labels.csv"
    arguments = ["hospital", "pull", str(home), "--labels", str(labels), "--size", "16", "--workers", "1"]
    process: list[subprocess.Popen[bytes]] = []
    fetched: list[bool] = []

    def kill() -> None:
        fetched.append(True)
        if len(fetched) >= 4 and process:
            assert list((home / "spool").glob("*/*")), "a series lies in the spool"
            process.pop().send_signal(signal.SIGKILL)

    pacs(kill)
    running = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], env=environment(), start_new_session=True)
    process.append(running)
    assert running.wait() == -signal.SIGKILL
    while any(each.is_dir() for each in (home / "spool").iterdir()):  # the process that talks to the PACS removes them
        threading.Event().wait(0.05)

    stored = rows(home / "cohort")
    fetched.clear()
    pacs(lambda: fetched.append(True))
    code, told = pulled(capsys, home, labels, "--workers", "1")
    assert code == 0 and told["already"] == len(stored)
    assert len(fetched) <= 6, "at most each series of the worklist once more"
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    fetched.clear()
    assert pulled(capsys, home, labels, "--workers", "1")[0] == 0 and not fetched, "nothing is fetched again"
    assert content(from_folder(capsys, home, labels, store)) == content(home / "pulled")


def test_a_pacs_that_dies_in_the_middle_costs_nothing_but_time(
    home: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)
    labels = store / "labels.csv"
    with running_orthanc(tmp_path / "pacs") as orthanc:
        orthanc.load(store_of(store))
        settings_toml(home, url=orthanc.url, attempts=2)
        _die_at(orthanc, monkeypatch)
        code, told = pulled(capsys, home, labels)
        assert code == 6 and told["read"] == told["used"] + told["quarantined"]  # type: ignore[operator]
        assert (home / "cohort" / "quarantine.csv").read_text().count("the PACS did not give it") == told["quarantined"]
        code, _ = pulled(capsys, home, labels)
        assert code == 6, "nobody answers"
        assert wardround(capsys, "pull", home, "--check")[0] == 6
        monkeypatch.undo()
        orthanc.start()
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
