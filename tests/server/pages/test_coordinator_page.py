"""The coordinator's pages do what the commands do, show what hospitals wrote as text, and fit a narrow window."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tests.client.pages.homes import ATOMS
from tests.server.test_hospitals import card
from tests.web import Served, served

from wardround.cli import run
from wardround_server.events import Registered, RoundEnded, RoundMissed, RunFailed, RunStarted
from wardround_server.home import Home
from wardround_server.hospitals import Registry
from wardround_server.pages.desk import Desk
from wardround_server.pages.site import app


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pages") / "coordinator"
    assert run(["coordinator", "init", str(home)]) == 0
    return home


@pytest.fixture(scope="module")
def there(home: Path) -> Iterator[Served]:
    with served(app(Desk(Home(home)))) as found:
        yield found


def write_run(home: Path, name: str, said: str) -> None:
    """A run that missed its last round; hospitals and errors say `said`."""
    folder = home / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.toml").write_text((home / "federation.toml").read_text())
    asked: dict[str, Any] = {"hospitals": 2, "declared_patients": {"north": 100, said: 90}, "absent": (f"{said} away",)}
    events = [
        RunStarted(run=name, rounds=3, hospitals=("north", said), registered={said: Registered(declared_patients=90)}),
        RoundEnded(
            round=0, rounds=3, replied=2, epsilon={"north": 0.5, said: 0.4}, accuracy=0.6, delta_norm=1.0, **asked
        ),
        RoundMissed(round=1, replied=1, rejected={said: f"because {said}"}, **asked),
        RunFailed(run=name, error="QuorumMissed", message=said),
    ]
    (folder / "events.jsonl").write_text("".join(event.stamped().line() + "\n" for event in events))


def fields(there: Served, path: str, action: str) -> dict[str, str]:
    """Of the form with this action, as a person would send them."""
    text = there.page(path).text
    (form,) = re.findall(rf'action="[^"]*{action}">(.*?)</form>', text, re.DOTALL)
    found = re.findall(r'name="(\w+)"[^>]*?value="([^"]*)"', form)
    return {name: unescape(value) for name, value in found}


def test_a_hospital_is_registered_with_what_it_declares_and_was_shown(there: Served, home: Path) -> None:
    anna = card("anna")
    assert there.press("/hospitals/read", {"card": anna.model_dump_json()}).status == 303
    shown = there.page("/hospitals").text
    assert anna.fingerprint in shown
    assert "100.0 %" in shown
    assert not list(Registry(home))
    form = fields(there, "/hospitals", "/hospitals/register")
    assert there.press("/hospitals/register", form | {"seal": "0" * 64, "do": "yes"}).status == 409
    assert not list(Registry(home))
    assert there.press("/hospitals/register", form | {"do": "yes"}).status == 303
    (member,) = Registry(home)
    assert (member.name, member.declared_patients) == ("anna", anna.declared_patients)
    assert "after the coordinator" in there.page("/hospitals").text
    assert there.press("/hospitals/register", form | {"do": "yes"}).status == 409  # nothing is offered any more


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 3}', "x" * 60_000, *ATOMS])
def test_what_is_no_card_is_one_sentence(there: Served, text: str) -> None:
    answer = there.press("/hospitals/read", {"card": text})
    assert answer.status in (409, 413)
    assert "Traceback" not in answer.text
    assert "window.hit=1<" not in answer.text


def test_while_the_coordinator_is_down_nothing_starts(there: Served, home: Path) -> None:
    form = fields(there, "/", "/start")
    assert form["digest"] in there.page("/").text
    answer = there.press("/start", form)
    assert answer.status == 409
    assert "coordinator up" in answer.text
    for name, value in (
        ("digest", "0" * 64),
        ("agreement", "0" * 16),
        ("name", "../x"),
        ("wait", "-1"),
        ("wait", "1e9"),
    ):
        assert there.press("/start", form | {name: value}).status == 409
    assert not (home / "runs").exists() or not list((home / "runs").glob("example"))


def test_a_run_says_who_is_missing_and_why_and_what_it_costs(there: Served, home: Path) -> None:
    write_run(home, "spring", "st-anna")
    text = there.page("/runs/spring").text
    for said in ("st-anna away", "because st-anna", "round 0 of 3", "then the run can be resumed here", "<svg"):
        assert said in text, said
    assert "spring" in there.page("/").text
    for action in ("resume", "stop"):
        assert there.press(f"/runs/spring/{action}", {"wait": "0"}).status == 409  # it is down
    assert there.page("/runs/summer").status == there.page("/runs/..%2f..").status == 404


@pytest.mark.parametrize("atom", range(len(ATOMS)))
def test_whatever_a_hospital_wrote_the_page_keeps_its_structure(there: Served, home: Path, atom: int) -> None:
    from tests.client.pages.test_strings import Structure

    found = []
    for said in ("n", "n" + ATOMS[atom]):
        write_run(home, "spring", said)
        found.append([Structure(there.page(path).text).tags for path in ("/", "/runs/spring", "/hospitals")])
    assert found[0] == found[1]


def test_in_a_browser_it_keeps_the_rules_and_fits(there: Served, home: Path) -> None:
    pytest.importorskip("selenium")
    from tests.browser import CHROMIUM, DRIVER, NARROW_PX, WIDE_PX, chromium, faults, look, said_by_the_console

    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    write_run(home, "spring", "n" + "".join(ATOMS))
    there.press("/hospitals/read", {"card": card("berta").model_dump_json()})
    with chromium() as browser:
        browser.get(there.link)
        for width_px in (NARROW_PX, WIDE_PX):
            for dark in (False, True):
                look(browser, width_px=width_px, dark=dark)
                for path in ("/", "/hospitals", "/runs/spring"):
                    browser.get(there.root + path)
                    assert faults(browser) == [], (path, width_px, dark)
                    assert browser.execute_script("return window.hit === undefined")
        assert said_by_the_console(browser) == []
