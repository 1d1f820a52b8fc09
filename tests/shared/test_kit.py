"""A startup kit is a stranger's file: what is read is what was made, byte for byte, or it is refused in words."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.errors import ConfigError
from wardround.kit import AGREEMENT, ANSWERS, INSTRUCTIONS, INVITATION, Kit, digest, spoken

INVITED = b'address = "fl.example.org:9092"\nendorsements = []\nca_pem = """\nnot looked at here\n"""\n'
PLAIN = b"""name = "hearts"
[task]
label_column = "finding"
classes = ["none", "nodule"]
"""
ENCODER = b"\0ONNX" * 100
PINNED = PLAIN + f'[model]\nencoder = "e.onnx"\nencoder_sha256 = "{hashlib.sha256(ENCODER).hexdigest()}"\n'.encode()
KITS = [Kit.of("st-anna", INVITED, PLAIN, None), Kit.of("st-anna", INVITED, PINNED, ENCODER)]
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(tmp_path: Path, data: bytes) -> Kit:
    """Also: nothing is read that is not exactly the file."""
    file = tmp_path / "kit.zip"
    file.write_bytes(data)
    kit, found = Kit.read(file)
    assert kit.build() == data and found == hashlib.sha256(data).hexdigest()
    return kit


@pytest.mark.parametrize("kit", KITS)
def test_a_kit_is_read_as_it_was_made_and_made_alike_each_time(tmp_path: Path, kit: Kit) -> None:
    assert read(tmp_path, kit.build()) == kit
    again = Kit.of("st-anna", kit.invitation, kit.agreement, kit.encoder).build()
    assert digest(again) == digest(kit.build())
    assert spoken(digest(again)).replace(" ", "") == digest(again)
    assert Kit.of("st-else", kit.invitation, kit.agreement, kit.encoder).build() != again


@relaxed
@given(st.data())
def test_a_changed_kit_is_refused_or_is_another_whole_kit(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut, doubled or put in: whatever is read builds the same bytes (see `read`), so nothing hides."""
    whole = bytearray(data.draw(st.sampled_from(KITS)).build())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "double", "number"])):
            case "set" if at < len(whole):
                whole[at] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 200))]
            case "insert":
                whole[at:at] = data.draw(st.binary(max_size=40))
            case "number":
                whole[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1])))
            case _:
                whole[at:at] = whole[at : at + data.draw(st.integers(1, 400))]
    try:
        read(tmp_path, bytes(whole))
    except ConfigError as error:
        assert len(str(error)) < 2000


names = st.one_of(
    st.sampled_from([INSTRUCTIONS, INVITATION, AGREEMENT, ANSWERS, "e.onnx", "hospital.toml"]),
    st.sampled_from(["../../hospital.toml", "/etc/passwd", "kit/../../x", "C:\\x", ".", "\\\\host\\share"]),
    st.text(min_size=1, max_size=30),
)


@relaxed
@given(
    files=st.lists(st.tuples(names, st.binary(max_size=50), st.sampled_from([0, 8, 12, 14])), max_size=8),
    mode=st.sampled_from([0, 0o120777, 0o40755, 0o104755, 0o20666]),
    whole=st.booleans(),
    comment=st.binary(max_size=10),
)
def test_other_zips_are_refused(
    tmp_path: Path, files: list[tuple[str, bytes, int]], mode: int, whole: bool, comment: bytes
) -> None:
    """Paths, links, folders, devices, second files of one name, compression, comments: beside the good ones, too."""
    out = io.BytesIO()
    kit = KITS[1]
    with pytest.MonkeyPatch.context() as quiet, zipfile.ZipFile(out, "w") as archive:
        quiet.setattr("warnings.warn", lambda *_, **__: None)  # zipfile's, of a second file of one name
        for name, content in kit.files().items() if whole else ():
            archive.writestr(zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0)), content)
        for name, content, method in files:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content, method)
        archive.comment = comment
    if out.getvalue() == kit.build():
        return
    with pytest.raises(ConfigError, match=r"startup kit|kit\.zip"):
        read(tmp_path, out.getvalue())


def test_a_bomb_is_refused_before_it_is_unpacked_or_listed(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in KITS[0].files():
            archive.writestr(name, b"\0" * (1 << 26))
    with pytest.raises(ConfigError, match="not a startup kit"):
        read(tmp_path, out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(3000):
            archive.writestr(str(number), b"")
    opened: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", lambda *given: opened.append(given))
        with pytest.raises(ConfigError, match="not a startup kit"):
            read(tmp_path, out.getvalue())
    assert not opened


@pytest.mark.parametrize("extra", ["patients = 400", "epsilon = 1e9", 'images = "/"', 'labels = "x"', "policy = 1"])
def test_a_kit_cannot_answer_for_the_hospital(tmp_path: Path, extra: str) -> None:
    good = KITS[0]
    for answers in (good.answers + extra.encode(), extra.encode()):
        kit = Kit("x", good.federation, good.invitation, good.agreement, None, good.instructions, answers)
        with pytest.raises(ConfigError, match=r"answers for the hospital|unknown key"):
            read(tmp_path, kit.build())


def test_an_encoder_that_is_another_or_missing_or_too_many(tmp_path: Path) -> None:
    for agreement, encoder in ((PINNED, None), (PINNED, b"another"), (PLAIN, ENCODER)):
        with pytest.raises(ConfigError, match="encoder"):
            Kit.of("st-anna", INVITED, agreement, encoder)
    good = KITS[1]
    forged = Kit("st-anna", good.federation, INVITED, PINNED, b"another", good.instructions, good.answers)
    with pytest.raises(ConfigError, match="another file"):
        read(tmp_path, forged.build())


def test_a_private_key_is_not_packed_and_not_read(tmp_path: Path) -> None:
    secret = INVITED.replace(b"not looked at here", b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(ConfigError, match="private key"):
        Kit.of("st-anna", secret, PLAIN, None)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\5\6" + b"\0" * 18, b"\0" * 100_000, PLAIN])
def test_what_is_no_zip_or_an_empty_one(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match="not a startup kit"):
        read(tmp_path, data)


def test_a_fifo_and_a_folder_are_no_kits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Kit.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        Kit.read(tmp_path / "pipe")
