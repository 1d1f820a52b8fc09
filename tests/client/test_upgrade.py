"""A home that another version wrote: an older one's is opened as it is, a newer one's is refused and left alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from tests.client.conftest import FEDERATION_TOML
from tests.client.privacy.ledgers import reserve

from wardround.cli import run
from wardround_client.cohort.index import FORMAT
from wardround_client.hospital import Hospital
from wardround_client.privacy.chain import FORM, Chain
from wardround_client.privacy.ledger import LEDGER, Ledger

LATER = ("question", "bundle_sha256")  # fields of the ledger that the first version did not write


@pytest.fixture(scope="module")
def written(home_with_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("upgrade") / "north"
    shutil.copytree(home_with_cohort, home)
    with closing(Ledger(home / LEDGER)) as ledger:
        for number in range(3):
            reserve(ledger, number)
    home.with_name("federation.toml").write_text(FEDERATION_TOML)
    hospital = Hospital.open(home)
    hospital.approvals.approve(home.with_name("federation.toml"))
    hospital.ledger.close()
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "north"))


def test_what_an_older_version_wrote_keeps_its_ledger_and_its_approvals(home: Path) -> None:
    before = Hospital.open(home)
    spent, bundles = before.ledger.spent(before.config.delta), before.approvals.bundles()
    bodies = [
        {name: value for name, value in entry.body.items() if name not in LATER} for entry in before.ledger.entries()
    ]
    before.ledger.close()
    (home / LEDGER).unlink()
    with closing(Chain(home / LEDGER, lambda seq, body: None)) as chain:
        for body in bodies:
            with chain.writing():
                chain.append(body)
    after = Hospital.open(home)
    assert after.ledger.spent(after.config.delta) == spent > 0
    assert after.ledger.verify() is None
    assert after.approvals.bundles() == bundles != frozenset()
    reserve(after.ledger, 3)  # and it goes on
    assert after.ledger.spent(after.config.delta) > spent
    after.ledger.close()


def _newer_ledger(home: Path) -> None:
    with closing(sqlite3.connect(home / LEDGER)) as db:
        db.execute(f"PRAGMA user_version = {FORM + 1}")
        db.execute("PRAGMA journal_mode = WAL")


def _newer_cohort(home: Path) -> None:
    (index,) = (home / "cohort").glob("*.sqlite")
    with closing(sqlite3.connect(index)) as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(FORMAT + 1),))
        db.commit()


@pytest.mark.parametrize(
    ("newer", "commands"), [(_newer_ledger, ("approve", "up", "doctor")), (_newer_cohort, ("doctor",))]
)
def test_what_a_newer_version_wrote_is_refused_and_left_alone(
    newer: Callable[[Path], None], commands: Sequence[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer(home)
    (home.parent / "federation.toml").write_text(FEDERATION_TOML)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for word in commands:
        more = [str(home.parent / "federation.toml"), "--yes"] if word == "approve" else []
        assert run(["hospital", word, str(home), *more]) > 0
        said = capsys.readouterr()
        told = " ".join((said.out + said.err).split())
        assert "newer" in told and "nothing was changed" in told, word
    assert {path: path.read_bytes() for path in before} == before


def test_a_newer_version_s_settings_are_refused_by_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "hospital.toml").open("a") as file:
        file.write("[teleport]\nrange_m = 3\n")
    assert run(["hospital", "ledger", str(home)]) == 2
    assert "teleport" in capsys.readouterr().err
