"""The coordinator's own certificate authority and server certificate (X.509, RFC 5280), EC P-384."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.errors import ConfigError, StorageError
from wardround.files import private_folder, write_atomically

VALID_DAYS = 825  # longer ones are refused by some TLS clients


@dataclass(frozen=True)
class TlsFiles:
    """Files of a home's tls/ folder, all PEM, all mode 0600."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The CA's certificate: what hospitals are given."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """The CA's private key: never leaves this folder."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"


def create(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """Make the CA and a server certificate for `hosts` (names or IP addresses, besides localhost and 127.0.0.1).

    Done again it keeps the CA and its key, and makes a new server certificate only if `hosts` has more than before or
    if the old one ends within 30 days.

    Raises: ConfigError, for something that is no host; StorageError.
    """
    files = TlsFiles(folder)
    names = _names(["localhost", "127.0.0.1", *hosts])
    try:
        private_folder(folder)
        if not (files.ca.exists() and files.ca_key.exists()):
            _make_ca(files)
        if not _serves(files, names):
            _make_server(files, names)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})", do="check the disk") from None
    return files


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not host or not all(part.replace("-", "").isalnum() and part.isascii() for part in host.split(".")):
                raise ConfigError(f"{host!r} is no host name or IP address", do="correct --host") from None
            names.append(x509.DNSName(host))
    return names


def _serves(files: TlsFiles, names: Sequence[x509.GeneralName]) -> bool:
    if not (files.certificate.exists() and files.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lasts = certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=30)
    return lasts and set(names) <= set(covered)


def _make_ca(files: TlsFiles) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wardround coordinator CA")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key, days=10 * 365)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(files.ca_key, _pem(key))
    _write(files.ca, certificate.public_bytes(serialization.Encoding.PEM))


def _make_server(files: TlsFiles, names: Sequence[x509.GeneralName]) -> None:
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = serialization.load_pem_private_key(files.ca_key.read_bytes(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{files.ca_key} is not an elliptic-curve key", do="remove the tls folder and init again")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wardround coordinator")])
    certificate = (
        _builder(subject, ca.subject, key, days=VALID_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA384())
    )
    _write(files.key, _pem(key))
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # hospital clocks are not all right
        .not_valid_after(now + timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, pem: bytes) -> None:
    write_atomically(path, pem, mode=0o600)
