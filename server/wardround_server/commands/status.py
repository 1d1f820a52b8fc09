"""`wardround coordinator status`: who is there, and how far each run is."""

from __future__ import annotations

import json

from wardround.certificates import until
from wardround.errors import Unreachable
from wardround.text import shown
from wardround_server.answers import AnswerBook
from wardround_server.commands._common import HomeArgument, JsonOption, app, example, say, show_table
from wardround_server.follow import last_event
from wardround_server.home import Home
from wardround_server.hospitals import Registry


@app.command(epilog=example("wardround coordinator status ~/coordinator"))
def status(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Who is registered, who is connected, and how far each run is."""
    coordinator = Home(home)
    coordinator.config()
    up_, nodes = False, dict[int, str]()
    try:
        admin = int(coordinator.running()["admin"])
        from wardround_server.flower.superlink import Control

        with Control(admin, coordinator.tls.ca) as control:
            nodes, up_ = control.nodes(), True
    except Unreachable:
        pass
    registered = list(Registry(home))
    book = AnswerBook.of_home(home, registered)
    hospitals = [
        {
            "hospital": hospital.name,
            "declared_patients": hospital.declared_patients,
            "status": nodes.get(hospital.node_id or 0, "unknown" if up_ else "coordinator down"),
            "answers": len(book.of(hospital.name)),
        }
        for hospital in registered
    ]
    runs = [
        {"run": folder.name, **last_event(folder)} for folder in sorted((home / "runs").glob("*")) if folder.is_dir()
    ]
    ends = coordinator.tls.ends()
    if as_json:
        certificates = {name: end.isoformat() for name, end in ends.items()}
        print(json.dumps({"up": up_, "hospitals": hospitals, "runs": runs, "certificates": certificates}))
        return
    say(f"The coordinator is {'up' if up_ else 'down'}.")
    for name, end in ends.items():
        say(f"The {name} ends on {until(end)}.")
    show_table(
        "hospital", "declared patients", "status", "answers", rows=[[str(v) for v in h.values()] for h in hospitals]
    )
    keys = ("run", "event", "round", "rounds", "replied")
    show_table("run", "last event", "round", "of", "replied", rows=[[shown(r.get(k, "")) for k in keys] for r in runs])
