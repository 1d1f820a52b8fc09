from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from wardround.errors import ConfigError
from wardround_server.network import tls


def verify(files: tls.TlsFiles, host: x509.GeneralName, ca: Path | None = None) -> None:
    authority = x509.load_pem_x509_certificate((ca or files.ca).read_bytes())
    server = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert isinstance(host, x509.DNSName | x509.IPAddress)
    PolicyBuilder().store(Store([authority])).build_server_verifier(host).verify(server, [])


def test_the_certificate_is_good_for_its_hosts_and_for_no_other(tmp_path: Path) -> None:
    import ipaddress

    files = tls.create(tmp_path / "tls", ["fl.example.org", "192.0.2.7"])
    verify(files, x509.DNSName("fl.example.org"))
    verify(files, x509.IPAddress(ipaddress.ip_address("192.0.2.7")))
    verify(files, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    with pytest.raises(VerificationError):
        verify(files, x509.DNSName("other.example.org"))


def test_another_ca_does_not_vouch_for_it(tmp_path: Path) -> None:
    files, other = tls.create(tmp_path / "one", ["localhost"]), tls.create(tmp_path / "two", ["localhost"])
    with pytest.raises(VerificationError):
        verify(files, x509.DNSName("localhost"), ca=other.ca)


def test_python_can_serve_with_it(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)


def test_every_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", ["localhost"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700


def test_made_again_nothing_changes_but_a_new_host_gets_a_new_certificate(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", ["localhost"])
    before = {path.name: path.read_bytes() for path in files.folder.iterdir()}
    tls.create(tmp_path / "tls", ["localhost"])
    assert {path.name: path.read_bytes() for path in files.folder.iterdir()} == before
    tls.create(tmp_path / "tls", ["fl.example.org"])
    verify(files, x509.DNSName("fl.example.org"))
    assert files.ca.read_bytes() == before["ca.crt"], "hospitals keep the CA that they have"
    assert files.ca_key.read_bytes() == before["ca.key"]


@pytest.mark.parametrize("host", ["", "no host", "a/b", "http://x"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="no host name"):
        tls.create(tmp_path / "tls", [host])
