"""What a person was shown is what is approved: these bytes, this coordinator, so many runs; and it can be revoked."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.hostile.agreements import BASE, approvals, said, toml
from tests.hostile.attack import Victim
from tests.rounds import request

from wardround.config import load_federation
from wardround.errors import PolicyRefusal
from wardround.files import write_atomically
from wardround.wire import peek_reply
from wardround_client.consent.approvals import Approval, ApprovalFolder, Proposal
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer
from wardround_server.network import tls

SMALL = toml(BASE | {"privacy": {"epsilon": 0.5}})
LARGE = toml(BASE | {"privacy": {"epsilon": 9.0}})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "federation.toml"
    file.write_text(SMALL)
    return file


# The file is exchanged while the person reads.


def rewrite(file: Path) -> None:
    file.write_text(LARGE)


def replace(file: Path) -> None:
    (file.parent / "large.toml").write_text(LARGE)
    os.replace(file.parent / "large.toml", file)


def relink(file: Path) -> None:
    (file.parent / "large.toml").write_text(LARGE)
    file.unlink()
    file.symlink_to("large.toml")


def vanish(file: Path) -> None:
    file.unlink()


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("exchange", [rewrite, replace, relink, vanish, become_a_pipe])
def test_what_was_shown_is_stored_whatever_happens_to_the_file(
    home: Path, file: Path, monkeypatch: pytest.MonkeyPatch, exchange: Callable[[Path], None]
) -> None:
    def says_yes(question: str) -> bool:
        exchange(file)
        return True

    digest = load_federation(file).digest
    monkeypatch.setattr("typer.confirm", says_yes)
    told = said("hospital", "approve", home, file)
    assert told.code == 0
    assert digest[:12] in told.out
    assert "0.5" in told.out
    assert approvals(home) == {digest: SMALL.encode()}
    record = json.loads((home / "approved" / digest / "approval.json").read_text())
    assert (record["digest"], record["epsilon_of_this_run"]) == (digest, pytest.approx(0.5, abs=0.01))
    assert record["time"]
    assert record["coordinator"] == ""


def test_a_link_is_followed_once(home: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, large = tmp_path / "link.toml", tmp_path / "large.toml"
    large.write_text(LARGE)
    link.symlink_to(file)

    def says_yes(question: str) -> bool:
        link.unlink()
        link.symlink_to(large)
        return True

    monkeypatch.setattr("typer.confirm", says_yes)
    assert said("hospital", "approve", home, link).code == 0
    assert list(approvals(home).values()) == [SMALL.encode()]


def test_a_proposal_reads_each_file_once(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The encoder too: it is checked by its hash, and those bytes are stored, not the file's of a moment later."""
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"weights")
    image = {"label_column": "y", "classes": ["no", "yes"]}
    model = {"family": "encoder-head", "encoder": weights.name, "encoder_sha256": "0" * 64}
    file.write_text(toml(BASE | {"task": image, "model": model}))
    opened: list[str] = []
    real = os.open

    def counted(path: Path, flags: int) -> int:
        opened.append(path.name)
        return real(path, flags)

    monkeypatch.setattr(os, "open", counted)
    proposal = Proposal.read(file)
    assert opened == [file.name, weights.name]
    weights.write_bytes(b"others")
    assert proposal.encoder == b"weights"


# All at once or not at all.


class Killed(BaseException):
    """Passes every `except` of ours, as kill -9 does."""


