"""A name in the pixels is found, refused or blackened; an image without one is left as it is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from tests.client.intake.dicom_files import KEY, images, ingest_folder, outcome, write_dicom
from tests.intake import ingest_dicom

import burned_in_text as bench
from burned_in_text import NAMES, Writing, fonts, phantom, write
from wardround.errors import ConfigError
from wardround.toml import loads
from wardround_client.config import CHECKED, BurnedIn, HospitalConfig
from wardround_client.intake import burned_in_text
from wardround_client.intake.burned_in_text import FOUND, NOT_FOUND, NOT_INSTALLED, OUTSIDE, without_text
from wardround_client.intake.ingest import ingest
from wardround_client.intake.recipe import ImageRecipe, InputsRecipe, TableRecipe, at_site
from wardround_client.intake.source import Asked, Instance, Rejection, Rules, UnusableError, opened
from wardround_client.intake.text_detection import GREATEST_SIDE_PX, OVERLAP_PX, TILE_PX, Box, _tiles, detector

needs_fonts = pytest.mark.skipif(not fonts(), reason="no TrueType fonts on this machine")
DATA = Path(__file__).parents[4] / "shared/data/dicom"
QUARANTINE: dict[str, Any] = {"burned_in": "quarantine"}
US: dict[str, Any] = {"Modality": "US"}
RULES = ("quarantine", "blacken", "crop", "ignore")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def named(side_px: int = 256, text: str = "MUELLER ANNA", contrast: float = 0.6) -> tuple[NDArray[Any], NDArray[Any]]:
    """An image with a name in it, of 8 bits, and where its ink is."""
    made = write(phantom("CT", side_px, rng()) * np.float32(0.5), Writing(text, fonts()[0], 12, contrast), rng(1))
    assert made is not None
    return (255 * made[0]).astype(np.uint8), made[1]


def unnamed(side_px: int = 256) -> NDArray[Any]:
    return (255 * 0.5 * phantom("CT", side_px, rng())).astype(np.uint8)


def refused(path: Path, **recipe: Any) -> str:
    result = outcome(path, **{**QUARANTINE, **recipe})
    return result.reason if isinstance(result, Rejection) else ""


@needs_fonts
@pytest.mark.parametrize("kind", ["US", "CT", "MR", "CR"])
def test_nearly_every_name_is_found(kind: str) -> None:
    """A fixed set, of 8 pixels and more and a fifth of the grey scale and more: at least nine of ten."""
    backgrounds = {kind: [phantom(kind, 256, rng(seed)) for seed in range(3)]}
    made = [
        image
        for height, contrast in ((8, 0.4), (11, 0.2), (16, 0.4), (24, 0.6))
        for _, image, _ in bench.drawn(backgrounds, NAMES, height, contrast, 3, rng(height))
    ]
    assert len(made) == 12
    assert sum(map(bench.found, made)) >= 11


@needs_fonts
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("contrast", [0.5, -0.5])
def test_a_name_on_its_side_upside_down_or_inverted(turns: int, contrast: float) -> None:
    hits = 0
    for number in range(4):
        image = np.full((240, 240), 0.75 if contrast < 0 else 0.2, np.float32)
        made = write(image, Writing(NAMES[number], fonts()[number], 11, contrast, turns), rng(number))
        assert made is not None
        hits += bench.found(made[0])
    assert hits >= 3


@pytest.mark.parametrize("script", bench.OTHER_SCRIPTS)
def test_a_name_in_another_script(script: str) -> None:
    texts = bench.OTHER_SCRIPTS[script]
    usable = fonts(texts[0][0])
    if not usable:
        pytest.skip(f"no font for {script}")
    for number, text in enumerate(texts):
        made = write(phantom("US", 256, rng()), Writing(text, usable[0], 14, 0.6), rng(number))
        assert made is not None
        assert bench.found(made[0])


@pytest.mark.parametrize("kind", ["US", "CT", "MR", "CR"])
def test_an_image_without_text_is_left_as_it_is(kind: str) -> None:
    recipe = ImageRecipe(64, 1, burned_in="blacken")
    for seed in range(6):
        image = phantom(kind, 256, rng(seed))
        (out,) = without_text(lambda image=image: iter([image]), recipe, {"US"})  # type: ignore[misc]
        np.testing.assert_array_equal(out, image)


@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_shape_and_any_pixels(height: int, width: int, colour: bool, seed: int) -> None:
    """Nothing raises; what is blackened lies where it was found, and everything else stays bit for bit."""
    image = rng(seed).random((height, width, 3) if colour else (height, width)).astype(np.float32) + np.float32(0.001)
    (out,) = without_text(lambda: iter([image]), ImageRecipe(8, 1, burned_in="blacken"), {"US"})
    assert out.shape == image.shape
    assert np.isin(out[out != image], 0).all()


@given(st.integers(1, GREATEST_SIDE_PX))
def test_tiles_cover_a_side_and_overlap(side_px: int) -> None:
    tiles = list(_tiles(side_px))
    assert tiles[0][0] == 0
    assert tiles[-1][1] == side_px
    assert all(end - start <= TILE_PX for start, end in tiles)
    assert all(before[1] - after[0] >= OVERLAP_PX for before, after in pairwise(tiles))


@needs_fonts
@pytest.mark.parametrize(
    "attributes",
    [
        {"Modality": "US"},
        {"Modality": "XA"},
        {"Modality": "US", "BurnedInAnnotation": "NO"},
        {"Modality": "CT", "ConversionType": "WSD"},
        {"Modality": "CR", "ConversionType": "DF"},
    ],
)
def test_what_often_holds_text_is_looked_at_whatever_it_says(tmp_path: Path, attributes: dict[str, Any]) -> None:
    assert refused(write_dicom(tmp_path / "a", named()[0], **attributes)) == FOUND
    assert refused(write_dicom(tmp_path / "b", unnamed(), **attributes)) == ""


@needs_fonts
def test_a_modality_is_added_by_setting(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", named()[0], Modality="CT")
    assert refused(path) == ""
    assert refused(path, checked=("CT",)) == FOUND
    picture = tmp_path / "a.png"
    Image.fromarray(named()[0]).save(picture)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,PatientID,finding\na.png,P1,x\n")
    summaries = [
        ingest(
            opened("image-folder", Asked(str(tmp_path), labels), {}),
            tmp_path / f"cohort{len(checked)}",
            ImageRecipe(8, 1, checked=checked),
            key=KEY,
            workers=0,
        )
        for checked in (CHECKED, ())
    ]
    assert [summary.used for summary in summaries] == [0, 1]
    assert summaries[0].reasons == {FOUND: 1}


@needs_fonts
def test_the_place_is_told_and_the_text_is_not(tmp_path: Path) -> None:
    pixels, ink = named(text="KOWALSKI JAN")
    result = outcome(write_dicom(tmp_path / "a", pixels, **US), **QUARANTINE)
    assert isinstance(result, Rejection)
    assert "KOWALSKI" not in repr(result)
    rows = np.flatnonzero(ink.any(1))
    top, bottom = (int(word.rstrip(",")) for word in result.detail.split()[1:4:2])
    assert top <= rows[0] + 3
    assert bottom >= rows[-1] - 3


@needs_fonts
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB"])
def test_what_is_blackened_is_black_in_the_cohort(tmp_path: Path, photometric: str) -> None:
    pixels, ink = named()
    stored = 255 - pixels if photometric == "MONOCHROME1" else pixels
    if photometric == "RGB":
        stored = np.stack([pixels] * 3, -1)
    path = write_dicom(tmp_path / "a", np.ascontiguousarray(stored), PhotometricInterpretation=photometric, **US)
    plain, black = (images(path, 256, burned_in=rule)[0, 0] for rule in ("ignore", "blacken"))
    assert black[ink].max() == 0
    assert plain[ink].max() > 0.5
    changed = plain != black
    assert changed.mean() < 0.15
    assert (black[changed] == 0).all()


@needs_fonts
@pytest.mark.parametrize(("frame", "dark"), [(0, False), (2, True), (3, False)])
def test_text_in_one_frame_refuses_the_file_and_is_blackened_in_all(tmp_path: Path, frame: int, dark: bool) -> None:
    pixels, ink = named()
    clean = unnamed()
    if dark:
        pixels, clean = 255 - pixels, 255 - clean
    stack = np.stack([clean] * 5)
    stack[frame] = pixels
    path = write_dicom(tmp_path / "a", stack, Modality="CT")  # multi-frame is enough
    assert refused(path) == FOUND
    black = images(path, 256, burned_in="blacken")[:, 0]
    assert black[:, ink].max() == 0
    assert refused(write_dicom(tmp_path / "b", np.stack([clean] * 5), Modality="CT")) == ""


@needs_fonts
def test_only_frames_that_are_used_are_looked_at(tmp_path: Path) -> None:
    pixels, _ = named()
    stack = np.stack([unnamed()] * 4)
    stack[1] = pixels
    path = write_dicom(tmp_path / "a", stack)
    assert refused(path, frames_per_file=2) == ""  # the first and the last
    assert refused(path, frames_per_file=4) == FOUND


@needs_fonts
def test_what_the_window_shows_is_what_counts(tmp_path: Path) -> None:
    """A name a few grey values above its surroundings is legible in a narrow window; beyond the window it is gone."""
    _, ink = named()
    faint = (1000 + 400 * (unnamed() / 255)).astype(np.uint16)
    faint[ink] += 40
    whole = write_dicom(tmp_path / "a", faint, WindowCenter=32768, WindowWidth=65536, **US)
    narrow = write_dicom(tmp_path / "b", faint, WindowCenter=1100, WindowWidth=250, **US)
    assert refused(narrow) == FOUND
    assert refused(whole) == ""
    assert np.ptp(images(whole, 256)) < 0.01  # nothing of it is legible there either
    hidden = np.full((256, 256), 5000, np.uint16)
    hidden[ink] = 6000
    beyond = write_dicom(tmp_path / "c", hidden, WindowCenter=1100, WindowWidth=250, **US)
    assert np.ptp(images(beyond, 256)) == 0


@needs_fonts
def test_text_in_an_overlay_or_in_the_padding_does_not_reach_the_pixels(tmp_path: Path) -> None:
    """Overlay planes (PS3.3 C.9) are not drawn; what has the padding's value is black."""
    _, ink = named()
    overlay = np.packbits(ink.ravel(), bitorder="little").tobytes()
    path = write_dicom(tmp_path / "a", unnamed(), **US)
    data = pydicom.dcmread(path)
    data.add_new((0x6000, 0x0010), "US", 256)
    data.add_new((0x6000, 0x0011), "US", 256)
    data.add_new((0x6000, 0x0040), "CS", "G")
    data.add_new((0x6000, 0x0050), "SS", [1, 1])
    data.add_new((0x6000, 0x0100), "US", 1)
    data.add_new((0x6000, 0x3000), "OW", overlay)
    data.save_as(tmp_path / "b")
    np.testing.assert_array_equal(images(path, 64), images(tmp_path / "b", 64))
    pixels = np.full((256, 256), 0, np.uint16)
    pixels[ink] = 3000
    padded = write_dicom(tmp_path / "c", pixels, PixelPaddingValue=3000, WindowCenter=1000, WindowWidth=2000, **US)
    assert images(padded, 256).max() == 0


