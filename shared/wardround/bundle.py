"""The code-free Flower bundle of a federation: two text files in a deterministic zip, and its hash.

Flower ships an app as a zip whose root it puts at the FRONT of `sys.path`, so a bundle that held code would shadow
ours. This one names our installed entry points and embeds the federation's agreement; a hospital builds the same bytes
from the federation.toml it was shown, and so knows the hash it approves before anything arrives.

The bytes are those of `flwr build` (flwr 1.42, `flwr/cli/build.py`): it parses pyproject.toml and writes it again with
tomli-w, stores the files uncompressed under one fixed date, and adds a listing of their hashes. A test compares.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile

from wardround.config import Federation

PUBLISHER = "wardround"
# Of the bundle, not of the program: hospital and coordinator of different releases build the same bytes.
FORMAT = "1.0.0"
_FAB_DATE = (2024, 10, 1, 0, 0, 0)
_UNIX = 3


def app_files(federation: Federation) -> dict[str, str]:
    """The bundle's files by name: what `flwr run` needs and nothing that Python could import."""
    agreement = federation.canonical()
    # Laid out as tomli-w writes it, one array element a line, so that writing it again changes nothing.
    pyproject = f"""[build-system]
requires = [
    "hatchling",
]
build-backend = "hatchling.build"

[project]
name = "wardround-{federation.digest[:12]}"
version = "{FORMAT}"
description = "A wardround federation: an agreement, and no code"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "{PUBLISHER}"
fab-include = [
    "/README.md",
]

[tool.flwr.app.components]
serverapp = "wardround_server.flower.app:app"
clientapp = "wardround_client.flower.app:app"

[tool.flwr.app.config]
federation = {_toml_string(agreement)}
run = ""
resume = false
"""
    readme = (
        f"# wardround federation {federation.name}\n\n"
        "This bundle holds no code. It names entry points that each participant has installed, and one agreement.\n\n"
        f"Agreement (SHA-256 {federation.digest}):\n\n    {agreement}\n"
    )
    return {"pyproject.toml": pyproject, "README.md": readme}


def build(federation: Federation) -> bytes:
    """The bundle as `flwr build` makes it of `app_files`, byte for byte the same at every hospital."""
    files = {name: text.encode() for name, text in app_files(federation).items()}
    listing = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in [*files.items(), (".info/CONTENT", "\n".join(listing).encode())]:
            entry = zipfile.ZipInfo(name, date_time=_FAB_DATE)
            entry.create_system = _UNIX  # else it would follow the machine that builds, and so would the hash
            archive.writestr(entry, data)
    return out.getvalue()


def digest(federation: Federation) -> str:
    """SHA-256 of `build(federation)`, 64 hex digits: Flower's `fab_hash`."""
    return hashlib.sha256(build(federation)).hexdigest()


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'
