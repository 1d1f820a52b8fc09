"""Predictions, suggestions, audits that a page starts: one at a time, in words, stopped, gone on with, never lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.conftest import FEDERATION_TOML
from tests.client.pages.homes import ATOMS
from tests.client.pages.in_the_process import breaks, counts, dies, fails, listens_to_nobody, waits
from tests.client.personal.test_shared_model import write_release
from tests.web import PATIENCE_S, Served

from wardround.cli import run
from wardround.files import locked
from wardround_client.hospital import Hospital
from wardround_client.last_model import last_seen
from wardround_client.office.at_home import prediction_folders, predictions, suggestion_lists
from wardround_client.office.predicting import Prediction
from wardround_client.pages import work
from wardround_client.pages.desk import Desk
from wardround_client.pages.work import Work
from wardround_client.personal.prediction_folder import LOCK
from wardround_client.privacy.ledger import LEDGER, Ledger


@pytest.fixture(scope="module")
def home(home_with_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two approved agreements and their models, of which one was adapted; nobody has a label of the other."""
    folder = tmp_path_factory.mktemp("work")
    home, file = folder / "north", folder / "federation.toml"
    shutil.copytree(home_with_cohort, home)
    Ledger(home / LEDGER).close()
    hospital = Hospital.open(home, ledger=Ledger(None))
    for text in (FEDERATION_TOML.replace('"test"', '"other"').replace('"finding"', '"grade"'), FEDERATION_TOML):
        file.write_text(text)
        agreed = hospital.approvals.approve(file).federation
        write_release(last_seen(home, agreed.digest), agreed)
    assert run(["hospital", "adapt", str(home), "--task", str(file), "--shots", "2"]) == 0
    return home


@pytest.fixture(scope="module")
def files(home_with_cohort: Path) -> Path:
    return home_with_cohort.parent / "dicom"