def region(top: int, bottom: int, left: int, right: int) -> Dataset:
    item = Dataset()
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right - 1, bottom - 1
    return item


def test_outside_of_the_ultrasound_regions(tmp_path: Path) -> None:
    pixels = np.full((64, 64), 90, np.uint8)
    pixels[:10] = np.arange(64) * 3  # a bar with whatever in it: nobody has to be able to read it
    path = write_dicom(tmp_path / "a", pixels, SequenceOfUltrasoundRegions=[region(10, 64, 0, 64)], **US)
    assert refused(path) == OUTSIDE
    for rule in ("crop", "blacken"):
        out = images(path, 64, burned_in=rule)[0, 0]
        assert out[:10].max() == 0
        np.testing.assert_array_equal(out[10:], images(path, 64)[0, 0, 10:])
    pixels[:10] = 3
    assert refused(write_dicom(tmp_path / "b", pixels, SequenceOfUltrasoundRegions=[region(10, 64, 0, 64)], **US)) == ""


@needs_fonts
def test_crop_blackens_inside_and_refuses_where_there_is_no_region(tmp_path: Path) -> None:
    pixels, ink = named()
    whole = [region(0, 256, 0, 256)]
    path = write_dicom(tmp_path / "a", pixels, SequenceOfUltrasoundRegions=whole, **US)
    assert images(path, 256, burned_in="crop")[0, 0][ink].max() == 0
    assert refused(write_dicom(tmp_path / "b", pixels, **US), burned_in="crop") == FOUND


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 70)] * 4), max_size=4))
@settings(max_examples=30, deadline=None)
def test_regions_of_any_numbers(tmp_path_factory: pytest.TempPathFactory, ends: list[tuple[int, ...]]) -> None:
    """Regions that make no sense are as if they were not there; nothing raises, nothing outside of any is kept."""
    items = []
    for top, bottom, left, right in ends:
        item = Dataset()
        item.RegionLocationMinY0, item.RegionLocationMaxY1 = top, bottom
        item.RegionLocationMinX0, item.RegionLocationMaxX1 = left, right
        items.append(item)
    pixels = np.full((40, 50), 200, np.uint8)
    path = write_dicom(tmp_path_factory.mktemp("r") / "a", pixels, SequenceOfUltrasoundRegions=items, **US)
    out = images(path, 50, burned_in="crop")[0, 0, 5:45]
    kept = np.zeros((40, 50), bool)
    for top, bottom, left, right in ends:
        kept[top : bottom + 1, left : right + 1] = True
    assert (out > 0).sum() == (kept.sum() or 40 * 50)


