"""What Flower's error codes mean for a run, and what to do about them (flwr.common.constant.ErrorCode)."""

from __future__ import annotations

from flwr.common.constant import ErrorCode

from wardround.errors import FederationError
from wardround.text import shown

NO_HEARTBEAT = "No heartbeat received from the task"
TAKEN_FOR_DEAD = "Flower heard nothing of the run's process for a minute and took it for dead: this machine is too busy"
_CANNOT = ("it could not answer", "its own log (`wardround hospital status` names it) says why")
_GONE = ("it was disconnected before it answered", "look at its daemon: `wardround hospital status`")
_MEANINGS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: _CANNOT,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: _CANNOT,
    ErrorCode.CLIENT_APP_CRASHED: _CANNOT,
    ErrorCode.MESSAGE_UNAVAILABLE: _GONE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: _GONE,
    ErrorCode.NODE_UNAVAILABLE: _GONE,
}


def ended(details: str) -> str:
    """How a run ended, as Flower says it, in words."""
    return TAKEN_FOR_DEAD if details == NO_HEARTBEAT else details


def explained(code: int, reason: str | None, digest: str) -> FederationError:
    """An error that Flower carried, in words.

    Args:
        code: Flower's.
        reason: as the hospital or Flower wrote it; shown as text.
        digest: of the run's agreement.
    """
    if code == ErrorCode.INVALID_FAB:
        return FederationError(
            f"it has not approved agreement {digest[:12]}, or approves no further run of it",
            do="have it approve this very federation.toml: `wardround hospital approve HOME federation.toml`",
        )
    meaning, do = _MEANINGS.get(code, ("Flower did not deliver its answer", "read coordinator.log"))
    return FederationError(f"{meaning} (Flower's error {code}: {shown(reason or '')})", do=do)
