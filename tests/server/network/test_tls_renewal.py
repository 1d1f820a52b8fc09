"""Certificates over the years: renewed in time and without a restart, a CA rolled over, and every end said before."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.certificates import WARN_DAYS, Countdown, days_left
from wardround.cli import run as command
from wardround.errors import ConfigError, WardroundError
from wardround.files import write_atomically
from wardround_client.config import load_hospital_config
from wardround_client.service.daemon import Daemon
from wardround_client.service.log_file import logging_to
from wardround_server.network import tls

NOW = datetime.now(UTC)
HOST = "fl.example.org"


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def trusts(pem: str, files: tls.TlsFiles, at: datetime, host: str = HOST) -> bool:
    """Whether a hospital that was given this PEM believes the server at that time."""
    server = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    store = Store(x509.load_pem_x509_certificates(pem.encode()))
    try:
        PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(host)).verify(server, [])
    except VerificationError:
        return False
    return True


def shown_by(context: ssl.SSLContext, pem: str, host: str = "localhost") -> bytes | None:
    """The certificate that a server with this context shows in a handshake, where the client believes it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=pem)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        context.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return None
    return ends[0].getpeercert(binary_form=True)


def renewed(files: tls.TlsFiles, contexts: Sequence[ssl.SSLContext], *, at: datetime | None = None) -> None:
    """As `keep_valid` does it."""
    tls.create(files.folder, [], at=at)
    tls.show(files, contexts)


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_over_the_years_the_server_is_believed_every_day_until_the_ca_ends(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [HOST], at=NOW)
    ca = files.ca.read_text()
    for number in range(0, 3650, 25):  # `up` looks every hour; 25 days are within the 30
        tls.create(tmp_path / "tls", [], at=day(number))
        assert trusts(ca, files, day(number)) and trusts(ca, files, day(min(number + 25, 3649.9))), number
        assert files.ends()["server certificate"] <= files.ends()["CA"]
    assert files.ca.read_text() == ca
    before = files.certificate.read_bytes()
    tls.create(tmp_path / "tls", [], at=day(3640))
    assert files.certificate.read_bytes() == before, "near the CA's end no certificate lasts longer: none is made"
    with pytest.raises(ConfigError, match=r"ENDED, 50 full days ago.*renew-ca .* --switch"):
        tls.create(tmp_path / "tls", [], at=day(3700))


def test_an_authority_rolls_over_and_every_hospital_that_joins_in_time_connects_every_day(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [HOST], at=NOW)
    old = files.invitation()
    tls.renew_ca(files, switch=False, at=day(3500))
    tls.create(tmp_path / "tls", [HOST], at=day(3500))
    both = files.invitation()
    assert both.startswith(old) and both.count("BEGIN CERTIFICATE") == 2
    assert trusts(old, files, day(3510)) and trusts(both, files, day(3510))
    tls.renew_ca(files, switch=False, at=day(3520))
    assert files.invitation() == both, "asked again, nothing changes"
    tls.renew_ca(files, switch=True, at=day(3600))
    tls.create(tmp_path / "tls", [HOST], at=day(3600))
    new = files.invitation()
    assert new.count("BEGIN CERTIFICATE") == 1 and both.endswith(new)
    assert [trusts(pem, files, day(3610)) for pem in (old, both, new)] == [False, True, True]
    assert trusts(both, files, day(4300)), "long after the old one has ended"


class Crash(Exception):
    pass


@pytest.mark.parametrize("at_write", range(6))
def test_a_crash_anywhere_in_a_switch_is_mended_by_doing_it_again(
    tmp_path: Path, at_write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tls.create(tmp_path / "tls", [HOST])
    tls.renew_ca(files, switch=False)
    both = files.invitation()
    done = 0

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: object, **options: object) -> None:
            nonlocal done
            done += 1
            if done > at_write:
                raise Crash
            real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(tls, "write_atomically", dying(write_atomically))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            tls.renew_ca(files, switch=True)
        except Crash:
            assert at_write < 4
        else:
            assert at_write >= 4
    if at_write < 4:
        tls.renew_ca(files, switch=True)
    tls.create(tmp_path / "tls", [HOST])
    assert trusts(both, files, NOW), "it is the CA that the hospitals were given, not yet another"
    assert {path.name for path in files.folder.iterdir()} == {
        *("ca.crt", "ca.key", "ca.endorsement", "server.crt", "server.key")
    }


