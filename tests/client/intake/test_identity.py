"""Who is who: a PatientID is one person's only together with who issued it, and some PatientIDs are nobody's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from tests.client.command_line import wardround
from tests.client.intake.dicom_files import KEY, ingest_folder, outcome, write_dicom

from wardround_client.cohort.store import CohortStore
from wardround_client.config import PatientIds
from wardround_client.intake.dicom.identity import is_placeholder, series_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, Instance, Rejection, Rules, opened

WHO = Pseudonyms(KEY)


def archive(folder: Path, *said: dict[str, Any], labels: str = "PatientID,finding\n1,x\n") -> Path:
    """One file each, each another image."""
    for number, each in enumerate(said):
        pixels = np.full((8, 8), 20 * number, np.uint8)
        pixels[0, 0] = 255
        write_dicom(folder / f"{number}.dcm", pixels, **{"PatientID": "1", "SOPInstanceUID": f"1.8.{number}", **each})
    (folder / "labels.csv").write_text(labels)
    return folder


def patients(cohort: Path, withdrawn: set[bytes] = frozenset()) -> set[bytes]:  # type: ignore[assignment]
    return set(CohortStore.open(cohort, withdrawn=withdrawn).pseudonyms)


def entity(name: str) -> list[Dataset]:
    item = Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = name, "ISO"
    return [item]


def test_two_people_of_two_issuers_are_two_patients(tmp_path: Path) -> None:
    folder = archive(tmp_path / "d", {"IssuerOfPatientID": "ANNA"}, {"IssuerOfPatientID": "BERTHA "},
                     {"IssuerOfPatientIDQualifiersSequence": entity("1.2.3")})  # fmt: skip
    summary = ingest_folder(folder, tmp_path / "c")
    assert patients(tmp_path / "c") == {WHO.patient("1", issuer) for issuer in ("ANNA", "BERTHA", "1.2.3")}
    assert (summary.patients, summary.issuers, summary.halved, summary.shared_keys) == (3, 1, 0, 1)
    assert set(CohortStore.open(tmp_path / "c", withdrawn=()).labels("finding")) == {"x"}


def test_a_file_without_an_issuer_is_reported_and_the_own_issuer_makes_one_patient_of_both(tmp_path: Path) -> None:
    folder = archive(tmp_path / "d", {"IssuerOfPatientID": "ANNA"}, {}, {"PatientID": "2"})
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.patients, summary.issuers, summary.halved) == (3, 1, 1)
    rules = Rules(patients=PatientIds(issuer="ANNA"))
    summary = ingest_folder(folder, tmp_path / "c", rules=rules)
    assert (summary.patients, summary.halved, summary.corrected, summary.images) == (2, 0, 1, 3)
    assert patients(tmp_path / "c") == {WHO.patient("1"), WHO.patient("2")}


def test_a_csv_may_say_whose_number_it_is(tmp_path: Path) -> None:
    labels = "PatientID,IssuerOfPatientID,finding\n1,ANNA,a\n1,BERTHA,b\n"
    folder = archive(tmp_path / "d", {"IssuerOfPatientID": "ANNA"}, {"IssuerOfPatientID": "BERTHA"}, labels=labels)
    summary = ingest_folder(folder, tmp_path / "c")
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert (store.label_columns, store.labels("finding"), summary.shared_keys) == (("finding",), ["a", "b"], 0)


def test_who_withdraws_does_so_whoever_issued_the_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    wardround(capsys, "init", home, "--name", "st-anna", "--patients", 40)
    folder = archive(tmp_path / "d", {"IssuerOfPatientID": "ANNA"}, {"PatientID": "2"}, {})
    typed = ("ingest", home, folder, "--labels", folder / "labels.csv", "--size", 8, "--json")
    code, out, _ = wardround(capsys, *typed)
    assert code == 0 and json.loads(out.splitlines()[-1])["patients"] == 3
    code, out, _ = wardround(capsys, "withdraw", home, "1", "--json")
    assert code == 0 and [json.loads(line)["stored"] for line in out.splitlines()[:-1]] == ["kept", "kept"]
    archive(folder, {"IssuerOfPatientID": "ANNA"}, {"PatientID": "2"}, {}, {"IssuerOfPatientID": "NEW"})
    code, out, _ = wardround(capsys, *typed)
    said = json.loads(out.splitlines()[-1])
    assert (said["patients"], said["reasons"]) == (1, {"patient withdrawn": 3})
    code, out, _ = wardround(capsys, "withdraw", home, "1", "--erase", "--json")
    assert code == 0 and [json.loads(line)["stored"] for line in out.splitlines()[:-1]] == ["erased", "erased"]


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("keyword", ["PatientID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_an_identity_of_several_values_is_refused(tmp_path: Path, keyword: str) -> None:
    folder = archive(tmp_path / "d", {keyword: ["1.2", "1.3"]}, {})
    summary = ingest_folder(folder, tmp_path / "c")
    assert summary.used == 1 and "has several values" in next(iter(summary.reasons))


NOBODY = [
    "ANONYMOUS",
    "anonymized",
    "0",
    "0000000000",
    "Unknown",
    "N/A",
    "none",
    "---",
    "XXXX",
    "Anonymous^Patient "[:9],
]


@pytest.mark.parametrize("patient", NOBODY)
def test_a_number_that_is_nobody_s_is_refused_unless_the_hospital_allows_it(tmp_path: Path, patient: str) -> None:
    folder = archive(tmp_path / "d", {"PatientID": patient}, {"PatientID": patient}, {})
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.patients, summary.quarantined) == (1, 2)
    assert "is a placeholder" in next(iter(summary.reasons))
    allowed = ingest_folder(folder, tmp_path / "c", rules=Rules(patients=PatientIds(allow_placeholders=True)))
    assert (allowed.patients, allowed.images) == (2, 3)


@given(st.integers(1, 10**12), st.sampled_from(["", "0", "00", "P-", "A0"]))
def test_a_number_is_no_placeholder(number: int, before: str) -> None:
    assert not is_placeholder(f"{before}{number}")


@given(st.text(max_size=12))
def test_whether_a_text_is_a_placeholder_hangs_on_no_case_and_no_mark(text: str) -> None:
    assert is_placeholder(text) == is_placeholder(f" {text}^") == is_placeholder(text.casefold())


ids = st.text(st.characters(exclude_categories=["C"], exclude_characters="\\"), min_size=1, max_size=8).filter(
    str.strip
)


@given(a=st.tuples(ids, ids | st.just("")), b=st.tuples(ids, ids | st.just("")))
def test_two_pairs_of_number_and_issuer_never_meet(a: tuple[str, str], b: tuple[str, str]) -> None:
    import unicodedata

    def plain(pair: tuple[str, str]) -> tuple[str, ...]:
        return tuple(unicodedata.normalize("NFC", each).strip() for each in pair)

    assert (WHO.patient(*a) == WHO.patient(*b)) == (plain(a) == plain(b))


def test_several_people_under_one_number_are_noticed_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    folder = archive(
        tmp_path / "d",
        {"PatientBirthDate": "19500102", "PatientSex": "F"},
        {"PatientBirthDate": "19710304", "PatientSex": "M"},
        {"PatientID": "2", "PatientBirthDate": "19500102", "PatientSex": "F"},
        {"PatientID": "2", "PatientBirthDate": "", "PatientSex": "F"},
    )
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.several_people, summary.patients) == (1, 2)
    item = outcome(folder / "0.dcm")
    assert isinstance(item, Instance) and item.person
    assert item.person not in (tmp_path / "c" / "index.sqlite").read_bytes()


def test_orders_and_series_are_kept_as_keyed_hashes(tmp_path: Path) -> None:
    folder = archive(tmp_path / "d", {"AccessionNumber": "ACC-77", "SeriesInstanceUID": "1.7.77"})
    ingest_folder(folder, tmp_path / "c")
    index = (tmp_path / "c" / "index.sqlite").read_bytes()
    assert WHO.of("AccessionNumber", "ACC-77") in index and WHO.of("SeriesInstanceUID", "1.7.77") in index
    assert b"ACC-77" not in index and b"1.7.77" not in index


KEYS = {
    "SOPInstanceUID": "1.8.0", "SeriesInstanceUID": "1.7.1", "StudyInstanceUID": "1.2.3.4", "AccessionNumber": "ACC",
    "PatientID": "1",
}  # fmt: skip


def test_the_most_particular_key_wins(tmp_path: Path) -> None:
    folder = archive(tmp_path / "d", {"AccessionNumber": "ACC", "SeriesInstanceUID": "1.7.1"})
    for key, value in reversed(KEYS.items()):  # each from an archive's CSV of its own, so that all of them stay
        (folder / "labels.csv").write_text(f"{key},finding\n{value},{key}\n")
        ingest_folder(folder, tmp_path / "c")
        assert CohortStore.open(tmp_path / "c", withdrawn=()).labels("finding") == [key]


def test_a_csv_may_name_files(tmp_path: Path) -> None:
    labels = "file,finding\nsub\\0.dcm,a\n./sub/1.dcm,b\nabsent.dcm,c\n,d\n"
    folder = archive(tmp_path / "d" / "sub", {}, {}, {}).parent
    (folder / "labels.csv").write_text(labels)
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.read, summary.used, summary.images) == (4, 2, 2)
    assert CohortStore.open(tmp_path / "c", withdrawn=()).labels("finding") == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("Accession Number", "write AccessionNumber instead of 'Accession Number'"),
        ("PATIENT_ID", "write PatientID instead"),
        ("study instance uid", "write StudyInstanceUID instead"),
    ],
)
def test_a_header_that_nearly_names_a_key_is_explained(tmp_path: Path, header: str, hint: str) -> None:
    folder = archive(tmp_path / "d", {}, labels=f"{header},finding\n1,x\n")
    with pytest.raises(Exception, match=hint):
        ingest_folder(folder, tmp_path / "c")


@pytest.mark.parametrize("character_set", ["ISO_IR 192", "GB18030", "ISO_IR 13", "ISO 2022 IR 149"])
def test_letters_that_cannot_be_read_make_nobody_of_two_people(character_set: str, tmp_path: Path) -> None:
    """A file that says UTF-8 and holds Latin-1: each unknown byte would be the same letter."""
    for keyword in ("PatientID", "IssuerOfPatientID", "AccessionNumber"):
        said: dict[str, Any] = {"PatientID": "1", "SpecificCharacterSet": character_set, keyword: "M?LLER"}
        found = []
        for byte in (b"\xff", b"\x80"):
            path = write_dicom(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), **said)
            path.write_bytes(path.read_bytes().replace(b"M?LLER", b"M" + byte + b"LLER"))
            found.append(outcome(path))
        for each in found:
            if keyword == "AccessionNumber":
                assert isinstance(each, Instance) and (not each.accession or found[0] != found[1])
            else:
                assert isinstance(each, Rejection) and each.reason.endswith("character set that the file names")


def test_a_file_with_two_patient_ids_is_nobodys(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8))
    content, rows = path.read_bytes(), b"\x28\0\x02\0US"
    path.write_bytes(content.replace(rows, b"\x10\0\x20\0LO\x04\0B-22" + rows, 1))
    found = outcome(path)
    assert isinstance(found, Rejection) and found.reason == "Patient ID (0010,0020) stands twice in the file"


def test_a_pipe_among_the_files_of_a_series_is_not_waited_for(tmp_path: Path) -> None:
    """Slices are counted before anything is read: in this process, which nothing would end."""
    os.mkfifo(tmp_path / "pipe")
    assert series_of(tmp_path / "pipe") is None


def test_a_csv_in_which_a_letter_was_lost_names_nobody(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,PatientID,finding\na.png,M\ufffdLLER,x\n", encoding="utf-8")
    (item,) = opened("image-folder", Asked(str(tmp_path), tmp_path / "labels.csv"), {}).items()
    assert isinstance(item.read(ImageRecipe(8, 1), WHO), Rejection)
