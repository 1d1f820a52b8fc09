"""What a hospital's daemon tells the hook: what waits for a person, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.hostile.conftest import make_home

from wardround.cli import run as command
from wardround.errors import StorageError
from wardround_client.flower.node import APPROVAL_MISSING
from wardround_client.service.daemon import Daemon
from wardround_server.network import tls


class Told:
    """In the place of the hook."""

    wanted = True

    def __init__(self) -> None:
        self.notices: list[tuple[str, str, dict[str, Any]]] = []

    def tell(self, event: str, key: str, /, **fields: Any) -> None:
        self.notices.append((event, key, fields))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notices")
    home = make_home(folder / "home", 40)
    ca = tls.create(folder / "tls", [], at=datetime.now(UTC) - timedelta(days=3645)).ca
    assert command(["hospital", "join", str(home), "--address", "127.0.0.1:1", "--ca", str(ca)]) == 0
    return home


@pytest.fixture
def daemon(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Daemon, Told]]:
    made, told = Daemon(home), Told()
    monkeypatch.setattr(made, "_hook", told)
    made.stop.set()  # one look, and the end
    yield made, told
    made.hospital.ledger.close()


@pytest.mark.parametrize(("spent", "says"), [(0.0, False), (7.99, False), (8.0, True), (11.0, True)])
def test_the_budget_at_eighty_per_cent_and_the_certificate(
    spent: float, says: bool, daemon: tuple[Daemon, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = daemon
    assert made.hospital.budget.epsilon == 10.0
    monkeypatch.setattr(made.hospital.ledger, "spent", lambda delta: spent)
    made._watch()
    assert [event for event, _, _ in told.notices] == ["budget"] * says + ["certificate-ends"]
    if says:
        assert told.notices[0][1:] == ("10", {"epsilon_spent": spent, "epsilon_budget": 10.0})
    assert told.notices[-1][2]["which"] == "coordinator's CA"


def test_a_ledger_that_cannot_be_read_ends_no_watch(
    daemon: tuple[Daemon, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = daemon

    def fails(delta: float) -> float:
        raise StorageError("gone", do="x")

    monkeypatch.setattr(made.hospital.ledger, "spent", fails)
    made._watch()
    assert [event for event, _, _ in told.notices] == ["certificate-ends"]


def test_an_approval_waits_once_for_each_agreement_and_other_refusals_are_no_notice(
    daemon: tuple[Daemon, Told],
) -> None:
    made, told = daemon
    why = f"{APPROVAL_MISSING} a run whose agreement is not approved here, bundle abc)"
    for refused in (why, why, "BudgetExceeded (epsilon: 11)", "MessageError (too large)"):
        made._refuse(refused)
    assert [(event, key) for event, key, _ in told.notices] == [("approval-waits", why)] * 2  # the hook tells it once
    assert made._metrics()[7].samples == {(): 4.0}


def test_no_command_is_the_default_and_nothing_that_arrives_names_one(home: Path) -> None:
    made = Daemon(home)
    assert not made._hook.wanted
    text = (home / "hospital.toml").read_text()
    assert "hook = []" in text or "[operations]" not in text
    made.hospital.ledger.close()