def test_a_running_server_shows_its_new_certificate_without_a_restart(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [], at=day(-tls.VALID_DAYS + 10))
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2)]
    for context in contexts:
        context.load_cert_chain(files.certificate, files.key)
    old, ca = der(files.certificate), files.ca.read_text()
    assert all(shown_by(context, ca) == old for context in contexts)

    async def live() -> None:
        task = asyncio.create_task(tls.keep_valid(files, contexts))
        while any(shown_by(context, ca) == old for context in contexts):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(live(), 60))
    assert all(shown_by(context, ca) == der(files.certificate) != old for context in contexts)


def test_a_certificate_is_loaded_where_hands_are_shaken_and_only_when_it_is_new(tmp_path: Path) -> None:
    """Another thread's would end the process now and then: OpenSSL frees what a handshake reads."""
    files = tls.create(tmp_path / "tls", [], at=day(-tls.VALID_DAYS + 10))
    loaded: list[tuple[int, bytes]] = []

    class Context(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, *_: Any, **__: Any) -> None:
            loaded.append((threading.get_ident(), Path(certfile).read_bytes()))

    looked = 0

    async def live() -> None:
        nonlocal looked
        task = asyncio.create_task(tls.keep_valid(files, [Context(ssl.PROTOCOL_TLS_SERVER)], every_s=0.0))
        while looked < 5:
            await asyncio.sleep(0)
        files.certificate.unlink()
        while len(loaded) < 2:
            await asyncio.sleep(0)
        task.cancel()

    create = tls.create

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looked
        looked += 1
        return create(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "create", counted)
        asyncio.run(asyncio.wait_for(live(), 60))
    assert {thread for thread, _ in loaded} == {threading.get_ident()}
    first, second = (content for _, content in loaded)
    assert first != second == files.certificate.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "server.crt", "server.key"])
