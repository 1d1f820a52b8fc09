"""What an independent decoder makes of a file: dcmtk's dcm2pnm and its like (Debian: dcmtk), one process a file.

Compared is what both can show: the first frame at full size, after the modality and the VOI transform, with the
polarity that the file asks for. Where a file names no window, both show it from its least to its greatest value,
because each program has a default of its own. Padding and overlays are left out.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from tests.client.intake.dicom_files import EVERYTHING

from wardround_client.intake.dicom.attributes import GREY, UnusableError, quiet
from wardround_client.intake.dicom.codestream import jpeg
from wardround_client.intake.dicom.decode import decoded
from wardround_client.intake.dicom.frames import encapsulated
from wardround_client.intake.dicom.header import Header, Look, read
from wardround_client.intake.dicom.pixels import _modality, colour, grey
from wardround_client.intake.dicom.tables import Table
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection

RECIPE = ImageRecipe(8, 1, greatest_pixels=1 << 20, greatest_bytes=1 << 26)
PROGRAMS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")
WHITE = 65535
_LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless)


@dataclass(frozen=True)
class Whole:
    """An item of the intake that is rendered at full size, for a comparison."""

    path: Path
    line: int = 0
    labels: None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def fingerprint(self) -> str:
        return ""

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        try:
            with quiet():
                image = rendered(read(self.path, recipe, EVERYTHING))
        except UnusableError as unusable:
            return unusable.rejection
        return Instance(b"", b"", b"", np.rint(image * WHITE).astype(np.uint16)[None])


def rendered(header: Header) -> NDArray[np.float64]:
    """The first frame at full size, in [0, 1]."""
    look = next(iter(header.looks.values()))
    frame = next(decoded(header))
    if header.photometric not in GREY:
        return np.asarray(colour(frame, header), np.float64)
    plain = dataclasses.replace(header, padding=None)
    if look.voi is None:
        values = np.asarray(_modality(frame, look), np.float64)
        low, high = values.min(), values.max()
        image = (values - low) / ((high - low) or 1)
        return np.asarray(1 - image if header.inverse else image)
    return np.asarray(grey(frame, plain, look), np.float64)


def theirs(path: Path, header: Header) -> NDArray[np.float64] | None:
    """What dcmtk shows, in [0, 1]; None where it cannot."""
    program = {uid.JPEGLSLossless: "dcml2pnm", uid.JPEGLSNearLossless: "dcml2pnm"}.get(header.syntax, "dcmj2pnm")
    look = next(iter(header.looks.values()))
    asked = _options(header, look) if header.photometric in GREY else []
    call = [program, "-ll", "warn", "-O", "-S", "-a", "+opw", *asked, str(path)]
    done = subprocess.run(call, capture_output=True, check=False, timeout=60)
    if done.returncode or not done.stdout.startswith((b"P2", b"P3")) or b"Corrupt JPEG" in done.stderr:
        return None  # within a JPEG's scan no decoder knows what is damaged, and each guesses on in its own way
    words = b"\n".join(line for line in done.stdout.split(b"\n") if not line.startswith(b"#")).split()
    columns, rows, white = (int(word) for word in words[1:4])
    values = np.array(words[4:], np.float64) / white
    return values.reshape((rows, columns) if words[0] == b"P2" else (rows, columns, 3))


def _options(header: Header, look: Look) -> list[str]:
    if look.voi is None:
        return ["+Wfl", "+Wm"]
    if isinstance(look.voi, Table):
        return ["+Wl", "1"]
    centre, width, function = look.voi
    if function == "LINEAR_EXACT":  # which dcmtk does not know; the same line in other words
        return ["+Wfl", "+Ww", f"{centre + 0.5:.9g}", f"{width + 1:.9g}"]
    return ["+Wi", "1"]


def _rounding(look: Look) -> float:
    """dcmtk rounds modality values to whole numbers: half of one is as much as the window makes of it."""
    steep = 1 / look.voi[1] if isinstance(look.voi, tuple) else 0.01
    return 0.012 + min(0.5, 1.1 * steep)


def available() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


def _no_oracle(header: Header, look: Look) -> bool:
    """Where dcmtk is known to show something else, or nothing that can be relied on. These are all such kinds."""
    if header.dataset.get("SharedFunctionalGroupsSequence") or header.dataset.get("PerFrameFunctionalGroupsSequence"):
        return True  # it does not read functional groups
    if isinstance(look.voi, Table) and look.voi.needed < look.voi.bits:
        return True  # a table that does not fill the bits it declares: dark there, corrected here
    if header.allocated == 32 and np.abs(_modality(next(decoded(header)), look)).max() >= 2**30:
        return True  # it counts in 32 bits, and wraps
    with header.element.open() as stream:
        if header.syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit) and header.samples == 3:
            frames = encapsulated(header.element, header.frames, header.offsets, by_marker=True)
            content = frames.read(stream, 0, 1 << 26)
            if max(content[content.index(b"\xff\xdb") + 5 :][:1], default=0) > 60:
                return True  # sums that its inverse transform wraps
            said = jpeg(content).ybr
            return said is not None and said != header.photometric.startswith("YBR")
    return False  # a JPEG that says of itself how its colours were transformed, against the header: followed here


def difference(path: Path, ours: NDArray[np.uint16]) -> str | None:
    """Why the two pictures are not one, or ""; None where there is nothing to compare with."""
    with quiet():
        header = read(path, RECIPE, EVERYTHING)
    look = next(iter(header.looks.values()))
    other = None if _no_oracle(header, look) else theirs(path, header)
    if other is None:
        return None
    mine = ours.astype(np.float64) / WHITE
    if mine.shape != other.shape:
        return f"shape {mine.shape}, dcmtk {other.shape}"
    if header.syntax in _LOSSY:
        # Between two decoders of lossy JPEG the transform is rounded, clipped and upsampled differently.
        weights = np.array([0.299, 0.587, 0.114])
        mine, other = (image @ weights if image.ndim == 3 else image for image in (mine, other))
        apart = np.abs(mine - other)
        alike = np.mean(apart > 0.08) < 0.6
    else:
        apart = np.abs(mine - other)
        if header.allocated == 8 and mine.size % 2:
            apart.flat[-1] = 0  # which it reads beside its place
        fractions = isinstance(look.modality, tuple) and any(value % 1 for value in look.modality)
        alike = np.mean(apart > _rounding(look) + 0.05 * fractions) <= 0.05 * fractions
    if alike:
        return ""
    return f"{apart.max():.4f} at most, {apart.mean():.4f} in the mean"
