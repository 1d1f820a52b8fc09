"""What every answer cost and which bytes left, and whether the file is what it was."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from wardround.text import counted
from wardround.web.views import Action, View
from wardround_client.office.receipts import head_from, judge, write_csv
from wardround_client.pages.desk import Desk
from wardround_client.pages.drawings import budget_chart
from wardround_client.privacy.ledger import Entry

ROWS = 200
"""Of one page of the list."""


def pages(desk: Desk) -> Mapping[str, View]:
    """Path -> page."""

    def ledger(request: Request) -> Response:
        asked = request.query_params
        with desk.opened() as hospital:
            book, config = hospital.ledger, hospital.config
            entries, spent = book.entries(), book.spent(config.delta)
            verified, found = "", None
            if "verify" in asked:
                judge(book.verify(), "", None)
                verified = _in_fours(book.head[1])
            written = asked.get("contains", "").strip()
            if written:
                found = book.find(head := head_from(written))
                judge(None, head, found)
        limit = config.budget.epsilon
        last = _page(asked.get("before", ""), entries)
        return desk.site.page(
            request,
            "ledger.html",
            spent=f"{spent:.4g}",
            limit=f"{limit:g}",
            left=f"{max(0.0, limit - spent):.4g}",
            delta=f"{config.delta:.3g}",
            count=len(entries),
            chart=budget_chart(entries, limit),
            rows=[_row(each) for each in reversed(entries[max(0, last - ROWS) : last])],
            older=last - ROWS if last > ROWS else 0,
            verified=verified,
            found=found,
        )

    def as_csv(request: Request) -> Response:
        with desk.opened() as hospital:
            text = io.StringIO(newline="")
            write_csv(hospital.ledger.entries(), text)
        name = {"Content-Disposition": 'attachment; filename="receipts.csv"'}
        return Response(text.getvalue(), media_type="text/csv", headers=name)

    return {"/ledger": ledger, "/ledger.csv": as_csv}


def actions(desk: Desk) -> list[Action]:
    """None: a ledger is read."""
    return []


def _page(before: str, entries: Sequence[Entry]) -> int:
    """How many entries lie before the end of the page that was asked for."""
    number = int(before) if before.isascii() and before.isdigit() and len(before) < 10 else len(entries)
    return min(number, len(entries))


def _row(entry: Entry) -> dict[str, Any]:
    body = entry.body
    return {
        "seq": entry.seq,
        "time": entry.time[:19].replace("T", " "),
        "kind": entry.kind,
        "run": entry.run,
        "round": entry.round,
        "question": body.get("question", ""),
        "price": "; ".join(
            f"{counted(count, 'answer')}, noise {noise:.4g}, sampling rate {rate:.4g}"
            for noise, rate, count in body.get("rows", ())
        ),
        "after": f"{body['epsilon_after']:.4g}",
        "bytes": f"{int(body['bytes']):,}" if "bytes" in body else "",
        "sha256": str(body.get("sha256", ""))[:16],
        "coordinator": body["coordinator"],
    }


def _in_fours(digest: str) -> str:
    return " ".join(digest[place : place + 4] for place in range(0, len(digest), 4))