def test_a_damaged_file_is_said_and_spoils_no_running_server(
    tmp_path: Path, name: str, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["coordinator", "init", str(tmp_path)]) == 0
    files = tls.TlsFiles(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    before, ca = der(files.certificate), files.ca.read_text()
    (files.folder / name).write_bytes(damage)
    if name != "ca.key":  # which is read when it signs again
        with pytest.raises(ConfigError):
            renewed(files, [context])
    assert shown_by(context, ca) == before
    for words in (
        ["init", str(tmp_path)],
        ["status", str(tmp_path)],
        ["init", str(tmp_path), "--host", "b.example.org"],
    ):
        assert command(["coordinator", *words]) in (0, 2, 6)
    assert "internal error" not in capsys.readouterr().err


def test_a_mended_or_foreign_pair_is_noticed(tmp_path: Path) -> None:
    one, other = tls.create(tmp_path / "one" / "tls", []), tls.create(tmp_path / "other" / "tls", [])
    one.ca_key.write_bytes(other.ca_key.read_bytes())
    one.certificate.unlink()
    with pytest.raises(ConfigError, match="not the key of"):
        tls.create(one.folder, [])
    other.certificate.write_bytes(tls.create(tmp_path / "third", []).certificate.read_bytes())
    renewed(other, [])  # of another CA: made anew
    assert trusts(other.ca.read_text(), other, NOW, "localhost")


def test_a_new_host_name_lives_beside_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "coordinator"
    assert command(["coordinator", "init", str(home), "--host", "old.example.org", "--port", "9444"]) == 0
    files, ca = tls.TlsFiles(home / "tls"), (home / "tls" / "ca.crt").read_text()
    text = (home / "coordinator.toml").read_text()
    assert command(["coordinator", "init", str(home), "--host", "new.example.org"]) == 0
    assert 'address = "new.example.org:9444"' in (home / "invitation.toml").read_text()
    assert (home / "coordinator.toml").read_text() == text.replace("old.example.org", "new.example.org")
    renewed(files, [], at=day(tls.VALID_DAYS - 10))
    assert all(trusts(ca, files, day(tls.VALID_DAYS), host) for host in ("old.example.org", "new.example.org"))
    assert not trusts(ca, files, day(tls.VALID_DAYS), "other.example.org")
    assert command(["coordinator", "init", str(home)]) == 0
    assert 'address = "new.example.org:9444"' in (home / "invitation.toml").read_text()
    assert command(["coordinator", "init", str(home), "--host", 'x"\nport = 1']) == 2
    assert "new.example.org" in (home / "coordinator.toml").read_text()


@pytest.mark.parametrize(("host", "listens"), [("::1", "::1"), ("2001:db8::7", "::"), ("192.0.2.7", "0.0.0.0")])
def test_an_ip_address_of_either_kind_can_be_dialled(tmp_path: Path, host: str, listens: str) -> None:
    assert command(["coordinator", "init", str(tmp_path), "--host", host]) == 0
    assert f'host = "{listens}"' in (tmp_path / "coordinator.toml").read_text()
    dialled = f"[{host}]:9092" if ":" in host else f"{host}:9092"
    assert f'address = "{dialled}"' in (tmp_path / "invitation.toml").read_text()


def test_status_shows_every_end_and_renew_ca_goes_step_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(tmp_path)
    assert command(["coordinator", "init", home]) == 0
    capsys.readouterr()
    command(["coordinator", "status", home, "--json"])
    assert set(json.loads(capsys.readouterr().out)["certificates"]) == {"server certificate", "CA"}
    assert command(["coordinator", "renew-ca", home]) == 0
    assert (tmp_path / "invitation.toml").read_text().count("BEGIN CERTIFICATE") == 2
    capsys.readouterr()
    command(["coordinator", "status", home])
    assert "The next CA ends on" in capsys.readouterr().out
    assert command(["coordinator", "renew-ca", home, "--switch"]) == 0
    assert (tmp_path / "invitation.toml").read_text().count("BEGIN CERTIFICATE") == 1


def joined(home: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Join -> whether it is the coordinator of before, and how the ledger and the approvals call it."""
    capsys.readouterr()
    assert command(["hospital", "join", str(home), str(place / "invitation.toml"), "--json"]) == 0
    same = json.loads(capsys.readouterr().out)["same_coordinator"]
    return same, load_hospital_config(home / "hospital.toml").coordinator.identity


def test_a_hospital_knows_its_coordinator_again_through_new_authorities_and_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.hostile.conftest import make_home

    home, place = make_home(tmp_path / "made" / "home", 40), tmp_path / "coordinator"
    late = Path(shutil.copytree(home, tmp_path / "late"))
    assert command(["coordinator", "init", str(place)]) == 0
    same, who = joined(home, place, capsys)
    assert not same
    joined(late, place, capsys)
    assert command(["coordinator", "renew-ca", str(place)]) == 0
    assert joined(home, place, capsys) == (True, who)
    assert (home / "coordinator-ca.pem").read_text().count("BEGIN CERTIFICATE") == 2
    command(["hospital", "status", str(home), "--json"])
    assert len(json.loads(capsys.readouterr().out.splitlines()[0])["ca_ends"]) == 2
    assert command(["coordinator", "renew-ca", str(place), "--switch"]) == 0
    assert command(["coordinator", "init", str(place), "--host", "new.example.org"]) == 0
    assert joined(home, place, capsys) == (True, who)
    assert command(["coordinator", "renew-ca", str(place)]) == 0
    assert joined(late, place, capsys) == (True, who), "which missed the roll-over: the old CA endorsed the new one"
    assert joined(late, place, capsys) == (True, who)


@pytest.mark.parametrize("trick", ["both", "endorsements", "exchanged", "garbage"])
def test_another_coordinator_cannot_pass_for_the_one_that_was_joined(
    tmp_path: Path, trick: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.hostile.conftest import make_home

    home, place, other = make_home(tmp_path / "made" / "home", 40), tmp_path / "coordinator", tmp_path / "other"
    for each in (place, other):
        assert command(["coordinator", "init", str(each)]) == 0
    _, who = joined(home, place, capsys)
    assert command(["coordinator", "renew-ca", str(place)]) == 0
    theirs, ours = tls.TlsFiles(other / "tls"), tls.TlsFiles(place / "tls")
    pem, signs = theirs.invitation(), list[str]()
    if trick == "both":  # it shows our certificate, which is public, beside its own
        pem = ours.ca.read_text() + pem
    if trick == "endorsements":  # and our endorsement, which is public too
        pem, signs = ours.invitation() + pem, ours.endorsements()
    if trick == "exchanged":  # somebody put its CA into the home before
        (home / "coordinator-ca.pem").write_text(pem)
    if trick == "garbage":
        signs = ["", "zz", "00" * 104, "e", "ab" * 100_000]
    (other / "invitation.toml").write_text(
        f"address = '127.0.0.1:9092'\nendorsements = {json.dumps(signs)}\nca_pem = {json.dumps(pem)}\n"
    )
    same, now = joined(home, other, capsys)
    assert not same
    assert now != who


@pytest.mark.parametrize(("age", "says"), [(3600, False), (3625, True), (3651, True)])
def test_a_hospital_logs_weeks_before_that_its_authority_ends(tmp_path: Path, age: int, says: bool) -> None:
    from tests.hostile.conftest import make_home

    home, ca = make_home(tmp_path / "made" / "home", 40), tls.create(tmp_path / "tls", [], at=day(-age)).ca
    assert command(["hospital", "join", str(home), "--address", "127.0.0.1:1", "--ca", str(ca)]) == 0
    daemon = Daemon(home)
    daemon.stop.set()  # one look, and the end
    with logging_to(home):
        daemon._watch()
    assert ("the coordinator's CA ends on" in (home / "hospital.log").read_text()) == says


@settings(max_examples=200, deadline=None)
@given(
    lives=st.lists(st.integers(-10, 900), min_size=1, max_size=3),
    looks=st.lists(st.floats(0, 950), min_size=1, max_size=40).map(sorted),
)
def test_an_end_is_said_once_for_each_threshold_and_never_again(lives: list[int], looks: list[float]) -> None:
    ends = {f"certificate {number}": day(life) for number, life in enumerate(lives)}
    countdown, said = Countdown(), list[str]()
    for look in looks:
        lines = countdown.due(ends, day(look))
        assert countdown.due(ends, day(look)) == []
        said += lines
    for name, end in ends.items():
        met = {min(passed) for look in looks if (passed := [d for d in WARN_DAYS if days_left(end, day(look)) <= d])}
        assert sum(line.startswith(name) for line in said) == len(met)


@pytest.mark.parametrize("step", ["create", "show"])
@pytest.mark.parametrize("failure", [WardroundError("the disk is full"), PermissionError(13, "no"), ValueError("x")])
def test_every_failure_to_renew_is_logged_and_tried_again(
    tmp_path: Path, failure: Exception, step: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tls.create(tmp_path / "tls", [])
    tried: list[int] = []

    def fails(*_: object, **__: object) -> None:
        tried.append(1)
        raise failure

    monkeypatch.setattr(tls, step, fails)

    async def live() -> None:
        task = asyncio.create_task(tls.keep_valid(files, [], every_s=0))
        while len(tried) < 3:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(live(), 60))
    assert "could not be renewed" in caplog.text
    assert str(failure) in caplog.text
