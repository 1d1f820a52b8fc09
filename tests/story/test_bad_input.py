"""What users do wrong, with the real commands: one clear message, the documented exit code, and nothing lost."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.rounds import TWO_COLUMNS
from tests.story.processes import COMMAND, environment, forked, running, typed
from tests.story.processes import wardround as process

from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import make_profiles, write_hospital

pytestmark = pytest.mark.story

FEDERATION = f'name = "bad-input"{TWO_COLUMNS}[rounds]\nrounds = 1\nquorum = 1\ndeadline_s = 60\n'


def table(path: Path, classes: Sequence[str] = ("no", "yes")) -> Path:
    rng = random.Random(3)
    rows = (f"{rng.randint(30, 80)},{rng.randint(150, 300)},{classes[i % len(classes)]}" for i in range(60))
    path.write_text("\n".join(["a,b,y", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's home and a hospital's, ready to run; tests that change them work on copies."""
    place = tmp_path_factory.mktemp("consortium")
    (place / "federation.toml").write_text(FEDERATION)
    table(place / "table.csv")
    typed("coordinator", "init", place / "coordinator", "--port", 0, "--admin-port", 0, "--health-port", 0)
    typed("hospital", "init", place / "home", "--name", "st-anna", "--patients", 60)
    typed(
        *("hospital", "ingest", place / "home"),
        *("--table", place / "table.csv", "--federation", place / "federation.toml"),
    )
    typed("hospital", "approve", place / "home", place / "federation.toml", "--yes")
    return place


@pytest.fixture(scope="module")
def coordinator(place: Path) -> Iterator[Path]:
    """The home of a coordinator that is up. st-anna is not registered."""
    with running(place, forked()) as start:
        start("coordinator", "up", place / "coordinator").wait_for(lambda line: "is up" in line, "sign of life")
        yield place / "coordinator"


@pytest.fixture
def home(place: Path, tmp_path: Path) -> Path:
    """A copy of the hospital, to be spoilt."""
    return Path(shutil.copytree(place / "home", tmp_path / "home"))


