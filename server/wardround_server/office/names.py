"""Names that the coordinator is given."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from wardround.config import Name
from wardround.errors import ConfigError
from wardround.text import shown


def checked_run_name(name: str) -> str:
    """The name, if a run may have it: it is a folder's name, and every hospital's ledger keeps it."""
    return _checked(name, f"the run name {name!r}", do="choose another --run")


def checked_hospital_name(name: str) -> str:
    """The name, if a hospital may have it."""
    return _checked(name, f"the hospital's name {shown(name)!r}", do="choose another name")


def _checked(name: str, what: str, *, do: str) -> str:
    try:
        return str(TypeAdapter(Name).validate_python(name))
    except ValidationError:
        raise ConfigError(
            what,
            allowed="1 to 63 of a to z, A to Z, digits, dots, dashes and underscores; first a letter or a digit",
            do=do,
        ) from None
