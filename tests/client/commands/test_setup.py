"""`wardround hospital setup`: a kit, five answers, and a home that waits for approval; killed anywhere it goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.command_line import wardround
from tests.client.conftest import FEDERATION_TOML
from tests.client.intake.test_marked import images as slices
from tests.client.intake.test_marked import mask as drawn
from tests.client.intake.test_marked import segmentation
from tests.drawn import MASKS
from tests.hostile.fleet import HostileFleet, send

from wardround.cli import run
from wardround.errors import StorageError
from wardround.kit import Kit, digest
from wardround_client.commands import _machine
from wardround_client.commands._new_home import NewHome, State, hospital_toml, where
from wardround_client.commands._template import HOSPITAL_TOML
from wardround_client.config import HospitalConfig, load_hospital_config
from wardround_client.hospital import Hospital
from wardround_client.keys import load_node_key, load_pseudonym_key
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import make_profiles, write_hospital

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[HostileFleet]:
    """A coordinator that does not know the hospital yet."""
    with HostileFleet(tmp_path) as coordinator:
        coordinator.override["activate-node"] = lambda handler, body: send(handler, b"", status=412)
        yield coordinator


def kit_of(folder: Path, address: str, ca: Path, agreement: str = FEDERATION_TOML) -> tuple[Path, str]:
    """A kit's file, and its digest."""
    invitation = f'address = "{address}"\nendorsements = []\nca_pem = """\n{ca.read_text()}"""\n'
    data = Kit.of("st-anna", invitation.encode(), agreement.encode(), None).build()
    (folder / "st-anna.zip").write_bytes(data)
    return folder / "st-anna.zip", digest(data)


@pytest.fixture
def kit(tmp_path: Path, fleet: HostileFleet) -> tuple[Path, str]:
    return kit_of(tmp_path, fleet.address, fleet.ca)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_hospital(make_profiles(1, patients=(22, 26), seed=4)[0], folder)
    return folder


def set_up(capsys: Capture, kit: tuple[Path, str], home: Path, *options: object) -> tuple[int, list[dict[str, Any]]]:
    """Without a question -> exit code, what was said."""
    given = ("--digest", kit[1], "--patients", 40, "--yes", "--json")
    code, out, _ = wardround(capsys, "setup", kit[0], home, *given, *options)
    return code, [json.loads(line) for line in out.splitlines()]


