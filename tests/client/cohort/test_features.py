"""Cached features: another agreement encodes nothing, the bits are the same, and who withdraws leaves none."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as drawn
from hypothesis import strategies as st
from torch import Tensor

from wardround_client.cohort import features
from wardround_client.cohort.features import FOLDER, FeatureCache, forget_features
from wardround_client.isolated import image_by_image

KEY, CPU = b"k" * 32, torch.device("cpu")
OWNERS = [bytes([65 + number]) * 32 for number in range(8)]


class Encode:
    """An encoder of a few numbers that counts the images it saw, zeros left out; `cells` rows an image."""

    def __init__(self, cells: int = 1) -> None:
        self.seen, self.cells = 0, cells
        self.weight = torch.randn(48, 5 * cells, generator=torch.Generator().manual_seed(1))

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += int(x.any())
        if (x > 9).any():
            raise ValueError("an odd image")
        return (x.flatten(1) @ self.weight).view(len(x) * self.cells, 5)


def pictures(count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def cache(folder: Path, fingerprint: str = "f") -> FeatureCache:
    return FeatureCache(folder, KEY, fingerprint, CPU)


@pytest.mark.parametrize("cells", [1, 4])
def test_the_second_agreement_encodes_nothing_and_has_the_same_bits(tmp_path: Path, cells: int) -> None:
    encode, x = Encode(cells), pictures()
    expected = image_by_image(encode, x)
    first = cache(tmp_path).encoded(encode, x, OWNERS)
    seen = encode.seen
    again = cache(tmp_path).encoded(encode, x.flip(0), OWNERS[::-1]).view(8, -1).flip(0)
    assert encode.seen - seen == 1  # its shape is asked with one image
    assert torch.equal(first, expected) and torch.equal(again, expected.view(8, -1))


@drawn(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    known=st.sets(st.integers(0, 7)),
    asked=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    cells=st.sampled_from([1, 3]),
)
def test_whatever_is_known_already_the_bits_are_those_of_computing(
    tmp_path_factory: pytest.TempPathFactory, known: set[int], asked: list[int], cells: int
) -> None:
    folder, encode, x = tmp_path_factory.mktemp("home"), Encode(cells), pictures()
    if known:
        cache(folder).encoded(encode, x[sorted(known)], [OWNERS[at] for at in sorted(known)])
    found = cache(folder).encoded(encode, x[asked], [OWNERS[at] for at in asked])
    assert torch.equal(found, image_by_image(encode, x[asked]))


def test_another_encoder_and_another_key_find_nothing(tmp_path: Path) -> None:
    x = pictures()
    cache(tmp_path).encoded(Encode(), x, OWNERS)
    for other in (cache(tmp_path, "g"), FeatureCache(tmp_path, b"j" * 32, "f", CPU)):
        encode = Encode()
        other.encoded(encode, x, OWNERS)
        assert encode.seen == 8
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / FOLDER).iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700


def test_an_image_that_cannot_be_encoded_is_nan_and_not_kept(tmp_path: Path) -> None:
    x = pictures()
    x[3] = 10
    for _ in range(2):
        found = cache(tmp_path).encoded(Encode(), x, OWNERS)
        assert found[3].isnan().all() and found[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()
    assert cache(tmp_path).encoded(Encode(), x[:0], []).shape == (0, 5)


def test_who_left_the_cohort_has_no_entry_left(tmp_path: Path) -> None:
    encode, x = Encode(), pictures()
    cache(tmp_path).encoded(encode, x, OWNERS)
    cache(tmp_path).keep_only(set(OWNERS[1:]))
    (file,) = (tmp_path / FOLDER).iterdir()
    assert OWNERS[0] not in file.read_bytes() and OWNERS[1] in file.read_bytes()
    forget_features(tmp_path)
    assert not list((tmp_path / FOLDER).iterdir())
    cache(tmp_path).keep_only(set())
    forget_features(tmp_path / "absent")


@drawn(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_cache_is_nobodys_loss(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder, encode, x = tmp_path_factory.mktemp("home"), Encode(), pictures()
    expected = cache(folder).encoded(encode, x, OWNERS)
    (file,) = (folder / FOLDER).iterdir()
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    schema = max(whole.find(b"entries"), 0)  # whose damage SQLite quotes in what it says
    places = st.one_of(st.integers(0, 8191), st.integers(schema, schema + 100))
    for _ in range(data.draw(st.integers(1, 30))):
        if (at := data.draw(places)) < len(whole):
            whole[at] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    assert torch.equal(cache(folder).encoded(encode, x, OWNERS), expected)
    cache(folder).keep_only(set())
    assert torch.equal(cache(folder).encoded(encode, x, OWNERS), expected)


def damaged_name(folder: Path) -> None:
    """The table's name in the file is no text any more, and neither is what SQLite says about it."""
    (file,) = (folder / FOLDER).iterdir()
    file.write_bytes(file.read_bytes().replace(b"entries", b"\xffntries", 2))


def test_a_name_that_is_no_text_costs_the_cache_alone(tmp_path: Path) -> None:
    x, expected = pictures(), image_by_image(Encode(), pictures())
    cache(tmp_path).encoded(Encode(), x, OWNERS)
    damaged_name(tmp_path)
    assert torch.equal(cache(tmp_path).encoded(Encode(), x, OWNERS), expected)
    damaged_name(tmp_path)
    cache(tmp_path).keep_only(set())
    again = Encode()
    cache(tmp_path).encoded(again, x, OWNERS)
    cache(tmp_path).encoded(again, x, OWNERS)
    assert again.seen == 8 + 1, "the damaged file was removed, and a new one serves"


@pytest.mark.parametrize("error", [MemoryError(), ValueError(), SystemError(), sqlite3.Warning(), OSError()])
def test_whatever_the_library_raises_costs_the_cache_alone(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pictures()
    cache(tmp_path).encoded(Encode(), x, OWNERS)

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sqlite3, "connect", broken)
    assert torch.equal(cache(tmp_path).encoded(Encode(), x, OWNERS), image_by_image(Encode(), x))
    cache(tmp_path).keep_only(set())


def test_a_disk_that_is_full_or_a_folder_that_is_none_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"")
    x = pictures()
    assert torch.equal(cache(tmp_path).encoded(Encode(), x, OWNERS), image_by_image(Encode(), x))


def test_processes_at_once_get_the_same_bits(tmp_path: Path) -> None:
    x, found = pictures(), {}

    def work(number: int) -> None:
        found[number] = cache(tmp_path).encoded(Encode(), x.roll(number, 0), OWNERS[-number:] + OWNERS[:-number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    expected = image_by_image(Encode(), x)
    assert all(torch.equal(found[number], expected.roll(number, 0)) for number in range(4))


def test_the_folder_stays_within_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_BYTES", 40_000)
    for fingerprint in "abcdefgh":
        cache(tmp_path, fingerprint).encoded(Encode(), pictures(), OWNERS)
    assert sum(file.stat().st_size for file in (tmp_path / FOLDER).iterdir()) <= 40_000