@pytest.mark.parametrize("ends_at", range(1, 4))
@pytest.mark.parametrize("written", [False, True])
def test_an_approval_that_dies_half_way_is_none(
    home: Path, file: Path, ends_at: int, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after each write in turn; what is left is whole or none, and approving again mends it."""
    weights = file.parent / "own.safetensors"
    weights.write_bytes(b"weights")
    image = {"label_column": "y", "classes": ["no", "yes"]}
    model = {"family": "encoder-head", "encoder": weights.name, "encoder_sha256": "0" * 64}
    file.write_text(toml(BASE | {"task": image, "model": model}))
    proposal, folder = Proposal.read(file), ApprovalFolder(home)
    writes: list[str] = []

    def dies(path: Path, blob: bytes) -> None:
        writes.append(path.name)
        if len(writes) == ends_at and not written:
            path.with_name(f".{path.name}.tmp").write_bytes(blob[:5])
            raise Killed
        write_atomically(path, blob)
        if len(writes) == ends_at:
            raise Killed

    approval = Approval(digest=proposal.federation.digest, coordinator="", runs=1)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("wardround_client.consent.approvals.write_atomically", dies)
        folder.store(proposal, approval, {})
    whole = ends_at == 3 and written
    assert writes[ends_at - 1] == [weights.name, "approval.json", "federation.toml"][ends_at - 1]
    assert folder.digests() == ({approval.digest} if whole else frozenset())
    folder.store(proposal, approval, {})
    assert folder.digests() == {approval.digest}
    assert (folder.folder(approval.digest) / weights.name).read_bytes() == b"weights"
    folder.remove(approval.digest)
    assert list((home / "approved").iterdir()) == []


def test_a_full_disk_is_said_and_approves_nothing(home: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, blob: bytes, **_: object) -> None:
        if path.name == "federation.toml":
            raise OSError(28, "No space left on device")
        write_atomically(path, blob)

    monkeypatch.setattr("wardround_client.consent.approvals.write_atomically", full)
    told = said("hospital", "approve", home, file, "--yes")
    assert (told.code, "No space left" in told.err) == (7, True)
    assert approvals(home) == {}


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_only_the_owner_reads_an_approval_whatever_the_umask(home: Path, file: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert said("hospital", "approve", home, file, "--yes").code == 0
    finally:
        os.umask(before)
    for path in [home / "approved", *(home / "approved").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# What is no file.


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # an address has 108 bytes
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": a_link_to_a_pipe,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "standard input": lambda path: path.symlink_to("/dev/stdin"),
    "a socket": a_socket,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "larger than any": lambda path: path.write_bytes(b"#" * (65 << 20)),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "the memory of a process": lambda path: path.symlink_to("/proc/self/mem"),
}
READERS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "approve": lambda home, path: ("hospital", "approve", home, path, "--yes"),
    "ingest": lambda home, path: ("hospital", "ingest", home, "--table", path.parent / "t.csv", "--federation", path),
    "join": lambda home, path: ("hospital", "join", home, path),
    "join --ca": lambda home, path: ("hospital", "join", home, "--address", "a.example:1", "--ca", path),
    "labels": lambda home, path: ("hospital", "ingest", home, home, "--labels", path, "--workers", 1),
    "withdraw": lambda home, path: ("hospital", "withdraw", home, "--from", path, "--rounds-only"),
    "adapt --task": lambda home, path: ("hospital", "adapt", home, "--task", path),
    "adapt --model": lambda home, path: ("hospital", "adapt", home, "--model", path),
    "register": lambda home, path: ("coordinator", "register", home.parent / "coordinator", path),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused_at_once_by_every_reader(home: Path, tmp_path: Path, kind: str) -> None:
    given = tmp_path / "given"
    given.mkdir()
    SPECIAL[kind](given / "file")
    assert said("coordinator", "init", tmp_path / "coordinator").code == 0
    for reader, command in READERS.items():
        told = said(*command(home, given / "file"))
        assert told.code in (2, 3, 7), (reader, told)
        assert "file" in told.err, (reader, told)
    assert approvals(home) == {}


@pytest.mark.parametrize("kind", SPECIAL)
def test_an_encoder_that_is_no_file_is_refused(home: Path, file: Path, kind: str) -> None:
    if kind in ("larger than any", "not text"):
        pytest.skip("an encoder is large, and no text")
    SPECIAL[kind](file.parent / "own.safetensors")
    image = {"label_column": "y", "classes": ["no", "yes"]}
    model = {"family": "encoder-head", "encoder": "own.safetensors", "encoder_sha256": "0" * 64}
    file.write_text(toml(BASE | {"task": image, "model": model}))
    told = said("hospital", "approve", home, file, "--yes")
    assert told.code == 2
    assert "own.safetensors" in told.err


# One approval, so many runs.


def refusal_of(hospital: Hospital, victim: Victim, run: str, number: int = 0) -> str:
    refusal = peek_reply(answer(hospital, request(victim.agreement, number, run=run))).refusal
    return "" if refusal is None else f"{refusal.rule}: {refusal.asked}"


def approved_for(victim: Victim, runs: int) -> Hospital:
    digest = victim.agreement.federation.digest
    victim.hospital.approvals.approve(victim.hospital.approvals.folder(digest) / "federation.toml", runs=runs)
    return victim.hospital


@pytest.mark.parametrize("runs", [1, 3])
def test_a_run_more_than_approved_is_refused_before_anything_is_reserved(victim: Victim, runs: int) -> None:
    hospital = approved_for(victim, runs)
    for number in range(runs):
        assert refusal_of(hospital, victim, f"burn{number}") == ""
    before = victim.state()
    for name in ("burn", "burn3x", "BURN0", "burn0.", "x" * 60):
        assert refusal_of(hospital, victim, name).startswith("approved: another run")
        assert refusal_of(hospital, victim, name, 2).startswith("approved: another run")
    assert victim.state() == before
    for number in range(runs):  # those that have begun go on, to their end
        assert refusal_of(hospital, victim, f"burn{number}", 1) == ""


def test_approving_again_allows_one_run_more_and_not_two(victim: Victim) -> None:
    hospital = approved_for(victim, 1)
    assert refusal_of(hospital, victim, "spring") == ""
    assert refusal_of(hospital, victim, "summer") != ""
    approved_for(victim, 1)
    assert refusal_of(hospital, victim, "summer") == ""
    assert refusal_of(hospital, victim, "autumn") != ""


def test_the_count_outlives_the_daemon(victim: Victim) -> None:
    hospital = approved_for(victim, 1)
    assert refusal_of(hospital, victim, "spring") == ""
    again = Hospital(hospital.home, hospital.config, hospital.ledger)
    assert refusal_of(again, victim, "summer").startswith("approved: another run")


def test_another_agreements_runs_do_not_count_and_do_not_help(victim: Victim, tmp_path: Path) -> None:
    hospital = approved_for(victim, 1)
    other = tmp_path / "other.toml"
    text = (hospital.approvals.folder(victim.agreement.federation.digest) / "federation.toml").read_text()
    other.write_text(text.replace("hearts", "lungs"))
    second = Victim(hospital, hospital.approvals.approve(other))
    assert refusal_of(hospital, second, "of-the-other") == ""
    assert refusal_of(hospital, victim, "spring") == ""
    assert refusal_of(hospital, victim, "summer").startswith("approved: another run")


def test_the_screen_says_what_all_runs_may_cost(home: Path, file: Path) -> None:
    one = said("hospital", "approve", home, file, "--yes")
    assert "1 run, epsilon 0.50" in one.out
    three = json.loads(said("hospital", "approve", home, file, "--yes", "--runs", "3", "--json").out)
    assert three["costs_at_most"].startswith("3 runs, epsilon 0.")
    assert three["epsilon_after_this_run"] > 0.5
    assert said("hospital", "approve", home, file, "--yes", "--runs", "1000000").code == 2


# Taking it back, and another coordinator.


def test_a_revoked_approval_is_refused_from_the_next_message_and_can_be_given_again(victim: Victim) -> None:
    hospital = approved_for(victim, 2)
    assert refusal_of(hospital, victim, "spring") == ""
    digest = victim.agreement.federation.digest
    text = approvals(hospital.home)[digest]
    told = said("hospital", "revoke", hospital.home, digest[:10])
    assert told.code == 0
    assert digest in told.out
    assert refusal_of(hospital, victim, "spring", 1).startswith("approved")
    assert not (hospital.home / "approved" / digest).exists()
    assert hospital.approvals.bundles() == frozenset()
    (hospital.home.parent / "again.toml").write_bytes(text)
    hospital.approvals.approve(hospital.home.parent / "again.toml")
    assert refusal_of(hospital, victim, "spring", 1) == ""


@pytest.mark.parametrize("named", ["", "abc", "nothing", "../../", "0" * 64, "[red]", "\x1b[2J"])
def test_revoking_what_is_not_approved_says_so_and_removes_nothing(victim: Victim, named: str) -> None:
    before = approvals(victim.hospital.home)
    assert said("hospital", "revoke", victim.hospital.home, named).code == 2
    assert approvals(victim.hospital.home) == before


def test_an_approval_whose_file_is_broken_can_be_revoked(victim: Victim) -> None:
    home, digest = victim.hospital.home, victim.agreement.federation.digest
    (home / "approved" / digest / "federation.toml").write_bytes(b"\xff")
    assert said("hospital", "revoke", home, digest).code == 0
    assert approvals(home) == {}


def test_an_approval_for_one_coordinator_is_none_for_another(victim: Victim, tmp_path: Path) -> None:
    home, digest = victim.hospital.home, victim.agreement.federation.digest
    agreement = home / "approved" / digest / "federation.toml"
    ca = {name: tls.create(tmp_path / name, ["127.0.0.1"]).ca for name in ("x", "y")}

    def joined(address: str, name: str) -> Hospital:
        assert said("hospital", "join", home, "--address", address, "--ca", ca[name]).code == 0
        return Hospital.open(home, ledger=Ledger(None))

    at_x = joined("x.example.org:9092", "x")
    assert refusal_of(at_x, victim, "r").startswith("approved")  # it was given before any was joined
    at_x.approvals.approve(agreement)
    assert refusal_of(at_x, victim, "r") == ""
    for other in (joined("y.example.org:9092", "y"), joined("x.example.org:9092", "y")):
        refused = peek_reply(answer(other, request(victim.agreement, 0, run="r"))).refusal
        assert refused is not None
        assert refused.rule == "approved"
        assert "example.org" not in refused.asked + refused.allowed  # one coordinator is not told of another
        assert other.ledger.entries() == []
    assert refusal_of(joined("x.example.org:9092", "x"), victim, "r") == ""
    assert refusal_of(joined("y.example.org:1", "x"), victim, "r") == ""  # the same, known by its CA, has moved


@pytest.mark.parametrize("record", ["", "{}", "[" * 50_000, '{"digest": 1}', None, '{"runs": 9, "coordinator": ""}'])
def test_an_approval_that_does_not_say_its_terms_is_none(victim: Victim, record: str | None) -> None:
    """As older versions wrote it, or a hand: it is asked again, and the daemon's screen says so."""
    file = victim.hospital.approvals.folder(victim.agreement.federation.digest) / "approval.json"
    file.unlink() if record is None else file.write_text(record)
    assert refusal_of(victim.hospital, victim, "r").startswith("approved")
    with pytest.raises(PolicyRefusal, match="approve again"):
        victim.hospital.approvals.permit(victim.agreement.federation.digest, "r")
    assert "approve again" in " ".join(victim.hospital.warm_up())


def test_what_changed_since_the_last_approval_is_said(home: Path, file: Path) -> None:
    assert said("hospital", "approve", home, file, "--yes").code == 0
    file.write_text(toml(BASE | {"privacy": {"epsilon": 0.7}, "rounds": {"rounds": 4}}))
    told = json.loads(said("hospital", "approve", home, file, "--yes", "--json").out)
    assert told["changed"] == ["privacy.epsilon from 0.5 to 0.7", "rounds.rounds from 3 to 4"]
    assert ApprovalFolder(home).digests() == approvals(home).keys()


def test_a_class_that_looks_like_several_stands_in_quotes(home: Path, file: Path) -> None:
    task = BASE["task"] | {"classes": ["no, yes", 'a"', "plain (image)"], "label_column": "y"}
    file.write_text(toml(BASE | {"task": task}))
    told = json.loads(said("hospital", "approve", home, file, "--yes", "--json").out)
    assert told["task"] == 'y: "no, yes", "a\\"", "plain (image)" (table)'
