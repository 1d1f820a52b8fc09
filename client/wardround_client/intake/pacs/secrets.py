"""Credentials and keys for a PACS: from files that nobody else can read."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from wardround.errors import ConfigError
from wardround.given import CARD_BYTES, given_text
from wardround.proxies import is_loopback
from wardround.toml import Section, loads
from wardround_client.config import Pacs


class Credentials(Section):
    """username and password (HTTP Basic, RFC 7617), or a token (Bearer, RFC 6750)."""

    username: str = ""
    password: str = ""
    token: str = ""


def credentials(settings: Pacs, home: Path) -> Credentials:
    """Those that are named, or none. Raises: ConfigError: others can read the file, or it is none."""
    if not settings.credentials_file:
        return Credentials()
    path = home / settings.credentials_file
    check_private(path)
    found = loads(given_text(path, CARD_BYTES, do="write username and password, or token"), Credentials, name=str(path))
    if bool(found.token) == bool(found.username):
        raise ConfigError(f"{path}", allowed="username and password, or token", do="write one of the two")
    return found


def check_private(path: Path) -> None:
    """Raises: ConfigError, where anybody but the owner may do anything with the file, or it belongs to another."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", do="correct the name of the file") from None
    if stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISREG(found.st_mode):
        raise ConfigError(
            f"{path}: others may read or change it (mode {stat.S_IMODE(found.st_mode):04o})",
            allowed="a file of mode 0600",
            do=f"run `chmod 600 {path}`, and change the password if others could log in here",
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path}: belongs to another user", do="have it owned by the user that runs wardround")


def tls(settings: Pacs, home: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, the certificate checked against the CA that is named, else against the system's.

    Raises: ConfigError.
    """
    try:
        context = ssl.create_default_context(cafile=str(home / settings.ca_file) if settings.ca_file else None)
        if settings.certificate_file:
            check_private(home / settings.key_file)
            context.load_cert_chain(home / settings.certificate_file, home / settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"[pacs]: a certificate or key cannot be used ({error.strerror or error})",
            do="correct ca_file, certificate_file and key_file: PEM files, the key without a passphrase",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def check_files(settings: Pacs, home: Path) -> None:
    """Everything that the settings name, before anybody is asked. Raises: ConfigError."""
    url = urlsplit(settings.url)
    given = credentials(settings, home)
    if given != Credentials() and url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ConfigError("[pacs] credentials_file without TLS", do="use https:// in [pacs] url")
    if settings.tls or url.scheme == "https":
        tls(settings, home)
    if settings.address and settings.retrieve == "move" and not settings.listen:
        raise ConfigError('[pacs] retrieve = "move" without listen', do='write listen = "0.0.0.0:11112", say')