def test_a_file_that_says_yes(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", unnamed(), Modality="CT", BurnedInAnnotation="YES")
    assert refused(path) == refused(path, burned_in="ignore") == "Burned In Annotation (0028,0301) is YES"
    assert refused(path, allow_burned_in=True) == ""
    assert refused(path, burned_in="blacken") == NOT_FOUND  # it is there, and nobody knows where


@needs_fonts
def test_a_file_that_says_yes_and_is_right(tmp_path: Path) -> None:
    pixels, ink = named()
    path = write_dicom(tmp_path / "a", pixels, Modality="CT", BurnedInAnnotation="YES")
    assert refused(path, allow_burned_in=True) == FOUND
    assert images(path, 256, burned_in="blacken")[0, 0][ink].max() == 0


def test_without_the_detector_nothing_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in_text, "detector", lambda: None)
    path = write_dicom(tmp_path / "a", unnamed(), **US)
    for rule in RULES[:3]:
        assert refused(path, burned_in=rule) == NOT_INSTALLED
    assert "pip install" in NOT_INSTALLED
    assert refused(path, burned_in="ignore") == ""
    assert refused(write_dicom(tmp_path / "b", unnamed(), Modality="CT")) == ""


def test_another_file_of_the_same_name_is_no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "rapidocr"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    (package / "models/ch_PP-OCRv4_det_infer.onnx").write_bytes(b"another network")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("wardround_client.intake.text_detection.PACKAGES", ("rapidocr", "nothing_of_this_name"))
    assert detector.__wrapped__() is None


