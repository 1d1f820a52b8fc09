"""Tables of many columns: what is done to them before anything is learned, all of it public."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround.models import build_model
from wardround.models.columns import BOUND, Columns, Projected, normal_scores
from wardround.models.tabular import Tabular
from wardround.task import MOST_COLUMNS
from wardround_client.isolated import image_by_image

TASK: dict[str, Any] = {"label_column": "ill", "classes": ["no", "yes"], "kind": "table", "features": ["a", "b", "c"]}


def federation(model: dict[str, Any] | None = None, **task: Any) -> Federation:
    return Federation.model_validate({"name": "f", "task": TASK | task, "model": model or {"family": "logistic"}})


def numbers(seed: int, rows: int, columns: int, gaps: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (rows, columns), generator=generator).float() * 10
    x[torch.rand(rows, columns, generator=generator) < gaps] = math.nan
    return x


# --- what may be missing


def test_a_gap_is_the_guess_and_is_told_from_it() -> None:
    agreed = federation(may_miss=["b"], centre=[1.0, 50.0, 0.0], spread=[1.0, 10.0, 1.0])
    model = build_model(agreed)
    z = model.encode(torch.tensor([[2.0, math.nan, 1.0], [2.0, 50.0, 1.0], [2.0, 60.0, 1.0]]))
    assert z.tolist() == [[1, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]]
    assert model.scaling_size == 4 and model.layout.size == 2 * (4 + 1)
    assert build_model(federation(may_miss=["*"])).scaling_size == 6


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"may_miss": ["d"]}, "'d', which features does not"),
        ({"kind": "image", "features": [], "may_miss": ["*"]}, "are for tables"),
        ({"ranks": True, "centre": [1.0] * 3}, "ranks have no unit"),
        ({"features": "genes.csv"}, "a file that ends in .txt"),
        ({"features": [f"c{at}" for at in range(MOST_COLUMNS + 1)]}, "at most 20000"),
    ],
)
def test_an_agreement_that_cannot_be_is_refused(task: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        federation({"family": "encoder-head"} if task.get("kind") == "image" else None, **task)


def test_what_was_agreed_before_has_the_fingerprint_that_it_had() -> None:
    """Of the release before gaps and ranks: digests, caches and checkpoints go on."""
    assert Tabular.logistic(Columns(2, (55.0, 240.0), (15.0, 50.0)), 2).fingerprint.startswith("92e3410ba491744a")
    assert Tabular.mlp(3, 2, 4).fingerprint.startswith("304891fe978d03ad")
    assert Columns(2, (0.0, 1.0), (1.0, 2.0), bound=BOUND).fingerprint.startswith("5952a807058142ed")


def test_whatever_is_frozen_is_in_the_fingerprint() -> None:
    wide = {"family": "projection", "features": 2}
    found = {
        build_model(federation(model, **task)).fingerprint
        for model in ({"family": "logistic"}, wide, wide | {"features": 3})
        for task in ({}, {"may_miss": ["a"]}, {"may_miss": ["b"]}, {"ranks": True}, {"centre": [1.0, 0.0, 0.0]})
    }
    assert len(found) == 15


# --- ranks


@given(seed=st.integers(0, 999), gaps=st.sampled_from([0.0, 0.3, 1.0]))
def test_ranks_are_the_normal_scores_of_mean_ranks(seed: int, gaps: float) -> None:
    x = numbers(seed, 4, 9, gaps)
    found = normal_scores(x).numpy()
    for row, scores in zip(x.numpy(), found, strict=True):
        known = ~np.isnan(row)
        expected = stats.norm.ppf((stats.rankdata(row[known]) - 0.5) / max(1, known.sum()))
        np.testing.assert_allclose(scores[known], expected, atol=1e-5)
        assert np.isnan(scores[~known]).all()


@given(seed=st.integers(0, 999))
def test_a_platform_that_measures_in_another_unit_changes_no_rank(seed: int) -> None:
    x, front = numbers(seed, 5, 7, 0.2), Columns(7, ranks=True, gaps=(0, 3))
    assert torch.equal(front(x), front((x / 16).exp() * 3 + 1))


# --- projections


def test_projections_keep_distances_about_and_every_number_in_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2000, generator=generator)
    z = Projected(Columns(2000), 96)(x)
    ratio = torch.pdist(z) ** 2 / torch.pdist(x) ** 2 * 2000 / 96
    assert 0.9 < ratio.mean() < 1.1 and ratio.std() < 0.25
    assert Projected(Columns(2000), 96)(1e30 * x).abs().max() <= BOUND


@pytest.mark.parametrize("model", [{"family": "logistic"}, {"family": "projection", "features": 5}])
@given(seed=st.integers(0, 99), beside=st.integers(0, 5), threads=st.sampled_from([1, 3]))
def test_who_else_is_encoded_changes_no_bit(model: dict[str, Any], seed: int, beside: int, threads: int) -> None:
    """P62: of ranks, flags and projections."""
    columns = [f"c{at}" for at in range(301)]
    encode = build_model(federation(model, features=columns, ranks=True, may_miss=["*"])).encode
    x = numbers(seed, 1 + beside, 301, 0.1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(image_by_image(encode, x)[beside], image_by_image(encode, x[beside:])[0])
    finally:
        torch.set_num_threads(before)


# --- the file of names

TOML = """
name = "wide"
[task]
label_column = "ill"
classes = ["no", "yes"]
kind = "table"
features = "genes.txt"  # one name a line
[model]
family = "projection"
"""


def test_a_file_of_names_is_the_names(tmp_path: Path) -> None:
    names = [f"ENSG{at:011d}" for at in range(MOST_COLUMNS)]
    (tmp_path / "federation.toml").write_text(TOML)
    (tmp_path / "genes.txt").write_text("\r\n".join(["", *names, ""]))
    read = load_federation(tmp_path / "federation.toml")
    assert read.task.features == tuple(names)
    assert Federation.from_canonical(read.canonical()) == read
    (tmp_path / "genes.txt").write_text("\n".join([*names[:-1], "another"]))
    assert load_federation(tmp_path / "federation.toml").digest != read.digest, "approved is what the names are"


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("genes.txt", None, "put the file that task.features names beside federation.toml"),
        ("genes.txt", "a\na\n", "a value twice"),
        ("genes.txt", "a\n  \n\u202eb\n", "invisible"),
        ("genes.txt", "", "a table needs them"),
        ("genes.txt", 'a", "b\n', None),
        ("../genes.txt", "a\n", "a file that ends in .txt"),
        ("/etc/passwd", "a\n", "a file that ends in .txt"),
    ],
)
def test_a_file_of_names_that_is_none_is_refused_in_words(
    tmp_path: Path, file: str, content: str | None, why: str | None
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "federation.toml").write_text(TOML.replace("genes.txt", file))
    if content is not None:
        for folder in (tmp_path, tmp_path / "here"):
            (folder / "genes.txt").write_text(content)
    if why is None:
        assert load_federation(tmp_path / "here" / "federation.toml").task.features == ('a", "b',)
        return
    with pytest.raises(ConfigError, match=why):
        load_federation(tmp_path / "here" / "federation.toml")
