"""The hospital's metrics are the written list, and nothing that depends on patients is among them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import wardround_client.service.metrics as module
from wardround.metrics import text
from wardround_client.service._proto import hospital_pb2 as pb
from wardround_client.service.metrics import PUBLIC, of_hospital

STATUS = pb.StatusReply(
    name="anna", declared_patients=400, link="connected", run="spring", round=3, answered=4, epsilon_spent=1.5,
    epsilon_budget=10, delta=2e-4, last_error="PolicyRefusal", approved=["a" * 64], version="1", pid=7, started_at=9.0,
)  # fmt: skip


def test_every_metric_is_on_the_list_and_in_the_docs() -> None:
    made = of_hospital(STATUS, 2, datetime(2030, 1, 1, tzinfo=UTC))
    assert tuple(metric.name for metric in made) == PUBLIC
    guide = (Path(__file__).parents[3] / "docs/how-to/it.md").read_text()
    assert [name for name in PUBLIC if f"`{name.removeprefix('wardround_hospital_')}`" not in guide] == []


def test_no_label_but_the_version_and_no_word_of_patients() -> None:
    made = of_hospital(STATUS, 2, None)
    assert {label for metric in made for label in metric.labels} == {"version"}
    written = text(made)
    for word in ("anna", "spring", "PolicyRefusal", "a" * 64, "withdrawn", "quarantine", "images", "noise", "duration"):
        assert word not in written
    read = {s.name: s.value for family in text_string_to_metric_families(written) for s in family.samples}
    assert read["wardround_hospital_epsilon_spent"] == 1.5
    assert read["wardround_hospital_connected"] == 1
    assert read["wardround_hospital_refusals_total"] == 2


def test_it_is_made_of_the_status_and_never_of_the_cohort_or_the_ledger() -> None:
    source = Path(str(module.__file__)).read_text()
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imported if "cohort" in line or "ledger" in line or "hospital import" in line]
