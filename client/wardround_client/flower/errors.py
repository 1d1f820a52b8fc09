"""What went wrong between the node and its coordinator, in words that say what to do next."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from cryptography import x509

from wardround.certificates import ends_of
from wardround.errors import FederationError, Unreachable, Untrusted, WardroundError
from wardround.text import shown
from wardround_client.flower.clock_skew import TOLERATED_S, Clock, span

# OpenSSL's X509_V_ERR_*
_NOT_YET, _EXPIRED, _HOST, _ADDRESS = 9, 10, 62, 64
_LOOK_S = 5.0
_CLOCK = "set the clock that is wrong (`timedatectl` shows whether NTP keeps this one)"
log = logging.getLogger(__name__)


class KeyRefused(Untrusted):
    """The coordinator did not activate this node's key."""


class NotRegistered(KeyRefused):
    """It does not know the key, as before `coordinator register`; or another process uses it."""


@contextmanager
def explained(address: str, ca_pem: bytes = b"", proxy: str = "") -> Iterator[None]:
    """Turn what httpx and Flower raise into our errors.

    Args:
        address: of the coordinator.
        ca_pem: the authority that is believed.
        proxy: through which it is dialled, if any, without its password.

    Raises: Untrusted, Unreachable, FederationError.
    """
    whom = f"{address} through the proxy {proxy}" if proxy else address
    try:
        yield
    except httpx.ProxyError as error:
        raise Unreachable(
            f"the proxy {proxy} does not let this hospital through to {address} ({shown(error)})",
            do=_about_proxy(address),
        ) from None
    except httpx.TransportError as error:
        raise _broken_line(error, address, whom, ca_pem, proxy) from None
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unreachable(f"{address} asks this hospital to slow down", do="nothing: it does") from None
        raise Unreachable(
            f"{whom} answered {code} instead of a coordinator's answer", do="check the address, and that it is up"
        ) from None
    except WardroundError:
        raise
    except Exception as error:  # whatever it made of what was answered, the node must live on
        log.exception("the coordinator's answer could not be understood")
        raise Unreachable(
            f"{whom} answered something that is no coordinator's answer ({type(error).__name__})",
            do="check coordinator.address in hospital.toml",
        ) from None


def _about_proxy(address: str) -> str:
    return f"ask who runs the proxy, or add {address.rpartition(':')[0]} to NO_PROXY"


def _broken_line(error: httpx.TransportError, address: str, whom: str, ca_pem: bytes, proxy: str) -> FederationError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return untrusted(cause, address, ca_pem, look(address), datetime.now(UTC))
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return Untrusted(f"{whom} does not speak TLS ({cause.reason})", do="check coordinator.address")
        cause = cause.__cause__ or cause.__context__
    do = _about_proxy(address) if proxy else ""
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{whom} did not answer in time", do=do or "check the network and the firewall")
    what = f"nobody answers at {whom} ({shown(error)})"
    return Unreachable(what, do=do or "check the address, and that the coordinator is up")


@dataclass(frozen=True)
class Seen:
    """What somebody who is not believed shows: good for words, and for nothing else."""

    certificate: x509.Certificate | None = None
    time: datetime | None = None


def look(address: str) -> Seen:
    """The certificate and the clock of whoever answers there; sends nothing of this hospital's. Never raises."""
    certificate = when = None
    with suppress(Exception):
        client = httpx.Client(verify=False, timeout=_LOOK_S, follow_redirects=False)
        with client, client.stream("GET", f"https://{address}/health") as response:
            with suppress(ValueError, TypeError, OverflowError):
                when = parsedate_to_datetime(response.headers.get("date", "")).astimezone(UTC)
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            certificate = x509.load_der_x509_certificate(tls.getpeercert(True))
    return Seen(certificate, when)


def untrusted(error: ssl.SSLCertVerificationError, address: str, ca_pem: bytes, seen: Seen, now: datetime) -> Untrusted:
    """Why a certificate is not believed: the clocks, its end, the authority's end, the name, or another authority."""
    code, host = error.verify_code, address.rpartition(":")[0]
    today = f"{now:%Y-%m-%d %H:%M} UTC"
    if code in (_NOT_YET, _EXPIRED):
        return _out_of_time(code, address, ca_pem, seen, now, today)
    if code in (_HOST, _ADDRESS):
        names = ", ".join(_names(seen.certificate)) or "other names"
        return Untrusted(
            f"the coordinator's certificate is not for {host}, but for {shown(names)}",
            do=f"join again with the invitation that names the present address, or have the coordinator run "
            f"`wardround coordinator init HOME --host {host}` and start again",
        )
    return Untrusted(
        f"the certificate of {address} is not one of the coordinator's CA that this hospital joined "
        f"({shown(error.verify_message)})",
        do="if the coordinator has a new CA, join again with its present invitation.toml; if not, somebody else "
        "answers there",
    )


def _out_of_time(code: int, address: str, ca_pem: bytes, seen: Seen, now: datetime, today: str) -> Untrusted:
    shown_certificate, there = seen.certificate, seen.time
    if shown_certificate and there and abs((now - there).total_seconds()) > TOLERATED_S:
        first, last = shown_certificate.not_valid_before_utc, shown_certificate.not_valid_after_utc
        if first <= there <= last and not first <= now <= last:
            apart = (now - there).total_seconds()
            where = "ahead of" if apart > 0 else "behind"
            return Untrusted(
                f"this hospital's clock ({today}) is {span(apart)} {where} the coordinator's, and by it the "
                f"certificate of {address} is not valid",
                do=_CLOCK,
            )
    authority = max(ends_of(ca_pem)) if ca_pem else None
    if code == _EXPIRED and authority and authority <= now:
        return Untrusted(
            f"the coordinator's CA that this hospital joined has ended on {authority:%Y-%m-%d}",
            do="ask the coordinator for its present invitation.toml and join again: approvals stay; "
            f"if it is not {today}, set this machine's clock",
        )
    if code == _EXPIRED:
        ended = f" on {shown_certificate.not_valid_after_utc:%Y-%m-%d}" if shown_certificate else ""
        return Untrusted(
            f"the certificate of {address} has ended{ended}",
            do="have the coordinator start again (`wardround coordinator up` makes a new one; joining again changes "
            f"nothing); if it is not {today}, set this machine's clock",
        )
    begins = f" before {shown_certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC" if shown_certificate else " yet"
    return Untrusted(f"the certificate of {address} is not valid{begins}, and here it is {today}", do=_CLOCK)


def _names(certificate: x509.Certificate | None) -> list[str]:
    if certificate is None:
        return []
    with suppress(ValueError, x509.ExtensionNotFound):
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in covered]
    return []


def refused(error: httpx.HTTPStatusError, address: str, clock: Clock) -> Exception:
    """Why an activation failed."""
    code = error.response.status_code
    if code == httpx.codes.UNAUTHORIZED:
        if sentence := clock.sentence():
            return KeyRefused(
                f"{address} did not accept this node's signature, because {sentence}",
                allowed=f"{TOLERATED_S / 60:g} minutes",
                do=_CLOCK,
            )
        return KeyRefused(
            f"{address} did not accept this node's signature, though the clocks agree"
            if clock.ahead_s is not None
            else f"{address} did not accept this node's signature",
            do="see whether node.key is the one whose join.json the coordinator registered, and this machine's clock",
        )
    if code == httpx.codes.PRECONDITION_FAILED:
        return NotRegistered(
            f"{address} does not know this node's key, or another process uses it",
            do="have the coordinator register join.json (`wardround coordinator register`), and run one daemon a key",
        )
    return error
