"""A table of measurements becomes a cohort: rows are examples, missing values have a public constant or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.client.intake.dicom_files import KEY
from tests.intake import ingest_table

from wardround.errors import DataError
from wardround_client.cohort.store import CohortStore

TABLE = "who,age,chol,num\nA,63,233,0\nA,64,?,1\nB,?,200,0\nC,50,x,\nD,41,inf,1\n"
HEART = [
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
]


def table(path: Path, text: str = TABLE) -> Path:
    file = path / "table.csv"
    file.write_text(text)
    return file


def test_rows_are_used_or_quarantined_by_column(tmp_path: Path) -> None:
    def run() -> tuple[int, int, int, int]:
        summary = ingest_table(
            table(tmp_path), tmp_path / "c", key=KEY, features=["age", "chol"], patient_column="who",
            labels=["num"], constants={"chol": 250.0},
        )  # fmt: skip
        assert summary.reasons == {
            "column age is missing": 1,
            "column chol is not a number": 1,
            "column chol is not a finite number": 1,
        }
        return summary.read, summary.used, summary.already, summary.patients

    assert run() == (5, 2, 0, 1)
    assert run() == (5, 2, 2, 1)
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert store.inputs[:].tolist() == [[63, 233], [64, 250]] and store.inputs.dtype == np.float32
    assert store.labels("num") == ["0", "1"] and store.features == ("age", "chol") and store.kind == "table"


def test_a_column_that_may_miss_leaves_a_gap_and_any_other_refuses_the_row(tmp_path: Path) -> None:
    def run(features: list[str], may_miss: list[str]) -> tuple[int, dict[str, int], list[list[float]]]:
        cohort = tmp_path / "-".join(["c", *may_miss]).replace("*", "all")
        summary = ingest_table(
            table(tmp_path), cohort, key=KEY, features=features, patient_column="who", labels=["num"],
            constants=dict.fromkeys(may_miss),
        )  # fmt: skip
        store = CohortStore.open(cohort, withdrawn=())
        return summary.used, dict(summary.reasons), np.nan_to_num(store.inputs[:], nan=-1).tolist()

    used, reasons, rows = run(["age", "chol"], ["age"])
    assert used == 2 and reasons["column chol is missing"] == 1 and rows == [[63, 233], [-1, 200]]
    used, reasons, rows = run(["age", "chol"], ["*"])
    assert used == 3 and rows == [[63, 233], [64, -1], [-1, 200]], "what is no number is no gap"


def test_equal_rows_are_different_examples_when_a_row_is_a_patient(tmp_path: Path) -> None:
    file = table(tmp_path, "1,2,0\n1,2,0\n")
    summary = ingest_table(
        file, tmp_path / "c", key=KEY, features=["a", "b"], labels=["y"],
        columns=["a", "b", "y"],
    )  # fmt: skip
    assert (summary.images, summary.patients) == (2, 2)


def test_a_table_may_say_who_made_the_device(tmp_path: Path) -> None:
    def run(text: str) -> tuple[str, ...]:
        ingest_table(
            table(tmp_path, text), tmp_path / "c", key=KEY, features=["age"], patient_column="who",
            labels=["num"],
        )  # fmt: skip
        return CohortStore.open(tmp_path / "c", withdrawn=()).manufacturers

    assert run("who,age,num\nA,1,0\nB,2,1\n") == ("unknown", "unknown")
    assert run("who,age,num,manufacturer\nA,1,0,Roche\nB,2,1,?\n") == ("roche", "unknown")


def test_an_absent_column_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no feature column 'ages'.*who, age, chol, num"):
        ingest_table(table(tmp_path), tmp_path / "c", key=KEY, features=["ages"], patient_column="who",
                     labels=["num"])  # fmt: skip


def test_four_real_hospitals(tmp_path: Path, shared_data: Path) -> None:
    for name, count in [("cleveland", 303), ("hungarian", 294), ("switzerland", 123), ("va", 200)]:
        summary = ingest_table(
            shared_data / "heart_disease" / f"processed.{name}.data", tmp_path / name, key=KEY, features=HEART[:-1],
            labels=["num"], columns=HEART, constants=dict.fromkeys(HEART[:-1], 0.0),
        )  # fmt: skip
        assert (summary.read, summary.used, summary.patients, summary.unlabelled) == (count, count, count, 0)
        assert CohortStore.open(tmp_path / name, withdrawn=()).inputs.shape == (count, 13)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("id;age;sick\nA;50,5;0\nB;61;1\n", [50.5, 61.0]),
        ("id\tage\tsick\nA\t-0,25\t0\nB\t1,5e1\t1\n", [-0.25, 15.0]),
        ("id;age;sick\nA;50.5;0\nB;61;1\n", [50.5, 61.0]),
    ],
)
def test_a_table_with_decimal_commas_is_read_as_it_is_meant(tmp_path: Path, text: str, values: list[float]) -> None:
    (tmp_path / "t.csv").write_text(text)
    ingest_table(tmp_path / "t.csv", tmp_path / "c", key=bytes(32), features=["age"], labels=["sick"])
    assert CohortStore.open(tmp_path / "c", withdrawn=()).inputs[:].ravel().tolist() == values


@pytest.mark.parametrize(
    ("cells", "why"), [(("1,5", "2.5"), "line 2 writes a number with a comma, line 3 one with a point"),
                       (("1,234", "7"), "may mean thousands")]
)  # fmt: skip
def test_a_table_of_which_nobody_can_tell_what_a_comma_means_is_refused(
    tmp_path: Path, cells: tuple[str, str], why: str
) -> None:
    (tmp_path / "t.csv").write_text("age;sick\n" + "".join(f"{cell};0\n" for cell in cells))
    with pytest.raises(DataError, match=why):
        ingest_table(tmp_path / "t.csv", tmp_path / "c", key=bytes(32), features=["age"], labels=["sick"])
