"""What `--audit` adds to a simulation: an attacker who wants to know who took part, and canaries in place of patients.

membership.json  membership inference on what this very run released (`membership`)
audit.json       an empirical lower bound on epsilon, beside the claim (`wardround_client.audit`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wardround_client.audit import AuditReport, audit
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_server.checkpoint import State
from wardround_server.events import RoundEnded, RoundMissed
from wardround_simulation import membership
from wardround_simulation.sites import Site
from wardround_simulation.watch import Watch

if TYPE_CHECKING:
    from wardround_simulation.opening import Ready

__all__ = ["Recorder", "canaries", "infer_membership", "summary"]

NO_STRANGERS = (
    "Membership inference needs patients of the same kind who took no part, and there are none of your own folders: "
    "the hospital that took no part has other scanners and other patients, so telling it apart would prove nothing."
)
NOTHING_CLAIMED = "Privacy was off, so nothing was claimed that an audit could refute."
CANARIES = "auditing with canaries"


class Recorder:
    """Remembers what the coordinator sees in a run: every theta that it sent and every reply that it got."""

    def __init__(self, ready: Ready, run: str) -> None:
        self._ready, self._run = ready, run
        self._states: dict[int, State] = {}
        self._replies: dict[tuple[int, str], bytes] = {}

    def note(self, event: RoundEnded | RoundMissed, state: State) -> None:
        """To be called after each round, before the next: a ledger in memory soon forgets a reply."""
        self._states[state.round] = state
        for site, hospital in zip(self._ready.sites, self._ready.hospitals, strict=True):
            if site.took_part and (reply := hospital.ledger.reply_of(self._run, event.round)):
                self._replies[event.round, site.name] = reply

    def released(self) -> membership.Released:
        """All of it."""
        return membership.Released(self._run, self._states, self._replies, self._ready.settings.privacy)


def infer_membership(ready: Ready, recorder: Recorder, watch: Watch) -> dict[str, Any]:
    """Make strangers and attack -> what membership.json holds; of somebody's own folders only why it does not."""
    settings, part = ready.settings, _part(ready)
    if settings.data is not None:
        return {"skipped": NO_STRANGERS}
    pools = membership.twin_pools(
        [site for site, _, _ in part],
        [hospital for _, hospital, _ in part],
        [agreement for _, _, agreement in part],
        folder=settings.out,
        compute=settings.compute,
        step=watch.step,
        least_others=settings.strangers,
    )
    return membership.infer(pools, recorder.released(), ready.open_cohort, step=watch.step, seed=settings.seed)


def canaries(ready: Ready, watch: Watch) -> AuditReport | None:
    """Audit the answers of the hospital that makes the least noise; None without privacy."""
    if not ready.settings.privacy:
        return None
    _, hospital, agreement = min(_part(ready), key=lambda one: one[2].calibration.least_noise())
    return audit(
        agreement,
        declared_patients=hospital.config.hospital.declared_patients,
        delta=hospital.config.delta,
        trials=ready.settings.trials,
        open_cohort=ready.open_cohort,
        device=hospital.device,
        progress=lambda name, done, total: watch.step(CANARIES, done, total),
    )


def _part(ready: Ready) -> list[tuple[Site, Hospital, Agreement]]:
    """Those that took part."""
    everybody = zip(ready.sites, ready.hospitals, ready.agreements, strict=True)
    return [(site, hospital, agreement) for site, hospital, agreement in everybody if site.took_part]


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same without its curves: what an event holds."""
    short = dict(found)
    if short.get("ceiling"):
        short["ceiling"] = {key: value for key, value in short["ceiling"].items() if key != "curve"}
    if "attacks" in short:
        short["attacks"] = [{key: value for key, value in one.items() if key != "roc"} for one in short["attacks"]]
    return short
