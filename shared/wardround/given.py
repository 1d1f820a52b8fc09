"""Files that a person names: read once, up to a size, and never a FIFO, a device or a link to one.

The limits of all of them are here.
"""

from __future__ import annotations

from pathlib import Path

from wardround.errors import ConfigError
from wardround.files import read_bounded

TOML_BYTES = (
    2 << 20
)  # with the names of 20,000 columns: federation.toml, hospital.toml, coordinator.toml, invitation.toml
NAMES_BYTES = 1 << 20  # of columns, a line each
CARD_BYTES = 64 << 10  # join.json, approval.json, node.pub, a certificate of TLS
ENCODER_BYTES = 1 << 30
EXPERIENCE_BYTES = 64 << 20  # rows of runs, a line each
LIST_BYTES = 64 << 20  # a list of PatientIDs
CERTIFICATE_BYTES = 256 << 20  # an epsilon certificate: half a kilobyte an entry
TABLE_BYTES = 4 << 30  # a CSV, which is read row by row


def given_bytes(path: Path, limit_bytes: int, *, do: str) -> bytes:
    """The file's bytes; `do` says what to do without them. Raises: ConfigError."""
    try:
        return read_bounded(path, limit_bytes)
    except FileNotFoundError:
        raise ConfigError(f"{path}: cannot be read (no such file)", do=do) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", do=do) from None
    except ValueError as error:  # a path that no file system has: with a NUL, say
        raise ConfigError(f"{str(path)!r} is not a path ({error})", do=do) from None


def given_text(path: Path, limit_bytes: int, *, do: str) -> str:
    """The file as UTF-8 text, without a byte order mark. Raises: ConfigError."""
    return decoded(given_bytes(path, limit_bytes, do=do), path, do=do)


def decoded(data: bytes, path: Path, *, do: str) -> str:
    """Bytes that were read from `path`, as text. Raises: ConfigError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read (it is not UTF-8 text)", do=do) from None