def test_a_stranger_is_asked_five_things_and_told_one_command(
    kit: tuple[Path, str], images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "St Anna's home"
    typed = ["y", "/nowhere", str(images), "", "", "many", "0", "60", ""]
    asked: list[str] = []

    def answer(prompt: str = "", **_: object) -> str:
        asked.append(prompt)
        return typed.pop(0)

    monkeypatch.setattr("click.termui.visible_prompt_func", answer)
    code, out, _ = wardround(capsys, "setup", kit[0], home)
    assert code == 0 and not typed, out
    assert sorted(set(re.findall(r"^(\d)\. ", "\n".join([out, *asked]), re.MULTILINE))) == list("12345")
    assert kit[1] in out.replace(" ", "").replace("\n", ""), "the digest is shown before it is asked for"
    assert "/nowhere is not there" in out and "many patients" in out
    assert "waits   key" in out and "st-anna: waiting for approval." in out
    (following,) = re.findall(r"^Next: wardround hospital (.*)$", out, re.MULTILINE)
    config = load_hospital_config(home / "hospital.toml")
    assert (config.hospital.declared_patients, config.budget.epsilon) == (60, 10.0)
    words = shlex.split(following)
    assert wardround(capsys, *words, "--yes", "--anyway")[0] == 0, "the command that is next works as it is told"
    code, said = set_up(capsys, kit, home, "--patients", 60)
    assert (code, said[-1]["state"], said[-1]["next"]) == (
        0,
        "approved",
        f"wardround hospital up {shlex.quote(str(home))}",
    )


def test_no_is_no(kit: tuple[Path, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda *_, **__: "n")
    code, out, _ = wardround(capsys, "setup", kit[0], tmp_path / "home")
    assert code == 1 and "Nothing was made" in out and not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--digest", "0" * 64, "--patients", 40, "--yes"), "the kit's digest is"),
        (("--patients", 40, "--yes"), "--yes without --digest"),
        (("--yes", "--json"), "without --digest"),
        (("--json",), "--json cannot ask"),
        (("--digest", "KIT", "--yes"), "--yes without --patients"),
        (("--digest", "KIT", "--yes", "--patients", 40, "--epsilon", "nan"), "--epsilon nan"),
        (("--digest", "KIT", "--yes", "--patients", 40, "--epsilon", -1), "--epsilon -1"),
        (("--digest", "KIT", "--yes", "--patients", 40, "--images", "/nowhere"), "/nowhere is not there"),
        (("--digest", "KIT", "--yes", "--patients", 40, "--labels", "a\x1b[2J"), "is not there"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    kit: tuple[Path, str], tmp_path: Path, capsys: Capture, options: tuple[object, ...], says: str
) -> None:
    given = [kit[1] if each == "KIT" else each for each in options]
    code, out, err = wardround(capsys, "setup", kit[0], tmp_path / "home", *given)
    assert code == 2 and says in out + err and "\x1b" not in err
    assert not (tmp_path / "home").exists()


def test_answers_may_be_written_down_and_options_go_before(
    kit: tuple[Path, str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    answers = tmp_path / "answers.toml"
    answers.write_text(f'patients = 300\nepsilon = 2.5\nimages = "{images}"\nname = "annas"\n')
    code, said = set_up(capsys, kit, tmp_path / "home", "--answers", answers)
    assert code == 0 and said[-1]["hospital"] == "annas"
    config = load_hospital_config(tmp_path / "home" / "hospital.toml")
    assert (config.hospital.declared_patients, config.budget.epsilon) == (40, 2.5)
    assert json.loads((tmp_path / "home" / "join.json").read_text())["name"] == "annas"


def test_a_home_is_never_written_over(kit: tuple[Path, str], tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "other"
    assert wardround(capsys, "init", home, "--name", "st-anna", "--patients", 60)[0] == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for folder, says in ((home, "a hospital's home already"), (tmp_path / "full", "is not empty")):
        code, said = set_up(capsys, kit, folder)
        assert code == 2 and says in said[-1]["message"]
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


def test_another_kit_is_another_home_s(
    kit: tuple[Path, str], fleet: HostileFleet, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "home"
    assert set_up(capsys, kit, home)[0] == 0
    config = (home / "hospital.toml").read_bytes()
    other = kit_of(tmp_path, fleet.address, fleet.ca, FEDERATION_TOML.replace("rounds = 3", "rounds = 4"))
    code, said = set_up(capsys, other, home)
    assert code == 2 and "another kit" in said[-1]["message"]
    assert (home / "hospital.toml").read_bytes() == config


def test_without_images_it_says_how_to_go_on_and_later_takes_them(
    kit: tuple[Path, str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "home"
    code, said = set_up(capsys, kit, home)
    assert (code, said[-1]["state"]) == (0, "waiting for images")
    labels = images / "labels.csv"
    code, said = set_up(capsys, kit, home, "--images", images, "--labels", labels)
    assert (code, said[-1]["state"]) == (0, "waiting for approval")
    assert [each["patients"] for each in said if each["event"] == "ingest"] == [26]
    assert wardround(capsys, "setup", kit[0], home, "--digest", "0" * 64)[0] == 2, "a digest that is given is compared"
    code, out, err = wardround(capsys, "setup", kit[0], home, "--patients", 41)
    assert code == 2 and "begun with 40" in out + err


def test_segmentations_beside_the_images_are_labels(fleet: HostileFleet, tmp_path: Path, capsys: Capture) -> None:
    kit = kit_of(tmp_path, fleet.address, fleet.ca, MASKS.replace('"disc"', '"lesion"'))
    folder = tmp_path / "dicom"
    folder.mkdir()
    segmentation(slices(folder), drawn()).save_as(folder / "seg.dcm")
    code, said = set_up(capsys, kit, tmp_path / "home", "--images", folder)
    assert (code, said[-1]["state"]) == (0, "waiting for approval")
    assert [each["patients"] for each in said if each["event"] == "ingest"] == [1]


def test_images_without_labels_wait_for_them(
    kit: tuple[Path, str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, said = set_up(capsys, kit, tmp_path / "home", "--images", images, "--labels", "")
    assert (code, said[-1]["state"]) == (0, "waiting for labels")
    assert said[-1]["next"].endswith("--labels CSV") and "--images" not in said[-1]["next"]


def test_a_coordinator_that_is_away_fails_and_everything_else_is_done(
    fleet: HostileFleet, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    kit = kit_of(tmp_path, "no-such-host.invalid:9092", fleet.ca)
    code, said = set_up(capsys, kit, tmp_path / "home", "--images", images, "--labels", images / "labels.csv")
    assert code == 6 and "no-such-host" in said[-1]["message"]
    assert [each["used"] for each in said if each["event"] == "ingest"] != [0]
    assert {each["step"]: each["ok"] for each in said if each["event"] == "check"}["disk"]


def test_a_full_disk_and_a_pacs_that_is_away_are_said(
    kit: tuple[Path, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine, "ENOUGH_BYTES", 1 << 62)
    code, said = set_up(capsys, kit, tmp_path / "home", "--images", "http://127.0.0.1:9/dicom-web")
    steps = {each["step"]: each["ok"] for each in said if each["event"] == "check"}
    assert code == StorageError.exit_code and not steps["disk"] and not steps["PACS"] and steps["certificate (TLS)"]
    assert load_hospital_config(tmp_path / "home" / "hospital.toml").pacs.url == "http://127.0.0.1:9/dicom-web"


def test_the_pacs_may_be_answered_later(kit: tuple[Path, str], tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "home"
    assert set_up(capsys, kit, home)[0] == 0
    code, said = set_up(capsys, kit, home, "--images", "127.0.0.1:9")
    assert code == 6 and [each["ok"] for each in said if each.get("step") == "PACS"] == [False]
    assert load_hospital_config(home / "hospital.toml").pacs.address == "127.0.0.1:9"
    code, said = set_up(capsys, kit, home, "--images", "127.0.0.1:10")
    assert code == 2 and "[pacs]" in said[-1]["message"]


def test_a_registered_hospital_is_told_so(
    kit: tuple[Path, str], fleet: HostileFleet, tmp_path: Path, capsys: Capture
) -> None:
    del fleet.override["activate-node"]
    code, said = set_up(capsys, kit, tmp_path / "home")
    assert code == 0 and said[-1]["registered"]


@pytest.mark.parametrize("invitation", [b"", b"address = 3\nca_pem = 4", b'address = "a b:1"\nca_pem = "x"'])
def test_an_invitation_that_is_none(tmp_path: Path, capsys: Capture, invitation: bytes) -> None:
    data = Kit.of("st-anna", invitation, FEDERATION_TOML.encode(), None).build()
    (tmp_path / "kit.zip").write_bytes(data)
    code, said = set_up(capsys, (tmp_path / "kit.zip", digest(data)), tmp_path / "home")
    assert code == 2 and not (tmp_path / "home").exists(), said


@given(
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"),
    patients=st.integers(1, 10**9),
    epsilon=st.floats(1e-6, 1e6),
    images=st.one_of(
        st.just(""),
        st.from_regex(r"\A/[^\0]{0,40}\Z"),
        st.sampled_from(["https://pacs.example/dicom-web", "pacs.example:11112", "[2001:db8::7]:104"]),
    ),
)
@settings(deadline=None)
def test_limits_are_the_answers_or_the_defaults_whatever_is_answered(
    name: str, patients: int, epsilon: float, images: str
) -> None:
    """And nothing of the kit: hospital.toml is a function of these four."""
    from wardround.toml import loads

    state = State(kit="0" * 64, name=name, patients=patients, epsilon=epsilon, images=images)
    found = loads(hospital_toml(state), HospitalConfig)
    usual = loads(HOSPITAL_TOML.format(name=name, patients=patients), HospitalConfig)
    assert found.budget == usual.budget.model_copy(update={"epsilon": epsilon})
    asked = {where(images): images} if where(images) in ("url", "address") else {}
    assert found.pacs == usual.pacs.model_copy(update=asked)
    same = usual.model_copy(update={"budget": found.budget, "pacs": found.pacs})
    assert found == same


# Killed anywhere.


EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "sqlite3.connect"}
KEYS = ("secret.key", "node.key")


def _kill_at(number: int, under: Path) -> None:
    """In a child: SIGKILL before the so-and-so-manieth change of a file below the folder."""
    left = [number]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not arguments or not str(arguments[0]).startswith(str(under)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(number: int, home: Path, *words: object) -> bool:
    """Run a command in a fork that dies at its `number`th change below the home -> whether it did."""
    child = os.fork()
    if not child:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        _kill_at(number, home)
        os._exit(run([str(word) for word in words]))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_killed_at_any_change_of_a_file_it_goes_on(
    kit: tuple[Path, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some twice: at the n-th change of the first call, and at the third of the call that mends it."""
    monkeypatch.setattr(_machine, "steps", lambda *_: iter(()))  # the network changes no file but node.json
    words = ("hospital", "setup", kit[0], None, "--digest", kit[1], "--patients", 40, "--yes", "--json")
    for number in range(1, 200):
        home = tmp_path / f"home{number}"
        command = [home if word is None else word for word in words]
        if not killed(number, home, *command):
            break
        made = (home / "hospital.toml").exists()
        keys = [(home / name).read_bytes() for name in KEYS if made and (home / name).exists()]
        if number % 3 == 0:
            killed(3, home, *command)
        code, said = set_up(capsys, kit, home)
        assert (code, said[-1]["state"]) == (0, "waiting for images"), (number, said)
        hospital = Hospital.open(home)
        assert hospital.config.coordinator.address and not hospital.patients.register.read()
        hospital.ledger.close()
        assert load_node_key(home).curve.name == "secp384r1" and len(load_pseudonym_key(home)) == 32
        assert all(any((home / name).read_bytes() == key for name in KEYS) for key in keys), "no key is made twice"
        assert {file.stat().st_mode & 0o077 for file in home.rglob("*")} == {0}
        assert not list(home.glob(".*.key.*")), "no copy of a key is left"
    assert number > 20


def test_a_home_that_lost_its_hospital_toml_is_not_made_anew(
    kit: tuple[Path, str], tmp_path: Path, capsys: Capture
) -> None:
    """Its ledger is the only memory of what was spent."""
    home = tmp_path / "home"
    assert set_up(capsys, kit, home)[0] == 0
    (home / "hospital.toml").unlink()
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file() and file.name != "setup.json"}
    code, said = set_up(capsys, kit, home)
    assert code == StorageError.exit_code and "restore it" in said[-1]["message"]
    assert {file: file.read_bytes() for file in before} == before
    state = NewHome(home, kit[1]).begun()
    assert state is not None and state.made
    with pytest.raises(StorageError):  # and with setup.json of an earlier moment
        NewHome(home, kit[1]).make(state.model_copy(update={"made": False}))
    Ledger.of(home).close()
