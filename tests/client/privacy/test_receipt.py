"""Each answer that leaves has a receipt, from which an auditor can tell what left, for whom and at what price."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from tests.intake import ingest_table
from tests.rounds import RUN, TWO_COLUMNS, read, request

from wardround.accountant import epsilon, rows_for
from wardround.config import Federation
from wardround.models import build_model
from wardround.schedule import QUESTIONS
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer

FEDERATION = f'name = "receipts"{TWO_COLUMNS}[rounds]\nrounds = 1\nevaluate_every = 1\n'
LAYOUTS: dict[str, str] = {
    "statistics": "counts 2, sum_z 2, sum_zz 2",
    "gradient": "weight 2x2, bias 2",
    "episode_gradient": "weight 2x2, bias 2",
    "class_means": "counts 2, sums 2x2",
    "confusion": "confusion 2x2",
}


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    toml = '[hospital]\nname = "north"\ndeclared_patients = 40\n[coordinator]\naddress = "coordinator:9092"\n'
    hospital = Hospital.create(tmp_path / "home", toml, ledger=Ledger(None))
    table = tmp_path / "table.csv"
    table.write_text("a,b,y\n" + "".join(f"{n / 40},{1 - n / 40},{'yes' if n % 3 else 'no'}\n" for n in range(40)))
    ingest_table(
        table,
        hospital.home / "cohort",
        key=hospital.patients.key,
        features=["a", "b"],
        labels=["y"],
    )
    return hospital


def test_a_receipt_holds_all_that_the_specification_names(hospital: Hospital, tmp_path: Path) -> None:
    """P35: "each delta that leaves has a receipt: time, run, round, coordinator, bundle hash, tensor layout,

    norm, bytes, SHA-256, price, epsilon after".
    """
    (tmp_path / "federation.toml").write_text(FEDERATION)
    agreement = hospital.approvals.approve(tmp_path / "federation.toml")
    before = datetime.now(UTC)
    for plan in agreement.schedule.rounds:
        asked = request(agreement, plan.number)
        reply = answer(hospital, asked)
        reserved, released = (entry.body for entry in hospital.ledger.entries()[-2:])
        left = read(agreement, reply, plan.number)
        assert released["kind"] == "released"
        assert before <= datetime.fromisoformat(released["time"]).replace(microsecond=999_999)
        assert (released["run"], released["round"]) == (RUN, plan.number)
        assert released["coordinator"] == hospital.config.coordinator.identity
        assert released["bundle_sha256"] == agreement.bundle_sha256
        assert released["federation"] == agreement.federation.digest
        assert (released["question"], released["layout"]) == (plan.question, LAYOUTS[plan.question])
        assert released["norm"] == pytest.approx(float(np.linalg.norm(left.answer)), rel=1e-5)
        assert (released["bytes"], released["sha256"]) == (len(reply), hashlib.sha256(reply).hexdigest())
        price = rows_for(agreement.calibration, plan)
        assert released["rows"] == [[row.noise_multiplier, row.sampling_rate, row.count] for row in price]
        assert released["epsilon_after"] == epsilon(hospital.ledger.history(), hospital.config.delta)
        assert released["delta"] == hospital.config.delta
        assert reserved["request_sha256"] == hashlib.sha256(asked).hexdigest()
        same = {"run", "round", "coordinator", "bundle_sha256", "federation", "question", "rows", "epsilon_after"}
        assert {name: reserved[name] for name in same} == {name: released[name] for name in same}


@pytest.mark.parametrize("question", QUESTIONS.built_in)
@pytest.mark.parametrize("family", ["logistic", "mlp", "encoder-head", "conv4"])
def test_a_layout_names_every_number_of_an_answer(question: str, family: str) -> None:
    task = {"label_column": "y", "classes": ("no", "yes", "perhaps"), "image_size_px": 32}
    if family in ("logistic", "mlp"):
        task |= {"kind": "table", "features": ("a", "b")}
    federation = Federation.model_validate(
        {"name": "f", "task": task, "model": {"family": family, "features": 8, "width": 4}}
    )
    model = build_model(federation, Path())
    layout = QUESTIONS[question].layout(federation, model)
    shapes = [entry.rsplit(" ", 1)[1].split("x") for entry in str(layout).split(", ")]
    classes, features, parameters = model.classes, model.scaling_size, model.layout.size
    sizes: dict[str, int] = {
        "statistics": classes + 2 * features,
        "gradient": parameters,
        "episode_gradient": parameters,
        "class_means": classes * (model.embedding_size + 1),
        "confusion": classes**2,
    }
    assert sum(math.prod(map(int, shape)) for shape in shapes) == sizes[question]
