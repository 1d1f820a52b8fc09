"""Files that are wrong: cut, or with other bytes, attributes or codestreams. One number, one file."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from tests.fuzz.made import made

from wardround_client.intake.dicom.attributes import quiet

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
_LARGEST = 1 << 18
_NUMBERS: dict[str, Sequence[Any]] = {
    "Rows": [0, 1, 7, 64, 65, 128, 4096, 65535],
    "Columns": [0, 1, 7, 64, 65, 128, 4096, 65535],
    "NumberOfFrames": ["0", "1", "2", "3", "100", "1000000"],
    "SamplesPerPixel": [0, 1, 2, 3, 4],
    "PlanarConfiguration": [0, 1, 2],
    "PixelRepresentation": [0, 1, 2],
    "BitsAllocated": [1, 8, 12, 16, 32, 64],
    "BitsStored": [0, 1, 7, 8, 10, 12, 15, 16, 32],
    "HighBit": [0, 7, 11, 15, 31],
    "PhotometricInterpretation": [
        *(
            "MONOCHROME1",
            "MONOCHROME2",
            "PALETTE COLOR",
            "RGB",
            "YBR_FULL",
            "YBR_FULL_422",
            "YBR_RCT",
            "YBR_ICT",
            "ARGB",
        )
    ],
    "PresentationLUTShape": ["IDENTITY", "INVERSE", "LIN OD", ""],
    "RescaleSlope": ["0", "1", "-1", "1,5", "1e-30", "NaN", "1e300"],
    "RescaleIntercept": ["0", "-1024", "1e300", "x"],
    "WindowCenter": ["40", "40,5", "-1e9", "", "inf", "0"],
    "WindowWidth": ["0", "1", "-400", "400", "0,5", "1e-9"],
    "VOILUTFunction": ["LINEAR", "SIGMOID", "LINEAR_EXACT", "CUBIC"],
    "PixelPaddingValue": [0, 1, 65535],
    "Modality": ["CT", "PT", "MR", "SEG", ""],
}


def seeds(folder: Path | None) -> list[Path]:
    """Files to start from, small ones: pydicom's, and those of `folder`."""
    found = [path for path in sorted(BUNDLED.rglob("*.dcm")) if 1000 < path.stat().st_size < _LARGEST]
    if folder is not None:
        found += [path for path in sorted(folder.rglob("*.dcm")) if path.stat().st_size < _LARGEST]
    return found


def mutant(number: int, seed: int, files: Sequence[Path]) -> bytes:
    """The file of this number."""
    rng = random.Random(f"{seed}:{number}")
    content = _start(rng, files)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = rng.choice([_flips, _flips, _cut, _splice, _attribute, _attribute, _codestream, _codestream])(
            rng, content
        )
    return content


def _start(rng: random.Random, files: Sequence[Path]) -> bytes:
    kind = rng.random()
    if kind < 0.45 and files:
        return _identified(rng.choice(files))
    if kind < 0.6 and (coded := _by_dcmtk()):
        return rng.choice(coded)
    while True:
        try:
            return made(rng.choice)
        except RuntimeError:  # an encoder of pydicom's does not take such a picture
            continue


@cache
def _identified(path: Path) -> bytes:
    """A file with the identity that the intake asks for, so that it is not refused before its pixels are read."""
    content = path.read_bytes()
    try:
        with quiet():
            data = pydicom.dcmread(io.BytesIO(content))
            if data.get("PatientID"):
                return content
            data.PatientID = "P"
            out = io.BytesIO()
            data.save_as(out)
            return out.getvalue()
    except Exception:  # it is wrong already
        return content


@cache
def _by_dcmtk() -> list[bytes]:
    """Pictures that dcmtk compressed: JPEG of 8 and 12 bits, lossless JPEG, JPEG-LS, RLE; [] where it is not here."""
    if not shutil.which("dcmcjpeg"):
        return []
    ways = [["dcmcjpeg", "+eb"], ["dcmcjpeg", "+ee"], ["dcmcjpeg", "+e1"], ["dcmcjpeg", "+el"], ["dcmcjpls", "+el"]]
    ways += [["dcmcjpls", "+en"], ["dcmcrle"], ["dcmcjpeg", "+eb", "+cr"], ["dcmcjpeg", "+eb", "+fs", "64"]]
    out: list[bytes] = []
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a", Path(folder) / "b"
        for way in ways * 3:
            source.write_bytes(made(rng.choice, [pydicom.uid.ExplicitVRLittleEndian]))
            done = subprocess.run([*way, str(source), str(target)], capture_output=True, check=False, timeout=60)
            if not done.returncode and target.exists():
                out.append(target.read_bytes())
    return out


def _flips(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 2, 8, 40])):
        if data:
            data[rng.randrange(len(data))] = rng.choice([0, 255, 1, 127, 128, rng.randrange(256)])
    return bytes(data)


def _cut(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] if rng.random() < 0.5 else content[: at // 2 * 2]


def _splice(rng: random.Random, content: bytes) -> bytes:
    """A piece twice, or not at all, or zeroes over it (a sparse copy)."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice([1, 2, 8, 100, 4000]))
    middle = rng.choice([content[start:end] * 2, b"", bytes(end - start)])
    return content[:start] + middle + content[end:]


def _parsed(content: bytes) -> Dataset | None:
    try:
        with quiet():
            data = pydicom.dcmread(io.BytesIO(content))
            return data if "PixelData" in data else None
    except Exception:
        return None


def _attribute(rng: random.Random, content: bytes) -> bytes:
    """Another value of an attribute, or none, or another transfer syntax."""
    data = _parsed(content)
    if data is None:
        return _flips(rng, content)
    try:
        with quiet(), config.disable_value_validation():
            if rng.random() < 0.1:
                syntaxes = [uid for uid in pydicom.uid.AllTransferSyntaxes if not uid.is_private]
                data.file_meta.TransferSyntaxUID = rng.choice(syntaxes)
            elif rng.random() < 0.15:
                elements = [element.tag for element in data if element.tag.group == 0x28]
                del data[rng.choice(elements)]
            else:
                keyword = rng.choice(list(_NUMBERS))
                setattr(data, keyword, rng.choice(list(_NUMBERS[keyword])))
            out = io.BytesIO()
            data.save_as(out)
            return out.getvalue()
    except Exception:  # pydicom cannot write it
        return _flips(rng, content)


def _codestream(rng: random.Random, content: bytes) -> bytes:
    """Bytes within the pixels only, and the first of them more often: a codestream describes itself there."""
    at = max(content.rfind(b"\xe0\x7f\x10\x00"), content.rfind(b"\x7f\xe0\x00\x10"))
    if at < 0 or at + 40 > len(content):
        return _flips(rng, content)
    reach = rng.choice([60, 200, len(content) - at])
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 6])):
        place = min(len(data) - 1, at + 12 + rng.randrange(max(1, reach - 12)))
        data[place] = rng.choice([0, 255, 1, data[place] ^ (1 << rng.randrange(8)), rng.randrange(256)])
    if rng.random() < 0.2:
        start = at + 12 + rng.randrange(len(data) - at - 12)
        del data[start : start + rng.choice([1, 10, 500])]
    return bytes(data)


_WAYS = (_flips, _flips, _cut, _splice, _attribute, _attribute, _attribute, _codestream, _codestream, _codestream)
