"""Labels from structured reports: what was put in is found, at the images that it is about, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from tests.client.intake.dicom_files import quarantine, write_dicom
from tests.client.intake.report_files import (
    FINDINGS,
    GROUP,
    HISTORY,
    MEASUREMENTS,
    code,
    coded,
    finding,
    image,
    item,
    report,
    text,
    write_report,
    write_segmentation,
)

from wardround.errors import ConfigError
from wardround.labels import LABEL_KINDS
from wardround.task import Task
from wardround_client.cohort.store import CohortStore
from wardround_client.intake import reported
from wardround_client.intake.dicom.attributes import UnusableError, quiet
from wardround_client.intake.dicom.report import DEEPEST, Said, Words, said
from wardround_client.intake.dicom.segments import shown_in
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import recipe_of
from wardround_client.intake.source import Asked, Rejection, opened
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.intake.summary import IngestSummary

KEY = bytes(range(16))
CLASSES = ("pneumonia", "pneumothorax", "nodule")
WORDS = Words(CLASSES, "diagnosis")
ONE = Task(label_column="diagnosis", classes=CLASSES, image_size_px=8)
SEVERAL = Task(label_column="diagnosis", classes=CLASSES, labels="several", image_size_px=8)

ABSENT = code(coded("Presence"), coded("Absent", "2667000", "SCT"), relation="HAS CONCEPT MOD")
POSSIBLE = code(coded("Certainty"), coded("Possible"), relation="HAS CONCEPT MOD")


def found(made: Dataset) -> tuple[set[str], set[str], bool]:
    """Present, absent and unsure, whatever the images."""
    told = said(made, WORDS)
    return (
        {word for each in told for word in each.present},
        {word for each in told for word in each.absent},
        any(each.unsure for each in told),
    )


Leaf = tuple[Dataset, str, bool | None]


@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    """An item, the word that it speaks of or "", and whether that is there."""
    word = draw(st.sampled_from(CLASSES))
    written = draw(st.sampled_from([word, word.upper(), word.title(), f" {word}  "]))
    how = draw(st.integers(0, 9))
    leaf: Leaf = (
        (finding(written), word, True),
        (code(coded(written), coded("Present")), word, True),
        (finding(written, ABSENT), word, False),
        (code(coded(written), coded("Absent")), word, False),
        (finding(written, POSSIBLE), word, None),
        (code(coded(written), coded("Cannot say")), word, None),
        (text(written), "", None),
        (finding("fracture"), "", None),
        (code(coded("Finding Site", "363698007", "SCT"), coded(written)), "", None),
        (item("CONTAINER", HISTORY, finding(written)), "", None),
    )[how]
    return leaf


@given(st.lists(leaves(), max_size=6), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_what_was_put_into_a_tree_is_found_and_nothing_else(leaves: list[Leaf], depths: list[int]) -> None:
    """However deep it stands, and however it is written; the same word twice must be said alike."""
    below = []
    for (made, _, _), depth in zip(leaves, depths, strict=False):
        for _ in range(depth):
            made = item("CONTAINER", FINDINGS, made)
        below.append(made)
    told: dict[str, set[bool | None]] = {}
    for _, word, there in leaves:
        if word:
            told.setdefault(word, set()).add(there)
    present, absent, unsure = found(report(*below))
    assert present == {word for word, of in told.items() if of == {True}}
    assert absent == {word for word, of in told.items() if of == {False}}
    assert unsure == any(of not in ({True}, {False}) for of in told.values())


def test_a_group_says_of_its_own_images_and_the_report_of_all() -> None:
    """A finding is about the images named nearest to it, else about the evidence, else about the study."""
    groups = [
        item("CONTAINER", GROUP, finding("nodule"), image("1.1")),
        item("CONTAINER", GROUP, finding("pneumonia"), image("1.2")),
    ]
    of_groups = said(report(item("CONTAINER", MEASUREMENTS, *groups)), WORDS)
    assert {(each.images, *each.present) for each in of_groups} == {(("1.1",), "nodule"), (("1.2",), "pneumonia")}
    assert said(report(finding("nodule"), evidence=["1.3"]), WORDS)[0].images == ("1.3",)
    assert said(report(finding("nodule")), WORDS)[0].images == ()


def test_what_a_group_or_a_property_takes_back_is_no_finding() -> None:
    """Presence: absent beside a finding; a calcification that is absent says nothing sure of the nodule above it."""
    presence = code(coded("Presence"), coded("Absent"))
    assert found(report(item("CONTAINER", GROUP, finding("nodule"), presence))) == (set(), {"nodule"}, False)
    calcified = code(coded("Calcification"), coded("Absent"))
    assert found(report(item("CONTAINER", GROUP, finding("nodule"), calcified))) == ({"nodule"}, set(), False)
    below = code(coded("Calcification"), coded("Absent"), relation="HAS PROPERTIES")
    assert found(report(finding("nodule", below)))[2]


def test_a_class_called_present_is_found_at_its_own_question_only() -> None:
    """Of a task of yes and no the label column is the question."""
    words = Words(("absent", "present"), "Pneumonia")
    other = item("CONTAINER", GROUP, code(coded("Effusion"), coded("Present")))
    own = code(coded("pneumonia"), coded("Absent"))
    assert said(report(other), words) == ()
    assert said(report(other, own), words) == (Said(frozenset({"absent"})),)


def test_trees_beyond_measure_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too deep, or too many items."""
    deep = finding("nodule")
    for _ in range(DEEPEST + 1):
        deep = item("CONTAINER", FINDINGS, deep)
    monkeypatch.setattr("wardround_client.intake.dicom.report.MOST_ITEMS", 100)
    for made in (report(deep), report(*[finding("nodule")] * 100)):
        with pytest.raises(UnusableError, match="larger or deeper"):
            said(made, WORDS)