@pytest.fixture(scope="module")
def few(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of them as a prediction needs, and a file that is none."""
    folder = tmp_path_factory.mktemp("few")
    for number, file in enumerate(sorted(files.rglob("*.dcm"))[:8]):
        shutil.copyfile(file, folder / f"{number}.dcm")
    (folder / "letter.txt").write_text("no image")
    return folder


BEGUN_IN_THE_BACKGROUND = """
import signal, sys
from multiprocessing import Pipe
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
from wardround_client.pages.process import do
ours, theirs = Pipe(duplex=False)
do(theirs, Path(sys.argv[1]), ("tests.client.pages.in_the_process", "interrupted"), ())
print(ours.recv())
"""


def test_stop_stops_where_the_page_was_started_in_the_background_of_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGUN_IN_THE_BACKGROUND, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    assert said.stdout == "('stopped', None)\n"


def ended(desk: Desk, kind: str) -> Work:
    found = desk.site.kept(work.Bench).last[kind]
    assert found.ended.wait(PATIENCE_S)
    return found


@pytest.mark.parametrize(
    ("function", "state", "said"),
    [
        (counts, "done", ""),
        (fails, "failed", "upside down"),
        (breaks, "failed", "page.log"),
        (dies, "failed", "killed"),
    ],
)
def test_what_becomes_of_it_is_said_in_words(
    desk: Desk, there: Served, function: Callable[..., object], state: str, said: str
) -> None:
    work.start(desk.site, desk.home, "audit", "An audit", function)
    found = ended(desk, "audit")
    assert (found.state, said in found.error) == (state, True), found
    if state == "failed":
        text = there.page("/audit").text
        assert said in text
        assert "secret" not in text
        assert "<b>disc" not in text


def press_stop(there: Served) -> tuple[dict[str, str], int]:
    """(the form of the button that stops, what pressing it is answered)."""
    form = dict(re.findall(r'name="(key|how)" value="([^"]*)"', there.page("/audit").text))
    return form, there.press("/stop", form).status


def test_it_is_stopped_as_by_ctrl_c_and_at_once_by_another_button(desk: Desk, there: Served) -> None:
    stale: dict[str, str] = {}
    for function, at_once in ((waits, False), (listens_to_nobody, True)):
        work.start(desk.site, desk.home, "audit", "An audit", function)
        found = desk.site.kept(work.Bench).last["audit"]
        while found.progress != "waits":
            assert not found.ended.wait(0.01), found
        if stale:  # a tab that still shows what ran before
            assert there.press("/stop", stale).status == 409
            assert found.state == "runs"
        assert "Stop it" in there.page("/audit").text
        stale, status = press_stop(there)
        assert status == 303
        if at_once:
            assert there.press("/stop", stale).status == 303  # a double click
            assert not found.ended.is_set()
            assert "End it at once" in there.page("/home").text
            assert press_stop(there)[1] == 303
        assert ended(desk, "audit").state == "stopped"
        assert "was stopped" in there.page("/audit").text
    assert there.press("/stop", stale).status == 409


def test_of_a_thousand_clicks_in_any_tab_one_starts_it(desk: Desk, there: Served, files: Path) -> None:
    forms = [
        ("/home/predict", {"paths": str(files), "adapted": "test"}),
        ("/home/suggest", {"count": "3", "where": str(files), "labels": "", "federation": ""}),
    ]
    with ThreadPoolExecutor(8) as tabs:
        answers = list(tabs.map(lambda number: there.press(*forms[number % 2]).status, range(40)))
    assert sorted(answers) == [303] + [409] * 39
    running = desk.site.kept(work.Bench).running
    assert running is not None
    assert "runs already" in there.press(*forms[0]).text
    work.end(desk.site)  # as the page's command does when it ends
    assert running.state in ("stopped", "done", "failed")
    assert desk.site.kept(work.Bench).running is None


def cut_off(home: Path, files: Path, after: int) -> Path:
    """A prediction that was stopped after so many images -> its folder."""
    asked = Prediction.ready(home, [files], adapted="test")

    def tell(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked.run(tell, workers=0)
    return asked.results.folder


def press_go_on(there: Served) -> int:
    (path,) = re.findall(r'action="[^"]*(/home/predictions/[0-9a-f]+/go-on)"', there.page("/home").text)
    return there.press(path).status


def test_what_was_cut_off_goes_on_by_a_button_and_not_while_a_terminal_does_it(
    desk: Desk, there: Served, home: Path, few: Path
) -> None:
    shutil.rmtree(home / "predictions", ignore_errors=True)
    folder = cut_off(home, few, 3)
    lines = (folder / "predictions.jsonl").read_bytes().splitlines()
    (folder / "predictions.json").unlink()  # as after kill -9
    with locked(folder / LOCK, busy=None):
        assert press_go_on(there) == 303
        found = ended(desk, "prediction")
        assert (found.state, "somebody predicts into" in found.error) == ("failed", True), found
    assert "wait for the end of that" in there.page("/home").text

    assert press_go_on(there) == 303
    found = ended(desk, "prediction")
    assert found.state == "done", found
    assert (folder / "predictions.jsonl").read_bytes().splitlines()[: len(lines)] == lines
    text = there.page("/home").text
    assert "go-on" not in text
    (kept,) = prediction_folders(home)
    assert kept.path.parent == folder
    all_ = predictions(kept.path, [])
    assert len(all_.images) + len(all_.refused) == found.total > len(all_.images) > 3
    assert there.page(f"/home/predictions/{kept.key}").status == 200
    assert f"/home/predictions/{kept.key}" in text


def test_whom_to_label_is_asked_for_on_the_page(desk: Desk, there: Served, home: Path, files: Path) -> None:
    digests = dict(re.findall(r'<option value="([0-9a-f]{64})">(\w+) ', there.page("/home").text))
    chosen = next(digest for digest, name in digests.items() if name == "other")
    form = {"count": "3", "where": str(files), "labels": "", "federation": chosen}
    assert there.press("/home/suggest", form).status == 303
    found = ended(desk, "suggestion")
    assert found.state == "done", found
    (kept,) = suggestion_lists(home)
    assert found.result[0].startswith("3 patients of ")
    assert there.page(f"/home/suggestions/{kept.key}").text.count("<tr>") == 4
    assert f"/home/suggestions/{kept.key}" in there.page("/home").text


@settings(max_examples=25)
@given(
    st.lists(st.one_of(st.sampled_from(ATOMS), st.text(max_size=9), st.just("x" * 300)), min_size=1, max_size=3),
    st.sampled_from(["", "/", "/tmp/", "/proc/self/", "../", "//", "file://", "-"]),
)
def test_a_path_that_is_not_there_starts_nothing_and_is_one_sentence(
    there: Served, desk: Desk, parts: list[str], first: str
) -> None:
    typed = first + "missing" + "".join(parts)
    for path, form in (
        ("/home/predict", {"paths": typed.encode("utf-8", "replace").decode(), "adapted": "test"}),
        ("/home/suggest", {"count": "3", "where": typed.encode("utf-8", "replace").decode(), "federation": ""}),
    ):
        answer = there.press(path, form)
        assert answer.status in (409, 413), answer.text
        assert "window.hit=1<" not in answer.text
    assert desk.site.kept(work.Bench).running is None


@pytest.mark.parametrize(
    ("path", "changed"),
    [("/home/predict", {"adapted": ""}), ("/home/predict", {"adapted": "../test"}), ("/home/predict", {"paths": " \n"}),
     ("/home/predict", {"paths": "/\n" * 101}), ("/home/suggest", {"count": "0"}), ("/home/suggest", {"count": "1e3"}),
     ("/home/suggest", {"count": "\u0661"}), ("/home/suggest", {"federation": "0" * 64}),
     ("/home/suggest", {"federation": "/etc/passwd"}), ("/home/predictions/0123456789abcdef/go-on", {})],
)  # fmt: skip
def test_what_the_page_did_not_offer_starts_nothing(
    there: Served, desk: Desk, path: str, changed: dict[str, str]
) -> None:
    form = {"paths": "/", "adapted": "test", "count": "3", "where": "/", "federation": ""}
    assert there.press(path, form | changed).status in (404, 409)
    assert there.page(path).status in (404, 405)  # nor does a link
    assert desk.site.kept(work.Bench).running is None


def test_hostile_file_names_are_predicted_and_shown_as_text(
    desk: Desk, there: Served, home: Path, files: Path, tmp_path: Path
) -> None:
    one, folder = min(files.rglob("*.dcm")), tmp_path / "new"
    names = [atom.replace("/", "|").replace("\x00", "0").encode()[:200] for atom in ATOMS] + [b"\xff\xfe", b"-rf"]
    folder.mkdir()
    for name in names:
        shutil.copyfile(one, folder / os.fsdecode(name + b".dcm"))
    shutil.rmtree(home / "predictions", ignore_errors=True)
    assert there.press("/home/predict", {"paths": str(folder), "adapted": "test", "heatmap": "yes"}).status == 303
    found = ended(desk, "prediction")
    assert (found.state, found.total) == ("done", len(names)), found
    (kept,) = prediction_folders(home)
    text = there.page(f"/home/predictions/{kept.key}").text
    assert text.count("<li>") >= len(names)
    assert "<script>window" not in text
    assert "\x1b" not in text
    assert there.page(f"/home/predictions/{kept.key}/0.png").headers["content-type"] == "image/png"