def test_neither_opencv_nor_the_package_is_imported() -> None:
    code = (
        "import sys; from wardround_client.intake.text_detection import detector; "
        "assert detector(); assert not {'cv2', 'rapidocr_onnxruntime', 'shapely', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_only_refuses_is_no_part_of_a_cohort() -> None:
    plain = ImageRecipe(64, 1)
    for rule in ("quarantine", "ignore"):
        assert replace(plain, burned_in=rule, checked=("CT",)).layout == plain.layout
    for rule in ("blacken", "crop"):
        recipe = replace(plain, burned_in=rule, checked=("CT",))  # type: ignore[arg-type]
        assert recipe.layout != plain.layout
        assert ImageRecipe.of(recipe.layout.recipe) == recipe  # so a prediction blackens as the cohort did
    assert ImageRecipe.of(plain.layout.recipe).burned_in == "ignore"  # at home, nobody is refused for text


def test_the_hospital_chooses() -> None:
    base = '[hospital]\nname = "st-anna"\ndeclared_patients = 400\n'
    chosen = loads(f'{base}[burned_in]\ntext = "blacken"\nchecked = ["US", "picture"]', HospitalConfig).burned_in
    made = at_site(InputsRecipe((("image", ImageRecipe(8, 1)), ("table", TableRecipe(("a",)))), ()), chosen)
    assert isinstance(made, InputsRecipe)
    assert made.parts[0][1] == ImageRecipe(8, 1, burned_in="blacken", checked=("US", "picture"))
    assert loads(base, HospitalConfig).burned_in == BurnedIn(text="quarantine", checked=CHECKED)
    for wrong in ('text = "yes"', 'checked = ["us"]', 'checked = ["everything!"]', "text = true"):
        with pytest.raises(ConfigError):
            loads(f"{base}[burned_in]\n{wrong}", HospitalConfig)


@needs_fonts
def test_a_hospital_that_changes_its_mind_has_the_files_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    write_dicom(folder / "a", named()[0], **US)
    write_dicom(folder / "b", unnamed(), PatientID="PAT-2", **US)
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-1,x\nPAT-2,y\n")
    cohort, patients = tmp_path / "c", Rules().patients
    lax = BurnedIn(text="ignore")
    first = ingest_dicom(
        folder, cohort, key=KEY, recipe={"burned_in": "ignore"}, rules=Rules(patients=patients, burned_in=lax)
    )
    assert first.used == 2
    again = ingest_folder(folder, cohort)
    assert again.reasons == {FOUND: 1}
    assert again.images == 1  # what was refused is taken out again


@needs_fonts
def test_bright_and_dark_text_of_any_frame_is_in_what_is_looked_at_last() -> None:
    frames = [np.full((4, 4), value, np.float32) for value in (0.5, 0.5, 0.9, 0.1, 0.5)]
    looked = [image for image, _ in burned_in_text._looked_at(frames, [False] * 5)]
    assert len(looked) == 7
    assert (looked[5].max(), looked[6].min()) == (np.float32(0.9), np.float32(0.1))


def test_a_refusal_while_frames_are_taken_is_one_of_the_file() -> None:
    with pytest.raises(UnusableError):
        for _ in without_text(lambda: iter([np.zeros((8, 8))]), ImageRecipe(8, 1), {"US"}, regions=[Box(0, 1, 0, 1)]):
            raise UnusableError("taken")


@pytest.mark.skipif(not DATA.is_dir(), reason="no real images here")
def test_real_ultrasound(tmp_path: Path) -> None:
    """A cine with an invented name, birth date and hospital; a still with a hospital and a finding."""
    with zipfile.ZipFile(next((DATA / "us_cine").glob("*.zip"))) as archive:
        cine = Path(archive.extract(archive.namelist()[0], tmp_path))
    still = DATA / "us_ge/US1_UNCR.dcm"
    everything: dict[str, Any] = {"allow_burned_in": True, "frames_per_file": 2}
    assert refused(cine) == "Burned In Annotation (0028,0301) is YES"
    assert refused(cine, **everything) == OUTSIDE
    assert refused(still) == FOUND
    black = images(cine, 800, burned_in="crop", frames_per_file=2)[:, 0]
    top = (800 - 600) // 2
    assert black[:, top : top + 31].max() == 0
    again = without_text(lambda: iter(black), ImageRecipe(8, 1), {"US"}, careful=[True] * 2)
    for _ in again:  # nothing legible is left
        pass


def test_an_instance_is_as_before_where_nothing_is_found(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", unnamed(64), **US)
    results = [outcome(path, burned_in=rule) for rule in RULES]
    for result in results:
        assert isinstance(result, Instance)
        np.testing.assert_array_equal(result.rows, results[3].rows)  # type: ignore[union-attr]
