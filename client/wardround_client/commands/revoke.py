"""`wardround hospital revoke`: take an approval back."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import emit, say
from wardround_client.commands._common import NewHome, checked


def revoke(
    home: NewHome,
    federation: Annotated[
        str,
        typer.Argument(help="An approved federation's digest, the beginning of that, or its name.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Revoke an approval. A running daemon refuses its rounds from the next message on; what was spent stays spent.

    `wardround hospital status` lists what is approved. A revoked agreement can be approved again.
    """
    home = checked(home)
    from wardround_client.consent.approvals import ApprovalFolder

    approvals = ApprovalFolder(home)
    if not federation.strip():
        raise ConfigError("no federation was named", do="name its digest, as `wardround hospital status` lists it")
    digest = approvals.find(federation.strip())
    approvals.remove(digest)
    if as_json:
        emit(event="revoke", digest=digest)
    else:
        say(f"Revoked: {digest}. Every round of it is refused from the next message on.")


command = Command(
    revoke,
    panel="Take part",
    place=5,
    examples=(
        "wardround hospital revoke ~/st-anna 5e41c07a2b90",
        "wardround hospital revoke ~/st-anna lungs",
    ),
)
