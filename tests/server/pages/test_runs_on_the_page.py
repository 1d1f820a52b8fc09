"""Runs of a coordinator that is up: one is started once, whoever presses how often, stopped, and goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.server.pages.test_coordinator_page import fields
from tests.story.processes import forked, running, typed
from tests.web import Served, served

from wardround_server.home import Home
from wardround_server.office.runs import BEGUN
from wardround_server.pages.desk import Desk
from wardround_server.pages.site import app

pytestmark = pytest.mark.story


def presses(there: Served, path: str, form: dict[str, str], times: int) -> list[int]:
    """As many tabs as presses, all at once -> what each was answered, sorted."""
    with ThreadPoolExecutor(times) as tabs:
        return sorted(tabs.map(lambda _: there.press(path, form).status, range(times)))


def test_a_run_starts_once_stops_and_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "coordinator"
    typed("coordinator", "init", home, "--port", 0, "--admin-port", 0, "--health-port", 0)
    with running(tmp_path, forked()) as start, served(app(Desk(Home(home)))) as there:
        start("coordinator", "up", home).wait_for(lambda line: "is up" in line, "coordinator")
        form = fields(there, "/", "/start")
        assert presses(there, "/start", form, 12) == [303] + [409] * 11
        begun = (home / "runs" / form["name"] / BEGUN).read_text()
        said = typed("coordinator", "run", home, home / "federation.toml", expect=6)
        assert "is going on already" in said
        path = f"/runs/{form['name']}"
        assert "Stop the run" in there.page(path).text
        assert "<td>goes on</td>" in there.page("/").text
        assert there.press(f"{path}/resume", {"wait": "0"}).status == 409

        seen = fields(there, path, f"{path}/stop")
        assert there.press(f"{path}/stop", {}).status == 409, "which one"
        assert presses(there, f"{path}/stop", seen, 6) == [303] + [409] * 5
        text = there.page(path).text
        assert "is stopped" in text, text
        assert "Resume" in text
        assert "<td>stopped</td>" in there.page("/").text

        assert there.press(f"{path}/resume", {"wait": "0"}).status == 303
        assert (home / "runs" / form["name"] / BEGUN).read_text() != begun
        assert there.press(f"{path}/stop", seen).status == 409, "a tab of before"
        assert "Stop the run" in there.page(path).text
        assert "is stopped" in typed("coordinator", "stop", home, form["name"])
        assert "is not going on" in typed("coordinator", "stop", home, form["name"], expect=2)
        assert "is not going on" in typed("coordinator", "stop", home, "winter", expect=2)
