"""The federation's own round loop, over hospitals in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround_client.flower.app import make_app
from wardround_client.hospital import Hospital
from wardround_client.round import OpenCohort, answer
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import RoundEnded, RoundMissed
from wardround_server.flower.transport import GridTransport
from wardround_server.hospitals import Member
from wardround_server.rounds import run
from wardround_simulation.grid import App, LocalGrid
from wardround_simulation.opening import Ready
from wardround_simulation.settings import RUN

Asked = RoundEnded | RoundMissed


def local_rounds(ready: Ready) -> Iterator[tuple[Asked, State]]:
    """The federation's own round loop over hospitals in this process; yields rounds with the state after them."""
    settings = ready.settings
    part = [(site, h) for site, h in zip(ready.sites, ready.hospitals, strict=True) if site.took_part]
    apps: dict[str, App] = {site.name: app_of(hospital, ready.open_cohort) for site, hospital in part}
    checkpointer = RememberingCheckpointer(settings.out)
    model = ready.agreements[0].model
    with LocalGrid(apps, workers=settings.workers) as grid:
        members = registered(grid, {site.name: h for site, h in part})
        transport = GridTransport(grid, lambda: members)
        for event in run(
            settings.federation, model, transport, checkpointer, run_name=RUN, private=settings.privacy, resume=True
        ):
            if isinstance(event, RoundEnded | RoundMissed):
                assert checkpointer.state is not None
                yield event, checkpointer.state


def app_of(hospital: Hospital, open_cohort: OpenCohort) -> App:
    """The hospital's own ClientApp, over a hospital that is open already."""
    answers = partial(answer, hospital, open_cohort=open_cohort)
    return make_app(lambda context: answers)


class RememberingCheckpointer(Checkpointer):
    """Also keeps the last state in memory, for whoever evaluates it."""

    state: State | None = None

    def save(self, state: State) -> None:
        """See Checkpointer."""
        super().save(state)
        self.state = state


def registered(grid: LocalGrid, hospitals: Mapping[str, Hospital]) -> dict[int, Member]:
    """The hospitals as a coordinator's registry lists them, by node id, each with a node key of its own."""
    return {
        node: Member(
            name=name,
            public_key=ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode(),
            declared_patients=hospitals[name].config.hospital.declared_patients,
            node_id=node,
        )
        for node, name in grid.names.items()
    }