def test_a_misspelt_key_names_itself_the_right_one_and_the_line(place: Path, home: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "federation.toml"
    wrong.write_text(FEDERATION.replace("deadline_s", "dedline_s"))
    line = FEDERATION.splitlines().index("deadline_s = 60") + 1
    for command in (
        ["hospital", "approve", home, wrong, "--yes"],
        ["coordinator", "run", place / "coordinator", wrong],
    ):
        said = typed(*command, expect=2)
        assert "'rounds.dedline_s'" in said and "'deadline_s'" in said and f"line {line}" in said

    config = home / "hospital.toml"
    text = config.read_text().replace("declared_patients", "declared_patient")
    config.write_text(text)
    said = typed("hospital", "up", home, expect=2)
    line = next(i for i, each in enumerate(text.splitlines(), 1) if each.startswith("declared_patient "))
    assert "declared_patient'" in said and "'declared_patients'" in said and f"line {line}" in said


def test_nobody_at_the_address(place: Path, home: Path) -> None:
    with socket.socket() as nobody:  # bound and not listening: nobody else can take the port meanwhile
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        typed("hospital", "join", home, "--address", address, "--ca", place / "coordinator" / "tls" / "ca.crt")
        said = typed("hospital", "up", home, "--give-up-after-s", 0.5, expect=6)
    assert f"nobody answers at {address}" in said and "Next: check the address" in said


def test_another_ca_and_an_unregistered_key_are_not_accepted(coordinator: Path, home: Path, tmp_path: Path) -> None:
    typed("hospital", "join", home, coordinator / "invitation.toml")
    said = typed("hospital", "up", home, expect=6)  # at once: only a person can mend it
    assert "does not know this node's key" in said and "register join.json" in said

    typed("coordinator", "init", tmp_path / "other")
    address = json.loads(typed("hospital", "status", home, "--json", expect=6))["coordinator"]
    typed("hospital", "join", home, "--address", address, "--ca", tmp_path / "other" / "tls" / "ca.crt")
    said = typed("hospital", "up", home, expect=6)
    assert "certificate" in said and "join again" in said

    # Nothing is lost: with the right CA, and registered, the same home connects.
    typed("hospital", "join", home, coordinator / "invitation.toml")
    ca = home / "coordinator-ca.pem"
    right = ca.read_bytes()
    ca.write_bytes((tmp_path / "other" / "tls" / "ca.crt").read_bytes())  # behind the hospital's back
    assert "ca_sha256" in typed("hospital", "up", home, expect=2)
    ca.write_bytes(right)
    typed("coordinator", "register", coordinator, home / "join.json")
    assert "connected to" in typed("hospital", "up", home, "--once")


def test_ports_in_use_and_a_second_coordinator(coordinator: Path, tmp_path: Path) -> None:
    said = process("coordinator", "up", coordinator, expect=6)
    assert "a coordinator runs on" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = tmp_path / "other"
        typed("coordinator", "init", other, "--port", port, "--admin-port", 0, "--health-port", 0)
        said = process("coordinator", "up", other, expect=8)
    assert f"port {port}" in said and "coordinator.toml" in said


def test_a_run_that_nobody_can_do(coordinator: Path, place: Path) -> None:
    federation = place / "federation.toml"
    said = typed("coordinator", "run", coordinator, federation, "--run", "../elsewhere", expect=2)
    assert "'../elsewhere'" in said and "choose another --run" in said
    said = typed("coordinator", "run", coordinator, federation, "--run", "spring", "--resume", expect=2)
    assert "no run 'spring'" in said
    assert not (coordinator / "runs").exists()


def test_a_cohort_that_cannot_be_used(place: Path, home: Path, tmp_path: Path) -> None:
    typed("hospital", "join", home, "--address", "127.0.0.1:9", "--ca", place / "coordinator" / "tls" / "ca.crt")
    federation = place / "federation.toml"

    shutil.rmtree(home / "cohort")
    said = typed("hospital", "up", home, expect=3)
    assert "no cohort yet" in said and "wardround hospital ingest" in said

    (tmp_path / "empty.csv").write_text("a,b,y\n,,no\n")
    said = typed("hospital", "ingest", home, "--table", tmp_path / "empty.csv", "--federation", federation, expect=3)
    assert "none of 1 could be used" in said and "column a is missing" in said
    said = typed("hospital", "up", home, expect=3)
    assert "cohort is empty" in said

    shutil.rmtree(home / "cohort")
    one = table(tmp_path / "one.csv", classes=["no"])
    typed("hospital", "ingest", home, "--table", one, "--federation", federation)
    said = typed("hospital", "up", home, expect=3)
    assert "class" in said and "Next:" in said
    assert "no patient shows" in typed("hospital", "approve", home, federation, "--yes")  # said there already


def test_labels_that_match_no_image(tmp_path: Path) -> None:
    data, home = tmp_path / "pacs", tmp_path / "home"
    write_hospital(make_profiles(1, patients=(4, 4), seed=5)[0], data)
    labels = data / "labels.csv"
    header, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([header, *(f"X{row}" for row in rows)]) + "\n")
    typed("hospital", "init", home, "--name", "st-anna", "--patients", 20)
    said = typed("hospital", "ingest", home, data, "--labels", labels, expect=3)
    assert "no PatientID of the labels CSV" in said and "correct the CSV" in said


def test_a_full_disk_at_ingest_keeps_what_was_there(place: Path, home: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: SIGXFSZ ignored, a write beyond it fails (EFBIG)."""
    more = tmp_path / "more.csv"
    rng = random.Random(4)
    rows = (f"{rng.random()},{rng.random()},{rng.choice(['no', 'yes'])}" for _ in range(3000))
    more.write_text("\n".join(["a,b,y", *rows]) + "\n")
    arguments = ["hospital", "ingest", home, "--table", more, "--federation", place / "federation.toml"]
    said = on_a_full_disk(*arguments, limit_bytes=64_000)
    assert "cannot be written" in said or "full" in said
    typed(*arguments)  # with room again, it goes on
    said = typed("hospital", "approve", home, place / "federation.toml", "--yes")
    assert said.count("Warning") == 1 and "3,060 patients, and 60 are declared" in said
    assert Ledger(home / "ledger.sqlite").entries() == []


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words in (["hospital", "init"], ["coordinator", "init"]):
        options = ["--name", "st-anna", "--patients", 60] if words[0] == "hospital" else []
        said = typed(*words, tmp_path / "file" / "home", *options, expect=7)
        assert "cannot be written" in said and "Next:" in said


def on_a_full_disk(*arguments: object, limit_bytes: int) -> str:
    """Run a command whose files cannot pass the limit; assert exit code 7 and no traceback -> what it said."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=600,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr
