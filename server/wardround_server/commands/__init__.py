"""`wardround coordinator ...`: set up, start, run a federation, look at it. One file a command."""

from wardround_server.commands import init, register, up, run, status, report, remove, renew_ca  # noqa: I001 - the order of use
from wardround_server.commands._common import app

__all__ = ["app", "init", "register", "remove", "renew_ca", "report", "run", "status", "up"]
