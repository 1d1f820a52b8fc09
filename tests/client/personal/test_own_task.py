"""A hospital's classes under other names: what its task file may say, and what of the federation's head is theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.chosen import UNITS, algorithm
from tests.client.conftest import FEDERATION_TOML
from tests.client.personal.test_shared_model import write_release
from torch import Tensor

from wardround.config import load_federation
from wardround.errors import ConfigError
from wardround.labels.several import kind as several
from wardround.meta.embedded import Embedding
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround.task import Task
from wardround.text import shown
from wardround.toml import loads
from wardround_client.hospital import Hospital
from wardround_client.personal.own_task import TaskFile, origins, shares
from wardround_client.personal.shared_model import SharedModel, choose

THEIRS = ("akiec", "bcc", "mel", "nv")
CASES = [(name, unit) for name, units in UNITS.items() for unit in units]


def task(classes: tuple[str, ...], column: str = "dx", labels: str = "one") -> Task:
    return Task(label_column=column, classes=classes, labels=labels)


def objective(method: str, unit: str, classes: int, labels: str = "one") -> Objective:
    model = algorithm(method, tasks=unit).extended(Tabular.mlp(3, classes, 4))
    loss = Objective(model, torch.zeros(3), torch.ones(3))
    return loss if labels == "one" else Objective(model, torch.zeros(3), torch.ones(3), labels=several)


def moved(method: str, unit: str, like: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What a federation and a hospital with other names predict for the same rows, [n, theirs] and [n, ours]."""
    chosen = algorithm(method, tasks=unit)
    theirs, ours = objective(method, unit, like.shape[1]), objective(method, unit, like.shape[0])
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(theirs.model.layout.size, generator=generator)
    if isinstance(chosen, Embedding):  # which holds there for which classes there is a mean
        theta = theirs.with_head(theta, theirs.head(theta)[0], torch.ones(like.shape[1]))
    learned = {name: each.abs() for name, each in theirs.extras(theta).items() if name == "counts"}
    theta = theirs.with_extras(theta, **learned)
    here = chosen.for_classes(theta, theirs, ours, ours.model.initial(), like)
    x = torch.randn(20, 3, generator=generator)
    return (
        chosen.predict(chosen.unadapted(theta, theirs), x, theirs),
        chosen.predict(chosen.unadapted(here, ours), x, ours),
    )


@pytest.mark.parametrize(("method", "unit"), CASES)
def test_other_names_in_another_order_predict_what_the_federation_predicts(method: str, unit: str) -> None:
    order = [2, 0, 3, 1]
    theirs, ours = moved(method, unit, torch.eye(4)[order], seed=1)
    torch.testing.assert_close(ours, theirs[:, order], rtol=1e-4, atol=1e-4)


@given(st.permutations(range(5)), st.integers(0, 99))
def test_of_a_head_that_is_learned_names_change_no_bit(order: list[int], seed: int) -> None:
    theirs, ours = moved("fedavg", "hospitals", torch.eye(5)[order], seed)
    torch.testing.assert_close(ours.softmax(1), theirs[:, order].softmax(1), rtol=1e-6, atol=1e-7)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=9), st.integers(0, 99))
def test_parts_of_a_class_are_predicted_where_the_class_was(parents: list[int], seed: int) -> None:
    parents = [*range(4), *parents]
    theirs, ours = moved("fedavg", "hospitals", torch.eye(4)[parents], seed)
    assert torch.equal(torch.tensor(parents)[ours.argmax(1)], theirs.argmax(1))


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6), st.integers(0, 99))
def test_a_class_of_several_lies_among_them_and_below_their_mixture(groups: list[int], seed: int) -> None:
    names = [str(number) for number in range(6)]
    like = {
        str(group): tuple(n for n, g in zip(names, groups, strict=True) if g == group) for group in sorted({*groups})
    }
    theirs, ours = moved("fedavg", "hospitals", shares(like, names), seed)
    for place, parts in enumerate(like.values()):
        of_parts = theirs[:, [names.index(each) for each in parts]]
        mixture = of_parts.logsumexp(1) - torch.tensor(float(len(parts))).log()
        assert (ours[:, place] <= mixture + 1e-4).all()
        assert (ours[:, place] >= of_parts.min(1).values - 1e-4).all()


