"""An NPZ archive as a source: the right pixels of the right patient, and no header is believed."""

from __future__ import annotations

import io
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tests.client.intake.dicom_files import KEY

from wardround.errors import DataError
from wardround_client.cohort.store import CohortStore
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, Instance, look, opened
from wardround_client.intake.summary import IngestSummary

RECIPE = ImageRecipe(8, 1)


def take_in(path: Path, cohort: Path, labels: Path | None = None, **settings: str) -> IngestSummary:
    asked = Asked(str(path), labels)
    assert look(asked) == "npz"
    return ingest(opened("npz", asked, settings), cohort, RECIPE, key=KEY)


def images(dtype: str, n: int = 4) -> NDArray[Any]:
    drawn = np.random.default_rng(0).random((n, 6, 9))
    return drawn.astype(dtype) if dtype.startswith("f") else (drawn * np.iinfo(dtype).max).astype(dtype)


@given(
    dtype=st.sampled_from(["u1", "<u2", ">u2", "f4", "f8", "?"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)) | st.just((2, 3, 5, 3)),
    compressed=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_each_image_is_rendered_as_it_stands(
    dtype: str, shape: tuple[int, ...], compressed: bool, data: st.DataObject
) -> None:
    elements = st.floats(0, 1, width=32) if dtype.startswith("f") else None
    values = data.draw(arrays(dtype, shape, elements=elements))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scans.npz"
        save: Any = np.savez_compressed if compressed else np.savez
        save(path, images=values, patients=[f"P{n}" for n in range(shape[0])], finding=["a"] * shape[0])
        source = opened("npz", Asked(str(path)), {})
        made = [item.read(RECIPE, Pseudonyms(KEY)) for item in source.fetched(iter(source.items()))]
    white = 1.0 if values.dtype.kind in "fb" else float(np.iinfo(values.dtype).max)
    for number, each in enumerate(made):
        assert isinstance(each, Instance)
        wanted = quantise(fit(values[number].astype(np.float32) / np.float32(white), RECIPE))
        np.testing.assert_array_equal(each.rows[0], wanted)


def test_an_archive_becomes_a_cohort_once(tmp_path: Path) -> None:
    path = tmp_path / "scans.npz"
    np.savez(path, images=images("u1"), patients=[7, 7, 8, 9], finding=["a", "", "b", "?"], count=3)
    summary = take_in(path, tmp_path / "cohort")
    assert (summary.used, summary.patients, summary.unlabelled) == (4, 3, 2)
    assert summary.labels == {"finding": {"a": 1, "b": 1}}
    assert take_in(path, tmp_path / "cohort").already == 4


def test_a_csv_says_whose_the_images_are(tmp_path: Path) -> None:
    path, labels = tmp_path / "scans.npz", tmp_path / "labels.csv"
    np.savez(path, images=images("u1"))
    labels.write_text("number,PatientID,finding\n3,A,x\n0,B,y\n9,C,x\n-1,D,x\n3,E,z\n,F,x\n1,,x\n")
    summary = take_in(path, tmp_path / "cohort", labels)
    assert (summary.used, summary.quarantined) == (3, 4), "image 3 belongs to two patients, each of whom keeps it"
    assert len(CohortStore.open(tmp_path / "cohort", withdrawn=()).pseudonyms) == 3


def written(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def saved(values: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


PATIENTS = saved(np.array(["A", "B"]))
GOOD = saved(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    "members",
    [
        {"images": header((2, 1 << 20, 1 << 20)), "patients": PATIENTS},  # a bomb: 2 TB by its header
        {"images": header((1 << 40, 1, 1)), "patients": PATIENTS},
        {"images": header((-1, 3, 3)) + bytes(9), "patients": PATIENTS},
        {"images": GOOD[:-1], "patients": PATIENTS},
        {"images": GOOD + b"x", "patients": PATIENTS},
        {"images": GOOD, "patients": saved(np.array(["A", None]), allow_pickle=True)},
        {"images": saved(np.zeros((2, 3, 3), object), allow_pickle=True), "patients": PATIENTS},
        {"images": saved(np.asfortranarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))), "patients": PATIENTS},
        {"images": saved(np.zeros((2, 3, 3), np.int64)), "patients": PATIENTS},
        {"images": saved(np.zeros((2, 3, 3), complex)), "patients": PATIENTS},
        {"images": saved(np.zeros((0, 3, 3), np.uint8)), "patients": PATIENTS},
        {"images": saved(np.zeros((2, 3), np.uint8)), "patients": PATIENTS},
        {"images": GOOD, "patients": saved(np.array(["A"]))},
        {"images": GOOD},
        {"patients": PATIENTS},
        {"images": b"", "patients": PATIENTS},
        {"images": b"\x93NUMPY\x01\x00\xff\xff{", "patients": PATIENTS},
        {"images": b"\x93NUMPY\x09\x00" + GOOD[8:], "patients": PATIENTS},
    ],
)
def test_what_is_no_archive_of_images_is_refused_in_words(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(DataError):
        take_in(written(tmp_path / "scans.npz", **members, finding=saved(np.array(["a", "b"]))), tmp_path / "cohort")


@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read(data: st.DataObject) -> None:
    """Whatever byte is another: words for a person, or rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scans.npz"
        np.savez_compressed(path, images=images("u1", 2), patients=["A", "B"], finding=["a", "b"])
        damaged = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
            damaged[place] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
        with suppress(DataError):
            take_in(path, Path(folder) / "cohort")


def test_a_place_that_is_damaged_costs_what_lies_behind_it_and_no_finished_cohort(tmp_path: Path) -> None:
    path, cohort = tmp_path / "scans.npz", tmp_path / "cohort"
    values = np.random.default_rng(0).integers(0, 256, (4, 256, 256), np.uint8)
    np.savez(path, images=values, patients=["A", "B", "C", "D"], finding=["a", "b", "a", "b"])
    blob = bytearray(path.read_bytes())
    blob[blob.index(values[2].tobytes())] ^= 1
    assert take_in(path, cohort).used == 4
    path.write_bytes(blob)
    summary = take_in(path, cohort)
    assert summary.reasons.get("the archive is damaged", 0) >= 1 and summary.read == 4
    assert len(CohortStore.open(cohort, withdrawn=())) == 4
