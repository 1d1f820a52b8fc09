"""The hospital's pages in a real browser: with the keys alone, narrow, in the dark, and as a program can judge them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium")

from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys
from tests.browser import NARROW_PX, WIDE_PX, chromium, faults, look, needs_a_browser, said_by_the_console, tab_to
from tests.client.conftest import FEDERATION_TOML
from tests.client.pages.homes import ATOMS, fill, propose
from tests.client.pages.in_the_process import waits
from tests.web import PATIENCE_S, Served

from wardround_client.consent.approvals import ApprovalFolder
from wardround_client.pages import work
from wardround_client.pages.desk import Desk

PRIVACY = "[privacy]\nepsilon = 1.0\n"

pytestmark = [needs_a_browser, pytest.mark.story]


@pytest.fixture(scope="module")
def home(home_with_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pages") / "north"
    shutil.copytree(home_with_cohort, home)
    propose(home)
    mischief = "n" + "".join(ATOMS)
    fill(home, lambda field: mischief[: 4000 if field == "refusal" else None])
    odd = home / "proposed" / "<script>window.hit=1<‮script>\n\x1b[2J"
    odd.mkdir()
    (odd / "federation.toml").write_text(f'name = "{"<b>" * 3000}"')
    _answered(home)
    return home


def _answered(home: Path) -> None:
    """A run of another agreement, all of it: receipts in the ledger."""
    from tests.rounds import request

    from wardround_client.hospital import Hospital
    from wardround_client.round import answer

    hospital = Hospital.open(home)
    file = home / "run.toml"
    file.write_text(FEDERATION_TOML.replace('"test"', '"older"').replace("rounds = 3", "rounds = 2") + PRIVACY)
    agreement = hospital.approvals.approve(file)
    for number in range(len(agreement.schedule)):
        answer(hospital, request(agreement, number))
    hospital.approvals.remove(agreement.federation.digest)
    hospital.ledger.close()


@pytest.fixture(scope="module")
def browser(there: Served) -> Iterator[Chrome]:
    with chromium() as driver:
        driver.get(there.link)
        yield driver


def test_with_the_keys_alone_one_reads_and_approves(browser: Chrome, there: Served, home: Path) -> None:
    look(browser)
    browser.get(f"{there.root}/")
    assert browser.find_element("css selector", "h1").text == "1 agreement waits for your answer."
    tab_to(browser, "#waiting a")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert "will cost this hospital epsilon" in browser.find_element("css selector", "main").text
    tab_to(browser, "main form[method=post] button")
    browser.switch_to.active_element.send_keys(Keys.ENTER)  # the box is empty: the browser does not send the form
    assert not ApprovalFolder(home).digests()
    browser.find_element("css selector", "h1").click()
    tab_to(browser, "#read")
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    tab_to(browser, "main form[method=post] button")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert "Approved for 1 run: test" in browser.find_element("css selector", "main").text
    assert browser.find_element("css selector", "h1").text == "Nothing waits for your answer."
    (digest,) = ApprovalFolder(home).digests()
    assert digest in browser.find_element("css selector", "#approved").text
    tab_to(browser, "#approved button")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert "Revoked" in browser.find_element("css selector", "main").text
    assert not ApprovalFolder(home).digests()
    assert said_by_the_console(browser) == []


def test_an_open_page_says_by_itself_that_an_agreement_came(browser: Chrome, there: Served, home: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{there.root}/")
    browser.find_element("css selector", "#waiting summary").click()
    new = home / "proposed" / "heart.toml"
    new.write_text(FEDERATION_TOML.replace('"test"', '"heart"'))
    try:
        WebDriverWait(browser, PATIENCE_S).until(
            lambda driver: driver.find_element("css selector", "h1").text == "2 agreements wait for your answer."
        )
    finally:
        new.unlink()
    assert said_by_the_console(browser) == []


def test_an_open_page_shows_by_itself_what_runs_and_how_it_ended(browser: Chrome, there: Served, desk: Desk) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def until(selector: str, text: str) -> None:
        WebDriverWait(browser, PATIENCE_S).until(
            lambda driver: text in (driver.find_element("css selector", selector).get_attribute("textContent") or "")
        )

    look(browser)
    browser.get(f"{there.root}/home")
    work.start(desk.site, desk.home, "prediction", "Predictions of nothing", waits)
    until("#runs", "Waits")
    until("#spoken", "Predictions of nothing")
    assert faults(browser) == []
    tab_to(browser, "#stop button")
    browser.execute_script("const b = document.querySelector('#stop button'); b.click(); b.click(); b.click()")
    until("#ended", "press Go on below")
    assert not browser.find_element("css selector", "#runs").is_displayed()
    assert faults(browser) == []
    assert said_by_the_console(browser) == []


def _paths(browser: Chrome, there: Served) -> list[str]:
    """Every page that the navigation names, and one of each kind below."""
    browser.get(f"{there.root}/")
    links = _links(browser, "nav a, #waiting a")
    browser.get(f"{there.root}/home")
    links += _links(browser, "main a")
    browser.get(f"{there.root}/intake")
    links += _links(browser, "main a")
    return [*(link.removeprefix(there.root) for link in links), "/ledger?verify=1"]


def _links(browser: Chrome, selector: str) -> list[str]:
    return [link.get_attribute("href") or "" for link in browser.find_elements("css selector", selector)]


@pytest.mark.parametrize("width_px", [NARROW_PX, WIDE_PX])
@pytest.mark.parametrize("dark", [False, True])
def test_every_page_keeps_the_rules_and_fits(browser: Chrome, there: Served, width_px: int, dark: bool) -> None:
    paths = [*_paths(browser, there), "/nothing"]
    look(browser, width_px=width_px, dark=dark)
    for path in paths:
        browser.get(there.root + path)
        assert faults(browser) == [], path
        assert browser.execute_script("return window.hit === undefined"), path
        assert browser.execute_script(
            "return [...document.images].every((i) => i.loading === 'lazy' || i.naturalWidth)"
        )
    assert [line for line in said_by_the_console(browser) if "404" not in line] == []