def test_all_classes_in_one_and_none_in_another_tell_nothing_apart_but_the_mean() -> None:
    theirs, ours = moved("fedavg", "hospitals", shares({"any": tuple("abcd"), "else": ()}, "abcd"), seed=3)
    torch.testing.assert_close(ours[:, 0], theirs.mean(1))
    assert not ours[:, 1].any()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("NV", "nv"), ("basal-cell  carcinoma", "Basal cell carcinoma"), ("basal_cell", "basal cell"),
        ("\uff2d\uff25\uff2c", "mel"), ("nv", "nv"),
    ],
)  # fmt: skip
def test_a_name_is_the_same_whatever_its_case_and_blanks(ours: str, theirs: str) -> None:
    found = origins(_unchecked((ours, "scar")), _unchecked((theirs, "x")), {})
    assert found == {ours: (theirs,), "scar": ()}


def _unchecked(classes: tuple[str, ...]) -> Task:
    return task(("a", "b")).model_copy(update={"classes": classes})


@pytest.mark.parametrize(
    ("ours", "theirs"), [("HER2+", "HER2-"), ("grade 1", "grade 2"), ("none", "bone"), ("T12", "T1-2")]
)
def test_names_that_differ_in_what_counts_are_not_the_same(ours: str, theirs: str) -> None:
    assert origins(task((ours, "scar")), task((theirs, "x")), {}) == {ours: (), "scar": ()}


def test_where_only_case_tells_two_classes_apart_only_what_is_written_alike_is_the_same() -> None:
    found = origins(task(("nv", "NV", "Mel")), task(("nv", "mel", "MEL")), {})
    assert found == {"nv": ("nv",), "NV": (), "Mel": ()}


@pytest.mark.parametrize("name", ["yes", "No", "1", "0", "-1", "positive"])
def test_an_answer_to_another_question_is_no_class(name: str) -> None:
    ours, theirs = (name, "scar"), (name, "nv")
    assert origins(task(ours), task(theirs), {})[name] == (name,)
    assert origins(task(ours, "urgent"), task(theirs), {})[name] == ()
    assert origins(task(ours, "urgent"), task(theirs), {name: [name]})[name] == (name,), "unless it is declared"
    assert origins(task(ours, labels="several"), task(theirs), {})[name] == ()


FEDERATION = FEDERATION_TOML.replace('"normal", "nodule", "diffuse", "effusion"', ", ".join(map(repr, THEIRS)))
OWN = """[task]
label_column = "what"
classes = ["common nevus", "keratinocyte", "melanoma", "scar"]

[task.same_as]
"common nevus" = "nv"
keratinocyte = ["akiec", "bcc"]
melanoma = ["mel"]
"""


def chosen(hospital: Hospital, folder: Path, own: str, federation: str = FEDERATION) -> SharedModel:
    (folder / "own.toml").write_text(own)
    (folder / "skin.toml").write_text(federation)
    file = write_release(folder / "checkpoint", load_federation(folder / "skin.toml"))
    return choose(hospital, task=str(folder / "own.toml"), federation=str(folder / "skin.toml"), file=file)


def test_the_head_starts_at_the_classes_that_are_named(hospital: Hospital, tmp_path: Path) -> None:
    found = chosen(hospital, tmp_path, OWN)
    assert found.like == {"common nevus": ("nv",), "keratinocyte": ("akiec", "bcc"), "melanoma": ("mel",), "scar": ()}
    theirs, ours = head(found.release.theta, 4), head(found.theta, 4)
    torch.testing.assert_close(ours, torch.stack([theirs[3], (theirs[0] + theirs[1]) / 2, theirs[2], 0 * theirs[0]]))
    assert "same_as" not in str(found.federation.model_dump()), "an agreement knows nothing of it"


