"""What a hospital's daemon shows to Prometheus: PUBLIC numbers, and no others.

Each is something that the coordinator knows already, or that is computed from public numbers alone: a price comes from
the agreement and the declared patients, never from the cohort. What is not here is not forgotten: how many patients or
images there really are, who withdrew, what was quarantined, rounds that were answered by noise alone, seconds and
memory of a round, the time of an answer. All of that depends on patients, and every process of this machine, and
whoever sees its dashboards, can read this. A test holds the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from wardround.metrics import Metric
from wardround_client.service._proto import hospital_pb2 as pb

PUBLIC = (
    "wardround_hospital_info",
    "wardround_hospital_connected",
    "wardround_hospital_paused",
    "wardround_hospital_started_seconds",
    "wardround_hospital_declared_patients",
    "wardround_hospital_approved_federations",
    "wardround_hospital_answers_total",
    "wardround_hospital_refusals_total",
    "wardround_hospital_epsilon_spent",
    "wardround_hospital_epsilon_budget",
    "wardround_hospital_delta",
    "wardround_hospital_coordinator_ca_ends_seconds",
)


def of_hospital(status: pb.StatusReply, refusals: int, ca_ends: datetime | None) -> Sequence[Metric]:
    """The metrics of the moment. refusals: since the daemon started. ca_ends: of the coordinator's CA, where known."""
    one = Metric.one
    metrics = [
        Metric("wardround_hospital_info", "gauge", "What runs here.", ("version",), {(status.version,): 1}),
        one("wardround_hospital_connected", "gauge", "1 while connected.", status.link == "connected"),
        one("wardround_hospital_paused", "gauge", "1 while every round is refused.", status.paused),
        one("wardround_hospital_started_seconds", "gauge", "When the daemon started, Unix time.", status.started_at),
        one("wardround_hospital_declared_patients", "gauge", "The public number.", status.declared_patients),
        one("wardround_hospital_approved_federations", "gauge", "Approvals that stand.", len(status.approved)),
        one("wardround_hospital_answers_total", "counter", "Rounds answered since the start.", status.answered),
        one("wardround_hospital_refusals_total", "counter", "Rounds refused since the start.", refusals),
        one("wardround_hospital_epsilon_spent", "gauge", "Of the budget, over all runs.", status.epsilon_spent),
        one("wardround_hospital_epsilon_budget", "gauge", "As in hospital.toml.", status.epsilon_budget),
        one("wardround_hospital_delta", "gauge", "At which epsilon is counted.", status.delta),
    ]
    if ca_ends is not None:
        name = "wardround_hospital_coordinator_ca_ends_seconds"
        metrics.append(one(name, "gauge", "When the coordinator's CA ends, Unix time.", ca_ends.timestamp()))
    return metrics
