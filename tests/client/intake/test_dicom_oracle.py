"""Pictures as an independent decoder shows them: dcmtk, on files made up and on files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from tests.client.intake.dicom_files import EVERYTHING
from tests.fuzz.engine import run
from tests.fuzz.made import NATIVE, described, made
from tests.fuzz.mutants import seeds
from tests.fuzz.oracle import RECIPE, Whole, available, difference

from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.decode import decoded
from wardround_client.intake.dicom.header import read
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Instance

PSEUDONYMS = Pseudonyms(bytes(32))


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(data=st.data())
def test_dcmtk_shows_the_same(tmp_path: Path, data: st.DataObject) -> None:
    if not available():
        pytest.skip("dcmtk is not installed")
    path = tmp_path / "a.dcm"
    try:
        path.write_bytes(made(lambda options: data.draw(st.sampled_from(list(options))), (*NATIVE, JPEGLSLossless)))
    except RuntimeError:  # pydicom's encoder does not take it
        return
    ours = Whole(path).read(RECIPE, PSEUDONYMS)
    if isinstance(ours, Instance):
        assert not difference(path, ours.rows[0])
    else:
        assert "big endian" in ours.reason


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(data=st.data(), syntax=st.sampled_from([RLELossless, JPEGLSLossless, JPEG2000Lossless]))
def test_compressed_without_loss_is_as_it_was(tmp_path: Path, data: st.DataObject, syntax: pydicom.uid.UID) -> None:
    try:
        content = made(lambda options: data.draw(st.sampled_from(list(options))), (syntax,))
    except RuntimeError:  # pydicom's encoder does not take it
        return
    (tmp_path / "a.dcm").write_bytes(content)
    plain = described(content)
    if plain.BitsStored <= 8 < plain.BitsAllocated:  # which pydicom writes in fewer bits than it says
        return
    plain.decompress(generate_instance_uid=False)
    plain.save_as(tmp_path / "b.dcm")
    one, other = (Whole(tmp_path / name).read(RECIPE, PSEUDONYMS) for name in ("a.dcm", "b.dcm"))
    assert isinstance(one, Instance) and isinstance(other, Instance)
    assert np.abs(one.rows.astype(int) - other.rows.astype(int)).max() <= 1


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(data=st.data())
def test_itk_reads_the_same_values(tmp_path: Path, data: st.DataObject) -> None:
    """Another decoder, also of JPEG 2000: the values after the modality transform, frame by frame."""
    itk = pytest.importorskip("SimpleITK")
    try:
        syntaxes = (JPEG2000Lossless, RLELossless, JPEGLSLossless, pydicom.uid.ExplicitVRLittleEndian)
        content = made(lambda options: data.draw(st.sampled_from(list(options))), syntaxes)
    except RuntimeError:  # pydicom's encoder does not take it
        return
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with quiet():
        header = read(path, RECIPE, EVERYTHING)
        # It turns MONOCHROME1 round, and has its own ideas of 32 bits and of bits above the stored ones.
        if header.photometric != "MONOCHROME2" or header.allocated > 16 or header.stored != header.allocated:
            return
        if header.dataset.get("ModalityLUTSequence"):  # which it does not apply
            return
        frames = [
            frame * look.modality[0] + look.modality[1] if isinstance(look.modality, tuple) else frame
            for frame, look in zip(decoded(header), header.looks.values(), strict=True)
        ]
    try:
        theirs = itk.GetArrayFromImage(itk.ReadImage(str(path))).reshape(np.shape(frames))
    except RuntimeError:  # what it cannot read tells nothing
        return
    np.testing.assert_allclose(np.asarray(frames, np.float64), theirs, atol=0.51)


def test_some_hundred_wrong_files_end_nothing_and_are_shown_as_dcmtk_shows_them() -> None:
    """Ten thousand with `make fuzz`."""
    figures = run(range(300), 7, seeds(None))
    assert figures.mutants == 300 and figures.used > 30
    assert not figures.different and not figures.ended
