"""What went wrong between the node and its coordinator, in words that say what to do next."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from wardround.errors import FederationError, Unreachable, Untrusted, WardroundError

log = logging.getLogger(__name__)


class KeyRefused(Untrusted):
    """The coordinator did not activate this node's key."""


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what httpx and Flower raise into our errors. Raises: Untrusted, Unreachable, FederationError."""
    try:
        yield
    except httpx.TransportError as error:
        raise _broken_line(error, address) from None
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unreachable(f"{address} asks this hospital to slow down", do="nothing: it does") from None
        raise Unreachable(
            f"{address} answered {code} instead of a coordinator's answer", do="check the address, and that it is up"
        ) from None
    except WardroundError:
        raise
    except Exception as error:  # whatever it made of what was answered, the node must live on
        log.exception("the coordinator's answer could not be understood")
        raise Unreachable(
            f"{address} answered something that is no coordinator's answer ({type(error).__name__})",
            do="check coordinator.address in hospital.toml",
        ) from None


def _broken_line(error: httpx.TransportError, address: str) -> FederationError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Untrusted(
                f"the certificate of {address} is not one of the coordinator's CA ({cause.verify_message})",
                do="join again with the coordinator's invitation.toml; if it fails still, somebody else answers there",
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return Untrusted(f"{address} does not speak TLS ({cause.reason})", do="check coordinator.address")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{address} did not answer in time", do="check the network and the firewall")
    return Unreachable(f"nobody answers at {address} ({error})", do="check the address, and that the coordinator is up")


def refused(error: httpx.HTTPStatusError, address: str) -> Exception:
    """Why an activation failed."""
    code = error.response.status_code
    if code == httpx.codes.UNAUTHORIZED:
        return KeyRefused(
            f"{address} did not accept this node's signature",
            do="check that this machine's clock is right (5 minutes are allowed), and node.key",
        )
    if code == httpx.codes.PRECONDITION_FAILED:
        return KeyRefused(
            f"{address} does not know this node's key, or another process uses it",
            do="have the coordinator register join.json (`wardround coordinator register`), and run one daemon a key",
        )
    return error
