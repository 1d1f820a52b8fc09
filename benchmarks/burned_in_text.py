"""How much text that is burned into pixels the intake finds, how much of it it blackens, and how often it is wrong.

    python benchmarks/burned_in_text.py [--names 24] [--data ../shared/data] [--json]

Writes invented names in the fonts of this machine into images of several modalities, at several heights (of a capital
letter, in pixels), contrasts (of the grey scale, to what lies around) and places, and looks for them as the intake
does. "found": the file would be refused. "blackened": at least 95 % of the ink would be gone. In brackets the 95 %
interval (Clopper-Pearson). Without --data the images are phantoms; with it real ones, and what is found in clean real
images is counted too.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, stats

from wardround_client.config import LeftOut, PatientIds, Select
from wardround_client.intake.burned_in_text import without_text
from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.header import read
from wardround_client.intake.dicom.pixels import shown
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Rules, UnusableError
from wardround_client.intake.text_detection import detector

Floats = NDArray[np.float32]
EVERYTHING = Rules(Select(allow=get_args(LeftOut)), PatientIds(allow_placeholders=True))
NAMES = (
    *("MUELLER^ANNA", "Doe, Jane 12.03.1951", "KOWALSKI JAN", "ID 4711-0815", "O'Brien Sean M", "ST. ANNA HOSPITAL"),
    *("García Márquez, Ana", "1951-08-29 M 065Y", "Nguyen Thi Lan", "SMITH, J.", "WU LI"),
)
OTHER_SCRIPTS = {
    "Cyrillic": ("Иванова Анна", "Смирнов Пётр"),
    "Arabic": ("محمد علي حسن", "فاطمة الزهراء"),
    "Chinese": ("王小明", "李 文 1951"),
}
FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")
HEIGHTS_PX, CONTRASTS = (6, 8, 11, 16, 24, 40), (0.1, 0.2, 0.4, 0.8)


@cache
def fonts(letter: str = "A") -> tuple[Path, ...]:
    """Fonts of this machine that have a letter, upright and not symbols, in a fixed order; () where there are none."""
    found = sorted(file for folder in FOLDERS for file in folder.rglob("*.[to]t[fc]") if "Math" not in file.name)
    return tuple(file for file in found if _has(file, letter))


def _has(file: Path, letter: str) -> bool:
    font = ImageFont.truetype(file, 40)
    return bytes(font.getmask(letter)) not in (bytes(font.getmask("\uffff")), b"")


@dataclass(frozen=True)
class Writing:
    """How a text is written. height_px: of a capital letter. contrast: to the mean around it, of the grey scale, darker
    where negative. turns: by 90 degrees, counter-clockwise.
    """

    text: str
    font: Path
    height_px: int
    contrast: float
    turns: int = 0


def write(image: Floats, writing: Writing, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]] | None:
    """The image with the text somewhere in it, and where its ink is; None where it has no room."""
    ink = np.rot90(_ink(writing), writing.turns)
    if ink.shape[0] + 4 > image.shape[0] or ink.shape[1] + 4 > image.shape[1]:
        return None
    y, x = (int(rng.integers(2, image.shape[axis] - ink.shape[axis] - 1)) for axis in (0, 1))
    out, where = image.copy(), np.s_[y : y + ink.shape[0], x : x + ink.shape[1]]
    mean = float(image[where].mean())
    value = mean + writing.contrast
    if not 0 <= value <= 1:
        value = mean - writing.contrast
    weight = ink if image.ndim == 2 else ink[..., None]
    out[where] = np.clip(image[where] * (1 - weight) + value * weight, 0, 1)
    mask = np.zeros(image.shape[:2], bool)
    mask[where] = ink > 0.3
    return out, mask


def _ink(writing: Writing) -> Floats:
    capital = ImageFont.truetype(writing.font, 100).getbbox("H")
    size = max(1, round(100 * writing.height_px / (capital[3] - capital[1])))
    font = ImageFont.truetype(writing.font, size)
    left, top, right, bottom = font.getbbox(writing.text)
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), writing.text, 255, font=font)
    return np.asarray(canvas, np.float32) / np.float32(255)


def phantom(kind: str, side_px: int, rng: np.random.Generator) -> Floats:
    """Something that looks a little like ultrasound, CT, MR or a radiograph: speckle, ellipses, noise, edges."""
    y, x = np.mgrid[-1 : 1 : side_px * 1j, -1 : 1 : side_px * 1j]
    if kind == "US":
        speckle = ndimage.gaussian_filter(rng.rayleigh(1, y.shape), (1, 2)) * np.exp(-1.2 * (y + 1) / 2)
        fan = (np.abs(x) < 0.15 + 0.4 * (y + 1)) & (y**2 + x**2 < 1.3)
        return np.asarray(np.clip(0.3 * speckle * fan, 0, 1), np.float32)
    image = np.zeros_like(y)
    for _ in range(12):
        cy, cx, ry, rx = *rng.uniform(-0.5, 0.5, 2), *rng.uniform(0.05, 0.5, 2)
        image[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] += rng.uniform(-0.25, 0.35)
    image = ndimage.gaussian_filter(image, {"CT": 0.7, "MR": 1.2}.get(kind, 6.0))
    image = image - image.min()
    image = image / max(float(image.max()), 1e-6) + rng.normal(0, {"CT": 0.03, "MR": 0.02}.get(kind, 0.01), y.shape)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _rendered(path: Path, frames: int = 1) -> list[Floats]:
    with quiet():
        return [
            np.asarray(image, np.float32)
            for image in shown(read(path, ImageRecipe(64, 1, frames, True, burned_in="ignore"), EVERYTHING),
                               ImageRecipe(64, 1, burned_in="ignore"))
        ]  # fmt: skip


def _dicom(data: Path, pattern: str, step: int = 1, frames: int = 1) -> list[Floats]:
    found = []
    for path in sorted((data / "dicom").glob(pattern))[::step]:
        try:
            found += _rendered(path, frames)
        except UnusableError:
            continue  # what lies beside the images
    return found


def _jpegs(data: Path, name: str, step: int, only: str = "") -> list[Floats]:
    with np.load(data / name, allow_pickle=False) as archive:
        blob, ends = archive["jpeg"], archive["offsets"]
        sites = archive["site"] if only else None
        wanted = list(archive["site_names"]).index(only) if only else 0
    numbers = [n for n in range(0, len(ends) - 1, step) if sites is None or sites[n] in (wanted, only)]
    return [
        np.asarray(Image.open(io.BytesIO(blob[ends[n] : ends[n + 1]].tobytes())), np.float32) / np.float32(255)
        for n in numbers
    ]


def clean(data: Path) -> dict[str, list[Floats]]:
    """Real images without text, by what they are."""
    return {
        "CT head, 512 px": _dicom(data, "ct_head_ge/*"),
        "CT chest, 204 px": _dicom(data, "ct_lung_rtstruct/*", 2),
        "MR brain, 256 px": _dicom(data, "mr_t1_sag_siemens/*"),
        "MR brain 7 T, 384 px": _dicom(data, "mr_t1_volume/*", 2),
        "MR knee, multi-frame, 256 px": _dicom(data, "other/mr_enhanced*", frames=19),
        "XA cine, 512 px": _dicom(data, "xa_cine/*", frames=32),
        "glioma MR, 128 px": [image[:, :128] for image in _jpegs(data, "lgg_mri/lgg_mri_128.npz", 20)],
        "chest radiograph, 128 px": _jpegs(data, "cxr_pneumonia/cxr_pneumonia_128.npz", 35),
        "skin, 128 px": _jpegs(data, "ham10000_128/ham10000_128.npz", 50),
        "retina, 512 px": _jpegs(data, "fundus_vessels/fundus_vessels_512.npz", 2),
    }


def backgrounds(data: Path | None, rng: np.random.Generator) -> dict[str, list[Floats]]:
    """What names are written into, by modality."""
    made = {kind: [phantom(kind, side, rng) for side in (256, 384, 512)] for kind in ("US", "CT", "MR", "CR")}
    if data is None:
        return made
    return {
        "US": made["US"],
        "CT": _dicom(data, "ct_head_ge/*", 2) + _dicom(data, "ct_lung_rtstruct/*", 8),
        "MR": _dicom(data, "mr_t1_sag_siemens/*", 4) + _dicom(data, "mr_t1_volume/*", 10),
        "CR": [image[y : y + 512, :512] for image in _dicom(data, "cr_chest/*") for y in (256, 512)],
        "XA": _dicom(data, "xa_cine/*", frames=6),
    }  # fmt: skip


def found(image: Floats, *, careful: bool = True) -> bool:
    """Whether the intake would refuse a file of this image."""
    network = detector()
    assert network is not None, "pip install 'wardround[text]'"
    return bool(network.text(image, careful=careful, first=True))


def blackened(image: Floats, mask: NDArray[np.bool_]) -> float:
    """The share of the ink that the intake blackens."""
    recipe = ImageRecipe(64, 1, burned_in="blacken")
    (out,) = without_text(lambda: iter([image + 1e-3]), recipe, {"picture"})
    black = out == 0 if out.ndim == 2 else (out == 0).all(-1)
    return float(black[mask].mean())


@dataclass
class Share:
    """Hits of all tries."""

    hits: int = 0
    tries: int = 0

    def add(self, hit: bool) -> None:
        self.hits, self.tries = self.hits + hit, self.tries + 1

    def __str__(self) -> str:
        if not self.tries:
            return "-"
        low, high = stats.binomtest(self.hits, self.tries).proportion_ci(method="exact")
        return f"{100 * self.hits / self.tries:.0f} % ({100 * low:.0f} to {100 * high:.0f}; {self.tries})"


def drawn(
    images: Mapping[str, Sequence[Floats]], texts: Sequence[str], height_px: int, contrast: float, count: int,
    rng: np.random.Generator, turns: Sequence[int] = (0,),
) -> Iterator[tuple[str, Floats, NDArray[np.bool_]]]:  # fmt: skip
    """`count` images with a text each: modality, image, where the ink is."""
    kinds, left = list(images), count
    for _ in range(50 * count):
        kind = kinds[int(rng.integers(len(kinds)))]
        text = texts[int(rng.integers(len(texts)))]
        usable = fonts(next(letter for letter in text if letter.isalpha()))
        sign = rng.choice([-1, 1])
        writing = Writing(
            text, usable[int(rng.integers(len(usable)))], height_px, sign * contrast, int(rng.choice(turns))
        )
        made = write(images[kind][int(rng.integers(len(images[kind])))], writing, rng)
        if made is not None:
            yield kind, *made
            left -= 1
        if not left:
            return


def recall(images: Mapping[str, Sequence[Floats]], names: int) -> dict[str, dict[str, Share]]:
    """By height and contrast, by modality, and of what is written otherwise."""
    out: dict[str, dict[str, Share]] = {"found": {}, "blackened": {}}

    def count(row: str, image: Floats, mask: NDArray[np.bool_], *, black: bool = True, careful: bool = True) -> bool:
        hit = found(image, careful=careful)
        out["found"].setdefault(row, Share()).add(hit)
        if black:
            out["blackened"].setdefault(row, Share()).add(hit and blackened(image, mask) >= 0.95)
        return hit

    for height in HEIGHTS_PX:
        for contrast in CONTRASTS:
            rng = np.random.default_rng((height, round(100 * contrast)))
            for kind, image, mask in drawn(images, NAMES, height, contrast, names, rng):
                hit = count(f"{height} px, contrast {contrast:.0%}", image, mask)
                if height >= 8 and contrast >= 0.2:
                    out["found"].setdefault(f"{kind}, 8 px and more, 20 % and more", Share()).add(hit)
    for script, texts in OTHER_SCRIPTS.items():
        if fonts(texts[0][0]):
            for _, image, mask in drawn(images, texts, 12, 0.5, names, np.random.default_rng(3)):
                count(f"{script}, 12 px, contrast 50%", image, mask)
    for name, turns in {"on its side": (1, 3), "upside down": (2,)}.items():
        for _, image, mask in drawn(images, NAMES, 12, 0.5, names, np.random.default_rng(4), turns):
            count(f"{name}, 12 px, contrast 50%", image, mask)
    for _, image, mask in drawn(images, NAMES, 12, 0.5, names, np.random.default_rng(5)):
        count("in the middle of a cine only (quick look), 12 px, contrast 50%", image, mask, black=False, careful=False)
    return out


def milliseconds(side_px: int, look: Callable[[Floats], object]) -> float:
    image = phantom("US", side_px, np.random.default_rng(0))
    look(image)
    start = time.process_time()
    for _ in range(3):
        look(image)
    return 1000 * (time.process_time() - start) / 3


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=24, help="images of each height and contrast")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tables = recall(backgrounds(options.data, np.random.default_rng(0)), options.names)
    alarms: dict[str, Share] = {}
    for name, images in clean(options.data).items() if options.data else []:
        alarms[name] = Share()
        for image in images:
            alarms[name].add(found(image))
    if alarms:
        alarms["all of these"] = Share(sum(a.hits for a in alarms.values()), sum(a.tries for a in alarms.values()))
    times = {
        f"{side} px, {name}": milliseconds(side, lambda image, exact=careful: found(image, careful=exact))  # type: ignore[misc]
        for side in (128, 256, 512, 1024, 2048)
        for name, careful in (("with care", True), ("quick", False))
    }
    report: dict[str, Mapping[str, object]] = {**tables, "false alarms": alarms, "ms of CPU an image": times}
    if options.json:
        print(json.dumps(report, default=vars))
        return
    for title, rows in report.items():
        print(f"\n{title}")
        for row, value in rows.items():
            print(f"  {row:60} {value if isinstance(value, Share) else f'{value:.0f}'}")


if __name__ == "__main__":
    main()