def head(theta: Tensor, classes: int) -> Tensor:
    """Weights and bias, [classes, e + 1], of a model that is a head alone."""
    return torch.cat([theta[:-classes].view(classes, -1), theta[-classes:].unsqueeze(1)], 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"nv"', '"freckle"', "line 6: task.same_as.common nevus: 'freckle' is no class .*; allowed: 'akiec', "),
        ('"bcc"', '"bbc"', r"line 7: task.same_as.keratinocyte: 'bbc' is no .*; did you mean 'bcc'\?"),
        ('melanoma = ["mel"]', 'melanom = ["mel"]', r"line 8: .* no class of this task; did you mean 'melanoma'\?"),
        ('["mel"]', '["mel", "mel"]', "line 8: task.same_as.melanoma: names a class twice"),
        ('["mel"]', "3", "line 8: task.same_as.melanoma"),
        ('["mel"]', '["\\u202emel"]', "line 8: .*invisible letters"),
        ("classes", 'labels = "several"\nclasses', 'task.same_as: is for labels .*it has "one"'),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_with_its_line(
    hospital: Hospital, tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        chosen(hospital, tmp_path, OWN.replace(old, new))
    assert "\u202e" not in str(refusal.value)


ODD = st.text(max_size=12) | st.sampled_from([*THEIRS, "common nevus", "melanoma", "MEL", "__class__", "a.b", "\u202e"])
VALUES = st.recursive(ODD | st.integers() | st.booleans() | st.floats(allow_nan=False), st.lists, max_leaves=5)


def refused_or_understood(text: str) -> None:
    """Either a map of own classes to the federation's, or a sentence that may be shown."""
    try:
        read = loads(text, TaskFile, name="own.toml", context=task(THEIRS)).task
    except ConfigError as refusal:
        said = str(refusal)
        assert said.startswith("own.toml")
        assert shown(said, len(said)) == said
        assert len(said) < 10_000
        return
    assert set(read.same_as) <= set(read.classes)
    for like in read.same_as.values():
        assert len(like) == len(set(like))
        assert set(like) <= set(THEIRS)
    found = origins(read, task(THEIRS, read.label_column), read.same_as)
    rows = shares(found, THEIRS)
    assert all(
        float(row.sum()) == pytest.approx(1 if like else 0) for row, like in zip(rows, found.values(), strict=True)
    )


@given(st.dictionaries(ODD, VALUES, max_size=5))
def test_whatever_a_map_says_it_is_understood_or_refused_in_a_sentence(like: dict[str, object]) -> None:
    lines = (f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in like.items())
    refused_or_understood(OWN[: OWN.index("[task.same_as]")] + "[task.same_as]\n" + "".join(lines))


@given(st.text(st.sampled_from("[]{}=\",'.#\n \\melnvbc0\u202e\u00df\x00"), max_size=60))
def test_whatever_stands_below_the_heading(text: str) -> None:
    refused_or_understood(OWN[: OWN.index("[task.same_as]")] + "[task.same_as]\n" + text)


def test_an_agreement_has_no_such_table(hospital: Hospital, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'task.same_as'"):
        chosen(hospital, tmp_path, OWN, FEDERATION.replace("[model]", '[task.same_as]\nmel = ["nv"]\n[model]'))


def test_an_empty_list_says_that_a_namesake_is_another_class(hospital: Hospital, tmp_path: Path) -> None:
    own = '[task]\nlabel_column = "what"\nclasses = ["mel", "nv"]\n'
    assert chosen(hospital, tmp_path, own).like == {"mel": ("mel",), "nv": ("nv",)}
    found = chosen(hospital, tmp_path, own + "[task.same_as]\nmel = []\n")
    assert found.like == {"mel": (), "nv": ("nv",)}
    assert not head(found.theta, 2)[0].any()


def test_classes_of_the_command_line_and_a_map_in_the_file_contradict_each_other(
    hospital: Hospital, tmp_path: Path
) -> None:
    chosen(hospital, tmp_path, OWN)
    files = {"task": str(tmp_path / "own.toml"), "federation": str(tmp_path / "skin.toml")}
    with pytest.raises(ConfigError, match="same_as"):
        choose(hospital, **files, file=tmp_path / "checkpoint", classes=("a", "b"))


def test_what_the_agreement_says_of_other_texts_holds_for_classes_that_are_left(
    hospital: Hospital, tmp_path: Path
) -> None:
    agreed = FEDERATION.replace("[model]", '[task.values]\nnaevus = "nv"\nmm = "mel"\nunsure = ""\n[model]')
    own = '[task]\nlabel_column = "what"\nclasses = ["mel", "scar"]\n'
    found = chosen(hospital, tmp_path, own, agreed)
    assert found.federation.task.values == (("mm", "mel"), ("unsure", ""))
