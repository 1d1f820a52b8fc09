"""Everything that can go wrong and that a user can do something about.

    WardroundError                   exit 1   anything of ours
    ├── ConfigError                  exit 2   a TOML file or an option is invalid
    ├── DataError                    exit 3   the cohort, the labels or a file cannot be used
    ├── PrivacyError                 exit 4   answering would break the promise
    │   ├── PolicyRefusal                     the hospital's policy forbids what was asked
    │   ├── BudgetExceeded                    the hospital's epsilon would be passed
    │   ├── Replay                            this round was answered already, for another request
    │   └── AuditFailed                       answers give more away than is claimed of them
    ├── MessageError                 exit 5   a request or a reply is malformed, not finite or stale
    ├── FederationError              exit 6   the federation cannot go on
    │   ├── Unreachable                       nobody answers at the address
    │   ├── Untrusted                         TLS or the node's key was not accepted
    │   ├── QuorumMissed                      too few hospitals replied before the deadline
    │   └── RunStopped                        somebody stopped the run
    ├── StorageError                 exit 7   the disk is full or a file cannot be written or read
    └── PortInUse                    exit 8   another program listens on the port

A command ends with the exit code of the error, 0 on success and 130 when interrupted. Every message
says what was asked, what is allowed and what to do next.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_CODES = {
    0: "done",
    1: "not done: you answered no, or another error",
    2: "invalid file or option",
    3: "the cohort, its files or its labels cannot be used",
    4: "privacy: policy, approval, budget or audit",
    5: "malformed message",
    6: "the federation or the PACS: not running, not reachable, not trusted, or too few replies",
    7: "the disk",
    8: "the port is in use",
    130: "interrupted",
}
"""What each exit code means, of every command."""

_ADVICE = {
    "policy": "change the federation, or have the hospital change its own hospital.toml",
    "policy.memory": "choose a smaller model, or a machine with more memory",
    "pause": "wait until the hospital resumes (`wardround hospital resume`)",
    "approved": "have the hospital approve it (`wardround hospital approve`)",
    "device": "choose a smaller model, or another device.compute in hospital.toml",
}


class WardroundError(Exception):
    """Base of every error that a user may see.

    Args:
        what: what was asked or what went wrong, one sentence without a full stop.
        allowed: what would be accepted, if that can be said.
        do: what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, allowed: str = "", do: str = "") -> None:
        self.what, self.allowed, self.do = what, allowed, do
        parts = [what]
        if allowed:
            parts.append(f"Allowed: {allowed}")
        if do:
            parts.append(f"Next: {do}")
        super().__init__(". ".join(part.rstrip(".") for part in parts) + ".")


class ConfigError(WardroundError):
    """A TOML file or an option is invalid."""

    exit_code = 2


class DataError(WardroundError):
    """The cohort, the labels or a file cannot be used."""

    exit_code = 3


class PrivacyError(WardroundError):
    """Answering would break the hospital's privacy promise."""

    exit_code = 4


class PolicyRefusal(PrivacyError):
    """The hospital does not permit what was asked.

    Args:
        rule: of hospital.toml, as it is written there (`policy.greatest_clip_norm`), or "pause", "approved", "device".
        asked: what the request asked for.
        allowed: what the rule permits.
    """

    def __init__(self, rule: str, *, asked: str, allowed: str) -> None:
        self.rule, self.asked = rule, asked
        super().__init__(
            f"Refused by {rule}: asked {asked}",
            allowed=allowed,
            do=_ADVICE.get(rule) or _ADVICE.get(rule.partition(".")[0], ""),
        )


class BudgetExceeded(PrivacyError):
    """The hospital's epsilon would be passed by what was asked."""


class Replay(PrivacyError):
    """This round was answered already, and the request differs from the one that was answered."""


class AuditFailed(PrivacyError):
    """Answers give more away than is claimed of them: an empirical lower bound on epsilon passes the claim."""


class MessageError(WardroundError):
    """A request or a reply is malformed, not finite, of a wrong shape or of another round."""

    exit_code = 5


class FederationError(WardroundError):
    """The federation cannot go on."""

    exit_code = 6


class Unreachable(FederationError):
    """Nobody answers at the address."""


class Untrusted(FederationError):
    """TLS or the node's key was not accepted."""


class QuorumMissed(FederationError):
    """Too few hospitals replied before the deadline."""


class RunStopped(FederationError):
    """Somebody stopped the run; what its finished rounds came to is kept."""


class StorageError(WardroundError):
    """The disk is full, or a file cannot be written or read."""

    exit_code = 7


class PortInUse(WardroundError):
    """Another program listens on the port."""

    exit_code = 8
