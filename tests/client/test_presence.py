"""Whether a round is answered, and at what length, does not depend on any one patient."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.conftest import HOSPITAL_TOML
from tests.client.privacy.generated import asks, cohort
from tests.questions import answer_size
from tests.rounds import read, request

from wardround.algorithms import ALGORITHMS
from wardround.config import Privacy
from wardround.models.conv4 import Conv4
from wardround.models.objective import Objective
from wardround.schedule import QUESTIONS
from wardround_client.cohort.batch import Stored
from wardround_client.cohort.examples import Examples
from wardround_client.cohort.index import CohortLayout
from wardround_client.cohort.writer import CohortWriter
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer

TABLE = """
name = "test"
[task]
label_column = "finding"
classes = ["no", "yes"]
kind = "table"
features = ["a", "b"]
[model]
family = "mlp"
width = 3
[algorithm]
name = "{algorithm}"
[privacy]
images_per_patient = 2
[rounds]
rounds = 1
evaluate_every = 1
"""
IMAGES = """
name = "test"
[task]
label_column = "finding"
classes = ["no", "yes"]
image_size_px = 16
[model]
family = "conv4"
width = 2
[algorithm]
name = "{algorithm}"
[rounds]
rounds = 1
evaluate_every = 1
"""
LAYOUTS = {TABLE: CohortLayout("table", features=("a", "b")), IMAGES: CohortLayout("image", 16, 1)}

Patient = list[str | None]  # the label of each of the patient's rows
patients = st.lists(
    st.lists(st.sampled_from(["no", "yes", "other", None]), min_size=1, max_size=3), min_size=0, max_size=4
)
names = map("patient {}".format, itertools.count())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.create(tmp_path_factory.mktemp("home"), HOSPITAL_TOML, ledger=Ledger(None))


def write(hospital: Hospital, layout: CohortLayout, people: list[Patient]) -> list[bytes]:
    """Make this the hospital's cohort -> the patients' pseudonyms."""
    shutil.rmtree(hospital.home / "cohort", ignore_errors=True)
    hospital.patients._examples = {}
    pseudonyms = [next(names).encode().ljust(32) for _ in people]
    generator = np.random.default_rng(0)
    with CohortWriter(hospital.home / "cohort", layout, hospital.patients.key) as writer:
        with writer.batch() as batch:
            for pseudonym, labels in zip(pseudonyms, people, strict=True):
                for number, label in enumerate(labels):
                    instance = pseudonym + bytes([number])
                    rows = generator.uniform(0, 9, (1, *layout.shape)).astype(layout.dtype)
                    batch.add(Stored(patient=pseudonym, study=b"", instance=instance), rows)
                    batch.stage(instance, number, [label])
            batch.label(["finding"], 0)
        writer.finish()
    return pseudonyms


def lengths(hospital: Hospital, agreement: Agreement) -> list[int]:
    """Every round of a run, each answered: the lengths of the replies."""
    hospital.ledger = Ledger(None)
    found = []
    for plan in agreement.schedule.rounds:
        blob = answer(hospital, request(agreement, plan.number))
        reply = read(agreement, blob, plan.number)
        assert reply.header.refusal is None, reply.header.refusal
        assert np.isfinite(reply.answer).all() and reply.answer.any()
        found.append(len(blob))
    return found


@pytest.mark.parametrize(
    ("toml", "algorithm", "examples"),
    [
        *((TABLE, name, 12 if name in ("fedavg", "maml", "prototypical") else 4) for name in ALGORITHMS.built_in),
        (IMAGES, "reptile", 4),
        (IMAGES, "maml", 4),
    ],
)
def test_nobody_can_tell_from_an_answer_whether_a_patient_is_there(
    hospital: Hospital, tmp_path: Path, toml: str, algorithm: str, examples: int
) -> None:
    """P3: "Neighbours: add or remove one patient". P56: "Whether a round is answered does not depend on any
    patient: a cohort of one class, of one patient or of nobody is answered about like any other."
    """
    (tmp_path / "federation.toml").write_text(toml.format(algorithm=algorithm))
    agreement = hospital.approvals.approve(tmp_path / "federation.toml")
    expected = []

    @settings(max_examples=examples)
    @given(patients)
    def check(people: list[Patient]) -> None:
        for pseudonym in [None, *write(hospital, LAYOUTS[toml], people)]:
            if pseudonym is not None:
                hospital.patients.register.add([pseudonym])
            expected.append(lengths(hospital, agreement))
            assert expected[0] == expected[-1]

    check()
    write(hospital, LAYOUTS[toml], [])
    assert lengths(hospital, agreement) == expected[0]


@pytest.mark.parametrize("question", QUESTIONS.built_in)
@pytest.mark.parametrize("images_per_patient", [1, 3])
@pytest.mark.parametrize("people", [0, 1])
def test_noise_alone_answers_for_a_cohort_of_nobody_or_of_one(
    question: str, images_per_patient: int, people: int
) -> None:
    """P11: "An empty sample still adds noise." """
    model = Conv4.of(1, 2, 2)
    side = 16 if people else 24  # of its own: what is remembered of a shape was then learned from nobody
    examples = Examples(
        z=torch.rand(people, 1, side, side),
        y=torch.zeros(people, dtype=torch.int64),
        patient=torch.arange(people),
        summary=torch.rand(people, 1),
        classes=2,
    )
    theta, asked = model.initial(), cohort(examples, Privacy(images_per_patient=images_per_patient))
    result = asks(Objective(model, torch.zeros(1), torch.ones(1)), theta)[question](asked)
    assert result.shape == (answer_size(question, model),)
    assert bool(torch.isfinite(result).all()) and bool(result.any())
