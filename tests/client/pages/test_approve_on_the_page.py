"""What the page shows is what it approves; whatever changes between the look and the button is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
from tests.client.conftest import FEDERATION_TOML
from tests.web import Served, served

from wardround.config import load_federation
from wardround_client.consent.approvals import ApprovalFolder
from wardround_client.pages.desk import Desk
from wardround_client.pages.site import app
from wardround_client.privacy.ledger import LEDGER, Ledger


@pytest.fixture
def home(home_with_cohort: Path, tmp_path: Path) -> Path:
    home = tmp_path / "north"
    shutil.copytree(home_with_cohort, home)
    Ledger(home / LEDGER).close()
    (home / "proposed" / "lungs").mkdir(parents=True)
    (home / "proposed" / "lungs" / "federation.toml").write_text(FEDERATION_TOML)
    return home


@pytest.fixture
def there(home: Path) -> Iterator[Served]:
    with served(app(Desk(home))) as found:
        yield found


def opened(there: Served, query: str = "") -> tuple[str, dict[str, str]]:
    """The path of the only agreement that waits, and the fields of its form as a person would send them."""
    path = re.findall(r'href="[^"]*(/agreements/[0-9a-f]+)"', there.page("/").text)[0]
    text = there.page(path + query).text
    form = text[text.index(f"{path}/approve") :]
    fields = {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form)}
    return path, fields


def test_the_page_says_and_stores_what_the_command_does(there: Served, home: Path) -> None:
    path, fields = opened(there, "?runs=2&days=30")
    assert there.press(f"{path}/approve", fields).status == 303
    (digest,) = ApprovalFolder(home).digests()
    assert digest == fields["digest"] == load_federation(home / "proposed" / "lungs" / "federation.toml").digest
    stored = (home / "approved" / digest / "approval.json").read_text()
    assert '"runs": 2' in stored
    assert '"until": "2' in stored
    assert "Approved for 2 runs" in there.page("/").text
    assert "Approved for 2 runs" not in there.page("/").text  # said once


def test_the_agreement_of_a_startup_kit_waits_by_itself(there: Served, home: Path) -> None:
    (home / "proposed" / "lungs").rename(home / "kit")
    _, fields = opened(there)
    assert fields["digest"] == load_federation(home / "kit" / "federation.toml").digest


def other_agreement(home: Path) -> None:
    file = home / "proposed" / "lungs" / "federation.toml"
    file.write_text(FEDERATION_TOML.replace("rounds = 3", "rounds = 4"))


def other_budget(home: Path) -> None:
    file = home / "hospital.toml"
    file.write_text(file.read_text() + "[budget]\nepsilon = 20.0\n")


def other_number_of_patients(home: Path) -> None:
    file = home / "hospital.toml"
    file.write_text(file.read_text().replace("declared_patients = 40", "declared_patients = 39"))


def other_coordinator(home: Path) -> None:
    file = home / "hospital.toml"
    file.write_text(file.read_text() + '[coordinator]\naddress = "evil.example:9092"\n')


def other_cohort(home: Path) -> None:
    from wardround_client.hospital import Hospital

    hospital = Hospital.open(home)
    hospital.patients.register.add(hospital.patients.cohort().pseudonyms[:1])
    hospital.ledger.close()


def gone(home: Path) -> None:
    (home / "proposed" / "lungs" / "federation.toml").unlink()


def broken(home: Path) -> None:
    (home / "proposed" / "lungs" / "federation.toml").write_text("name = 3")


@pytest.mark.parametrize(
    "change",
    [other_agreement, other_budget, other_number_of_patients, other_coordinator, other_cohort, gone, broken],
)
def test_what_changed_after_the_look_is_not_approved(there: Served, home: Path, change: Callable[[Path], None]) -> None:
    path, fields = opened(there)
    change(home)
    answer = there.press(f"{path}/approve", fields)
    assert answer.status in (404, 409)
    assert "Not done" in answer.text
    assert not ApprovalFolder(home).digests()


@pytest.mark.parametrize(
    ("name", "value"),
    [("runs", "2"), ("runs", "0"), ("runs", "1e1"), ("runs", "\u0661"), ("runs", ""), ("days", "3651"), ("days", "-1"),
     ("read", "no"), ("digest", "0" * 64), ("digest", ""), ("seal", ""), ("seal", "0" * 64)],
)  # fmt: skip
def test_a_form_that_says_something_else_than_the_page_did_is_refused(
    there: Served, home: Path, name: str, value: str
) -> None:
    path, fields = opened(there)
    assert there.press(f"{path}/approve", fields | {name: value}).status == 409
    del fields[name]
    assert there.press(f"{path}/approve", fields).status == 409
    assert not ApprovalFolder(home).digests()


def test_what_passes_the_budget_asks_for_another_tick(there: Served, home: Path) -> None:
    file = home / "hospital.toml"
    file.write_text(file.read_text() + "[budget]\nepsilon = 4.0\n")
    path, fields = opened(there)
    assert "does NOT fit" in there.page(path).text
    assert fields.pop("anyway") == "yes"
    assert there.press(f"{path}/approve", fields).status == 409
    assert not ApprovalFolder(home).digests()
    assert there.press(f"{path}/approve", fields | {"anyway": "yes"}).status == 303
    assert ApprovalFolder(home).digests()


def test_what_the_policy_refuses_has_no_button(there: Served, home: Path) -> None:
    file = home / "hospital.toml"
    file.write_text(file.read_text() + "[policy]\ngreatest_rounds = 1\n")
    path = re.findall(r'href="[^"]*(/agreements/[0-9a-f]+)"', there.page("/").text)[0]
    answer = there.page(path)
    assert answer.status == 422
    assert "policy.greatest_rounds" in answer.text
    assert "<form" not in answer.text


def test_no_address_leads_out_of_the_folder(there: Served) -> None:
    for key in ("0" * 16, "..%2f..%2fhospital", "%00", "a" * 5000):
        assert there.page(f"/agreements/{key}").status == 404
        assert there.press(f"/agreements/{key}/approve").status == 404


def test_revoke_takes_only_a_digest_that_is_approved(there: Served, home: Path) -> None:
    path, fields = opened(there)
    there.press(f"{path}/approve", fields)
    for digest in ("", " ", "nothing", "../cohort", "/", "0" * 64):
        assert there.press("/revoke", {"digest": digest}).status == 409
    assert (home / "cohort").is_dir()
    assert ApprovalFolder(home).digests() == {fields["digest"]}
    assert there.press("/revoke", {"digest": fields["digest"]}).status == 303
    assert not ApprovalFolder(home).digests()


def test_without_a_daemon_a_pause_is_refused_with_what_to_do(there: Served) -> None:
    answer = there.press("/pause")
    assert answer.status == 409
    assert "wardround hospital up" in answer.text
