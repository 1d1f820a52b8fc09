"""The coordinator's own certificate authority and server certificate (X.509, RFC 5280), EC P-384."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.certificates import Countdown, endorsement, until
from wardround.errors import ConfigError, StorageError, WardroundError
from wardround.files import private_folder, write_atomically

VALID_DAYS = 825  # longer ones are refused by some TLS clients
RENEW_DAYS = 30
log = logging.getLogger(__name__)


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

    @property
    def next_ca(self) -> Path:
        """A CA that hospitals are given beside the present one, before it signs anything."""
        return self.folder / "next-ca.crt"

    @property
    def next_ca_key(self) -> Path:
        """Its private key."""
        return self.folder / "next-ca.key"

    @property
    def endorsement(self) -> Path:
        """Of the present CA by the one before it."""
        return self.folder / "ca.endorsement"

    @property
    def next_endorsement(self) -> Path:
        """Of the next CA by the present one."""
        return self.folder / "next-ca.endorsement"

    def endorsements(self) -> list[str]:
        """By which a hospital that joined an earlier CA knows this coordinator again. Raises: OSError."""
        present = [path for path in (self.endorsement, self.next_endorsement) if path.exists()]
        return [path.read_text(encoding="ascii").strip() for path in present]

    def invitation(self) -> str:
        """The PEM that hospitals are given: the CA, and while it is rolled over the next one too. Raises: OSError."""
        present = [path for path in (self.ca, self.next_ca) if path.exists()]
        return "".join(path.read_text(encoding="ascii") for path in present)

    def ends(self) -> dict[str, datetime]:
        """When each certificate ends: "server certificate", "CA", "next CA" as far as they are there.

        Raises: ConfigError.
        """
        named = {"server certificate": self.certificate, "CA": self.ca, "next CA": self.next_ca}
        return {name: _load(path).not_valid_after_utc for name, path in named.items() if path.exists()}


def create(folder: Path, hosts: Sequence[str], *, at: datetime | None = None) -> TlsFiles:
    """Make the CA and a server certificate for `hosts` (names or IP addresses, besides localhost and 127.0.0.1).

    Done again it keeps the CA and its key, and makes a new server certificate only if `hosts` has more than before, if
    the old one ends within 30 days, or if another CA signs now. Names that the old one had stay in the new one, so that
    hospitals may go on to dial them.

    Args:
        folder: the tls folder of a home.
        hosts: what hospitals dial.
        at: the time; None: now.

    Raises: ConfigError, for something that is no host, a damaged file, and a CA that has ended; StorageError.
    """
    files, now = TlsFiles(folder), at or datetime.now(UTC)
    try:
        private_folder(folder)
        if not (files.ca.exists() and files.ca_key.exists()):
            _make_ca(files.ca, files.ca_key, now)
        ends = _load(files.ca).not_valid_after_utc
        if ends <= now:
            raise ConfigError(
                f"the coordinator's CA has ended ({until(ends, now)}): no hospital believes it any more",
                do=f"`wardround coordinator renew-ca {folder.parent} --switch`; each hospital then joins again with "
                "the new invitation.toml and keeps its approvals",
            )
        before = _load(files.certificate) if files.certificate.exists() and files.key.exists() else None
        names = list(dict.fromkeys([*_names(["localhost", "127.0.0.1", *hosts]), *_covered(before)]))
        if before is None or not _serves(before, _load(files.ca), names, now):
            _make_server(files, names, now)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})", do="check the disk") from None
    return files


def renew_ca(files: TlsFiles, *, switch: bool, at: datetime | None = None) -> None:
    """Make the next CA, if there is none, and with `switch` let it sign from now on.

    Between the two every hospital has time to join again, with an invitation that holds both. The server's certificate
    is made anew by the next `create`.

    Raises: ConfigError, StorageError.
    """
    now = at or datetime.now(UTC)
    try:
        if files.next_ca_key.exists() and files.next_ca_key.read_bytes() == files.ca_key.read_bytes():
            switch = True  # a crash cut the last switch off: it is finished, whatever is asked
        elif not (files.next_ca.exists() and files.next_ca_key.exists()):
            _make_ca(files.next_ca, files.next_ca_key, now)
            with suppress(ConfigError):  # a CA whose key is lost endorses nobody: hospitals then approve anew
                _write(files.next_endorsement, endorsement(_ca_key(files), _load(files.next_ca)).encode())
        if switch:
            if files.next_endorsement.exists():
                os.replace(files.next_endorsement, files.endorsement)
            _write(files.ca_key, files.next_ca_key.read_bytes())
            if files.next_ca.exists():
                _write(files.ca, files.next_ca.read_bytes())
                files.next_ca.unlink()
            files.next_ca_key.unlink()
    except OSError as error:
        raise StorageError(f"{files.folder}: cannot be written ({error.strerror})", do="check the disk") from None


def show(files: TlsFiles, contexts: Sequence[ssl.SSLContext]) -> None:
    """Let running servers show their certificate, as it is now, from the next connection on.

    To be called in the thread that shakes hands with these contexts: OpenSSL frees the certificate that another thread
    may be reading, and the process dies of it.

    Raises: ConfigError; the servers then keep what they have.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)  # a context is not spoilt
        for context in contexts:
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{files.certificate} and {files.key} do not fit each other ({type(error).__name__})",
            do=f"remove both, then `wardround coordinator init {files.folder.parent}`",
        ) from None


