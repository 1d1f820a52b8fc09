"""The hospital's secrets, and the card that leaves it.

secret.key   of the pseudonyms (0600)
node.key     the node's identity, an elliptic-curve key on P-384 (0600), beside its public half
join.json    the card that the coordinator registers; no secret
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.errors import ConfigError, StorageError
from wardround.files import sync_folder, write_atomically

PSEUDONYM_KEY = "secret.key"
PSEUDONYM_KEY_BYTES = 32
PRIVATE, PUBLIC, CARD = "node.key", "node.pub", "join.json"


def create_pseudonym_key(home: Path) -> bytes:
    """Write a fresh secret.key into the home -> what it holds. Raises: OSError, also when there is one."""
    key = secrets.token_bytes(PSEUDONYM_KEY_BYTES)
    write_private(home / PSEUDONYM_KEY, key)
    return key


def load_pseudonym_key(home: Path) -> bytes:
    """Secret key of the pseudonyms, 32 bytes. Raises: StorageError."""
    path = home / PSEUDONYM_KEY
    try:
        key = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror})") from None
    if len(key) != PSEUDONYM_KEY_BYTES:
        raise StorageError(f"{path} is damaged", do="restore it from your backup")
    return key


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read; whole or not there. Raises: OSError, also if there is one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        write_atomically(scratch, data)
        os.link(scratch, path)  # which, unlike a rename, replaces nothing
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_node_key(home: Path) -> str:
    """Write node.key (0600) and node.pub into the home -> the public key as OpenSSH text.

    A key that is there is kept: the coordinator knows the hospital by it.

    Raises: StorageError; ConfigError, when the key that is there cannot be used.
    """
    if (home / PRIVATE).exists():
        return public_text(load_node_key(home))
    key = ec.generate_private_key(ec.SECP384R1())
    try:
        write_private(
            home / PRIVATE,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
        )
        write_atomically(home / PUBLIC, f"{public_text(key)}\n".encode())
    except OSError as error:
        raise StorageError(f"{home / PRIVATE} cannot be written ({error.strerror})", do="check the disk") from None
    return public_text(key)


def load_node_key(home: Path) -> ec.EllipticCurvePrivateKey:
    """The node's private key. Raises: ConfigError, when it is missing, damaged or open to other users."""
    path = home / PRIVATE
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror})",
            do="restore it, or make a new home with `wardround hospital init`",
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path} can be read by other users", do=f"chmod 600 {path}")
    try:
        load = serialization.load_ssh_private_key if b"OPENSSH" in data[:64] else serialization.load_pem_private_key
        key: object = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is damaged or protected by a password", do="restore it from your backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is no elliptic-curve key", allowed="a key on P-384, as `hospital init` makes it")
    return key


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half, as one OpenSSH line."""
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def fingerprint(public_key: str) -> str:
    """Of a key in OpenSSH form, as `ssh-keygen -l` and the coordinator's `register` show it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def write_card(home: Path, *, name: str, declared_patients: int, public_key: str, delta: float = 0.0) -> Path:
    """Write join.json, the card that the coordinator registers: name, public key, declared patients. No secret.

    delta: of hospital.toml's budget, from which the coordinator knows how much noise to expect; 0: the usual one.

    Raises: StorageError.
    """
    path = home / CARD
    card = {"name": name, "public_key": public_key, "declared_patients": declared_patients}
    card |= {"delta": delta} if delta else {}
    try:
        write_atomically(path, f"{json.dumps(card, indent=2)}\n".encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})", do="check the disk") from None
    return path
