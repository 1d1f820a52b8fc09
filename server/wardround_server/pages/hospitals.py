"""Who may take part, and letting another hospital in with what it declares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from wardround.errors import ConfigError
from wardround.given import CARD_BYTES
from wardround.web.guard import form_of
from wardround.web.views import Action, View
from wardround_server.hospitals import Card, Registry, card_from
from wardround_server.office.hospitals import enrol, there
from wardround_server.pages.desk import Desk


@dataclass
class Offered:
    """A card that was given and not registered yet. seal: of what is shown of it."""

    card: Card | None = None
    share: float = 0.0

    @property
    def seal(self) -> str:
        text = self.card.model_dump_json() if self.card else ""
        return hashlib.sha256(f"{text} {self.share:.6f}".encode()).hexdigest()


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def hospitals(request: Request) -> Response:
        rows, down = there(desk.home)
        offered = desk.site.kept(Offered)
        keys = {member.name: member.fingerprint for member in Registry(desk.home.folder)}
        return desk.site.page(
            request, "hospitals.html", rows=rows, keys=keys, why=str(down or ""), offered=offered, longest=CARD_BYTES
        )

    return {"/hospitals": hospitals}


def actions(desk: Desk) -> list[Action]:
    """Read a card; register it."""

    def read(request: Request) -> str:
        text = form_of(request.scope).get("card", "").strip()
        if not text or len(text.encode()) > CARD_BYTES:
            raise ConfigError(
                "the hospital's card is empty, or too long", allowed=f"a join.json of at most {CARD_BYTES:,} bytes"
            )
        card = card_from(text.encode(), "the hospital's card")
        desk.site.keep(Offered(card, Registry(desk.home.folder).share(card)))
        return "/hospitals"

    def register(request: Request) -> str:
        form, offered = form_of(request.scope), desk.site.kept(Offered)
        if form.get("do") == "no":
            desk.site.keep(Offered())
            return "/hospitals"
        if offered.card is None or form.get("seal") != offered.seal:
            raise ConfigError("another card was read in the meantime", do="go back, and look at it again")
        hospital, node_id = enrol(desk.home, offered.card)
        desk.site.keep(Offered())
        now = "It can connect now." if node_id is not None else "It can connect after the coordinator's next start."
        request.state.session.said.append(f"{hospital.name} is registered. {now}")
        return "/hospitals"

    return [Action("/hospitals/read", read), Action("/hospitals/register", register)]
