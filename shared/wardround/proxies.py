"""Which proxy of the environment a call goes through: HTTPS_PROXY, ALL_PROXY and NO_PROXY, as httpx reads them."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.request import getproxies

from wardround.text import shown

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address, without brackets, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def spare_loopback(host: str = "") -> None:
    """What this process and its children send to this machine goes to no proxy, whatever the environment names.

    Both spellings are written: the small letters count where they differ (urllib.request.getproxies_environment).

    Args:
        host: another name of this machine's that is dialled.
    """
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [each.strip() for each in named.split(",") if each.strip()]
    own = [*LOOPBACK, *([host] if is_loopback(host) else [])]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *own]))


def proxy_for(host: str) -> str:
    """The proxy through which an HTTPS call to the host goes, without its password; empty for none."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or any(_spares(pattern.strip(), host) for pattern in proxies.get("no", "").split(",")):
        return ""
    return without_password(proxy)


def _spares(pattern: str, host: str) -> bool:
    """Whether an entry of NO_PROXY means this host: "*", the host itself, or a domain that it lies in."""
    if pattern in ("*", host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(pattern.strip(".")) and host.endswith(f".{pattern.lstrip('.')}")
    return False


def without_password(proxy: str) -> str:
    """A proxy's URL as it may be shown."""
    scheme, colon, rest = proxy.rpartition("://")
    place = re.split("[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    return shown(f"{scheme}{colon}{place}" if colon else f"http://{place}")