async def keep_valid(files: TlsFiles, contexts: Sequence[ssl.SSLContext], *, every_s: float = 3600.0) -> None:
    """For as long as it is not cancelled: renew in time, and write into the log what a person must know."""
    countdown, shown = Countdown(), b""
    while True:
        try:
            await asyncio.to_thread(create, files.folder, [])
            if (now := files.certificate.read_bytes()) != shown:
                show(files, contexts)
                shown = now
            for line in countdown.due(files.ends()):
                log.warning("the %s; see `wardround coordinator renew-ca`", line)
        except WardroundError as error:
            log.error("the server's certificate could not be renewed: %s", error)
        except Exception:  # whatever somebody did to the files, the coordinator goes on with what it has
            log.exception("the server's certificate could not be renewed")
        await asyncio.sleep(every_s)


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


def _covered(certificate: x509.Certificate | None) -> list[x509.GeneralName]:
    """The names of a certificate; none, where somebody else made it without."""
    with suppress(x509.ExtensionNotFound, ValueError):
        if certificate is not None:
            return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return []


def _serves(
    certificate: x509.Certificate, ca: x509.Certificate, names: Sequence[x509.GeneralName], at: datetime
) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    ends = certificate.not_valid_after_utc
    lasts = ends > at + timedelta(days=RENEW_DAYS) or ends >= ca.not_valid_after_utc > at
    return lasts and set(names) <= set(_covered(certificate))


def _load(path: Path) -> x509.Certificate:
    """Raises: ConfigError, OSError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise ConfigError(f"{path} is damaged", do="restore it from your backup, or remove it and init again") from None


def _make_ca(certificate_file: Path, key_file: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"wardround coordinator CA {now:%Y-%m-%d %H:%M:%S}")])
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
        _builder(name, name, key, now, now + timedelta(days=10 * 365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(key_file, _pem(key))
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))


def _ca_key(files: TlsFiles) -> ec.EllipticCurvePrivateKey:
    """Raises: ConfigError, OSError."""
    try:
        ca_key: object = serialization.load_pem_private_key(files.ca_key.read_bytes(), None)
    except (ValueError, TypeError):
        ca_key = None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != _load(files.ca).public_key():
        raise ConfigError(
            f"{files.ca_key} is not the key of {files.ca}",
            do=f"restore both from your backup, or `wardround coordinator renew-ca {files.folder.parent} --switch`",
        )
    return ca_key


def _make_server(files: TlsFiles, names: Sequence[x509.GeneralName], now: datetime) -> None:
    ca, ca_key = _load(files.ca), _ca_key(files)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wardround coordinator")])
    certificate = (
        _builder(subject, ca.subject, key, now, min(now + timedelta(days=VALID_DAYS), ca.not_valid_after_utc))
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
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # hospital clocks are not all right
        .not_valid_after(end)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, pem: bytes) -> None:
    write_atomically(path, pem, mode=0o600)