def taken_in(folder: Path, home: Path, task: Task, how: str = "sr") -> tuple[IngestSummary, list[str | None]]:
    """The summary, and each image's label in the order of the files."""
    source = opened("dicom-folder", Asked(str(folder), task=task), {"labels_from": how})
    summary = ingest(source, home / "cohort", recipe_of(task), key=KEY, workers=0)
    return summary, CohortStore.open(home / "cohort", withdrawn=()).labels("diagnosis")


def picture(folder: Path, uid: str, patient: str = "PAT-1", study: str = "1.2.1", **more: Any) -> Path:
    """An image of a patient."""
    pixels = np.random.default_rng(int(uid.replace(".", ""))).integers(0, 255, (8, 8)).astype(np.uint8)
    more = {"SeriesInstanceUID": f"{study}.1", **more}
    path = folder / f"{patient}-{uid}.dcm"
    return write_dicom(path, pixels, PatientID=patient, StudyInstanceUID=study, SOPInstanceUID=uid, **more)


def test_images_get_what_reports_say_of_them(tmp_path: Path) -> None:
    """By image, by study, by the later report; not by another patient's, nor by two that contradict each other. Each
    report that gives no label is named, and one that cannot be read ends nothing.
    """
    folder = tmp_path / "dicom"

    def told(name: str, made: Dataset, patient: str, study: str) -> None:
        write_report(
            folder / f"{name}.dcm", made, uid=f"{study}.9{len(list(folder.iterdir()))}", patient=patient, study=study
        )

    for number in range(1, 8):
        picture(folder, f"1.{number}.1", f"PAT-{number}", f"1.{number}")
        picture(folder, f"1.{number}.2", f"PAT-{number}", f"1.{number}")
    told("one image", report(finding("Nodule"), evidence=["1.1.1"]), "PAT-1", "1.1")
    told("a study", report(finding("pneumonia")), "PAT-2", "1.2")
    told("another's image", report(finding("pneumothorax"), evidence=["1.3.1"]), "PAT-1", "1.1")
    told("contradicts a", report(finding("nodule")), "PAT-4", "1.4")
    told("contradicts b", report(finding("pneumonia"), evidence=["1.4.1"]), "PAT-4", "1.4")
    told("two classes", report(finding("nodule"), finding("pneumonia")), "PAT-5", "1.5")
    told("nothing of ours", report(finding("fracture"), text("pneumonia")), "PAT-6", "1.6")
    told("not here", report(finding("nodule"), evidence=["9.9"]), "PAT-6", "1.6")
    first = report(finding("nodule"))
    write_report(folder / "replaced.dcm", first, uid="1.7.90", patient="PAT-7", study="1.7")
    later = report(finding("pneumothorax"))
    later.PredecessorDocumentsSequence = report(evidence=["1.7.90"]).CurrentRequestedProcedureEvidenceSequence
    write_report(folder / "later.dcm", later, uid="1.7.91", patient="PAT-7", study="1.7")
    whole = (folder / "later.dcm").read_bytes()
    (folder / "cut off.dcm").write_bytes(whole[: len(whole) * 3 // 4])

    summary, labels = taken_in(folder, tmp_path, ONE)
    assert sorted(filter(None, labels)) == ["nodule", "nodule", *["pneumonia"] * 2, *["pneumothorax"] * 2]
    assert summary.read == summary.used + summary.quarantined
    named = {Path(line["file"]).stem: line["reason"] for line in quarantine(tmp_path / "cohort")}
    assert {name: reason for name, reason in named.items() if name != "cut off"} == {
        "another's image": reported.OTHERS.reason,
        "contradicts a": reported.CONTRADICTED.reason,
        "contradicts b": reported.CONTRADICTED.reason,
        "two classes": reported.UNSURE.reason,
        "nothing of ours": reported.NOTHING.reason,
        "not here": reported.NOBODY.reason,
        "replaced": reported.REPLACED.reason,
    }
    assert "cut off" in named

    for path in folder.glob("contradicts b.dcm"):
        path.unlink()  # the mistake is mended: the other report holds
    _, labels = taken_in(folder, tmp_path, ONE)
    assert labels.count("nodule") == 3


def test_findings_stand_together_and_an_empty_list_is_a_label(tmp_path: Path) -> None:
    """Of several findings; and two patients who have an image of one UID each keep what is said of theirs."""
    folder = tmp_path / "dicom"
    for patient, made in (
        ("PAT-1", report(finding("nodule"), finding("pneumonia"))),
        ("PAT-2", report(finding("nodule", ABSENT))),
    ):
        picture(folder, "1.1", patient)
        write_report(folder / f"{patient}.dcm", made, uid=f"1.9.{patient[-1]}", patient=patient)
    summary, labels = taken_in(folder, tmp_path, SEVERAL)
    assert sorted(filter(None, labels)) == [";", "pneumonia;nodule"]
    assert summary.classes == () and summary.quarantined == 0
    y, used = LABEL_KINDS["several"].parse(sorted(filter(None, labels)), SEVERAL)
    assert (y.tolist(), used.tolist()) == ([[0, 0, 0], [1, 0, 1]], [True, True])


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.booleans()), min_size=1, max_size=12),
    st.permutations(["Nodule", "PNEUMONIA", "heart"]),
)
def test_a_segment_is_a_finding_where_it_has_pixels(frames: list[tuple[int, int, bool]], segments: list[str]) -> None:
    """And those of its classes that have none in an image are not there; a segment of another task says nothing."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seg.dcm"
        write_segmentation(
            path, segments, [(segment, f"1.{image}", there) for segment, image, there in frames], uid="1.9"
        )
        told = {each.images[0]: each for each in shown_in(path, WORDS)}
    assert told.keys() == {f"1.{image}" for _, image, _ in frames}
    for name, each in told.items():
        there = {segments[segment - 1].lower() for segment, image, there in frames if there and name == f"1.{image}"}
        assert (set(each.present), set(each.absent)) == (there - {"heart"}, {"nodule", "pneumonia"} - there)


def test_images_get_the_segments_that_they_show(tmp_path: Path) -> None:
    """Segmentations complete each other; the rest of their series shows nothing; other series are not spoken of."""
    folder = tmp_path / "dicom"
    for number in (1, 2, 3):
        picture(folder, f"1.{number}")
    picture(folder, "1.4", SeriesInstanceUID="1.2.1.7")
    picture(folder, "1.5", "PAT-2", "1.2.2")
    write_segmentation(folder / "a.dcm", ["nodule"], [(1, "1.1", True), (1, "1.2", False)], uid="1.91", series=["1.3"])
    write_segmentation(folder / "b.dcm", ["pneumonia"], [(1, "1.1", True)], uid="1.92")
    write_segmentation(folder / "another's.dcm", ["nodule"], [(1, "1.5", True)], uid="1.93")
    write_segmentation(folder / "other task.dcm", ["heart"], [(1, "1.1", True)], uid="1.94")
    write_segmentation(folder / "of no image.dcm", ["nodule"], [(1, "", True)], uid="1.95")
    (folder / "cut off.dcm").write_bytes((folder / "a.dcm").read_bytes()[:-4])

    summary, labels = taken_in(folder, tmp_path, SEVERAL, "seg")
    assert sorted(labels, key=str) == [";", ";", None, None, "pneumonia;nodule"]
    assert {Path(line["file"]).stem for line in quarantine(tmp_path / "cohort")} == {
        *("another's", "other task", "of no image", "cut off"),
    }
    assert summary.read == summary.used + summary.quarantined
    _, labels = taken_in(folder, tmp_path / "one", ONE, "seg")
    assert labels == [None] * 5, "two classes in one image are no label of a task of one class, and nothing is none"


@pytest.mark.parametrize("how", ["sr", "seg"])
def test_a_file_that_is_cut_off_says_what_the_whole_says_or_nothing(how: str, tmp_path: Path) -> None:
    """A negation may stand in what is missing, or the pixels of a frame."""
    if how == "sr":
        made = report(finding("pneumonia"), item("CONTAINER", GROUP, finding("nodule", ABSENT), image("1.1")))
        path = write_report(tmp_path / "whole.dcm", made, uid="1.9")
    else:
        path = write_segmentation(tmp_path / "whole.dcm", ["nodule"], [(1, "1.1", False), (1, "1.2", True)], uid="1.9")
    whole, part = path.read_bytes(), tmp_path / "part.dcm"
    labels_from: reported.From = "sr" if how == "sr" else "seg"

    def outcome(path: Path) -> Any:
        look = reported._Look(DicomFile(path), SEVERAL, labels_from)
        try:
            return look.read(None, Pseudonyms(KEY))
        except OSError:
            return None

    told = outcome(path)
    assert len(told.said) == 2
    for length in range(len(whole)):
        part.write_bytes(whole[:length])
        said_by_part = outcome(part)
        nothing = said_by_part is None or isinstance(said_by_part, Rejection) or not said_by_part.said
        assert nothing or said_by_part == told, length


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    """No agreement, a CSV beside it, a task of masks, another source."""
    (tmp_path / "labels.csv").write_text("PatientID,diagnosis\nA,nodule\n")
    masks = Task(label_column="diagnosis", classes=CLASSES, labels="mask", image_size_px=8)
    for asked, why in (
        (Asked(str(tmp_path)), "without --federation"),
        (Asked(str(tmp_path), tmp_path / "labels.csv", task=ONE), "--labels and --labels-from"),
        (Asked(str(tmp_path), task=masks), "a task of"),
    ):
        with pytest.raises(ConfigError, match=why):
            opened("dicom-folder", asked, {"labels_from": "sr"})
    with pytest.raises(ConfigError, match="labels_from"):
        opened("table", Asked(str(tmp_path / "labels.csv")), {"labels_from": "sr"})


REAL = Path(os.environ.get("WARDROUND_DATA", "../shared/data")) / "dicom"


@pytest.mark.skipif(not (REAL / "pet_sr_seg").is_dir(), reason="needs the real data")
def test_a_real_measurement_report_is_read_in_its_words() -> None:
    """TID 1500 of a PET: its finding, of the images that it was made from."""
    with quiet():
        dataset = pydicom.dcmread(REAL / "pet_sr_seg" / "sr_tid1500.dcm")
        (told,) = said(dataset, Words(("neoplasm, primary", "Positron emission tomography"), "diagnosis"))
    assert (told.present, told.unsure) == (frozenset({"neoplasm, primary"}), False)
    assert len(told.images) >= 191


@pytest.mark.skipif(not (REAL / "pet_sr_seg").is_dir(), reason="needs the real data")
def test_a_real_report_without_its_images_is_named(tmp_path: Path) -> None:
    """Its segmentation lies beside it, and is no image."""
    task = Task(label_column="diagnosis", classes=("neoplasm, primary", "none"), image_size_px=8)
    summary, _ = taken_in(REAL / "pet_sr_seg", tmp_path, task)
    assert (summary.read, summary.reasons[reported.NOBODY.reason]) == (3, 1)


@pytest.mark.skipif(not (REAL / "ct_liver_seg").is_dir(), reason="needs the real data")
def test_real_segmentations_say_what_three_slices_show(tmp_path: Path) -> None:
    """Five segments that overlap, and one of the liver."""
    task = Task(label_column="diagnosis", classes=("liver", "artery", "vein"), labels="several", image_size_px=8)
    summary, labels = taken_in(REAL / "ct_liver_seg", tmp_path, task, "seg")
    assert sorted(filter(None, labels)) == ["liver", "liver;artery", "liver;vein"]
    assert summary.quarantined == 0
