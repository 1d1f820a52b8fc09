"""Each kind of model gives torch's probabilities as a file, or is refused; and no file holds a patient."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tests import onnx_graphs
from tests.client.command_line import wardround
from tests.client.conftest import FEDERATION_TOML
from tests.client.personal.test_shared_model import write_release
from torch import Tensor

from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround.models import build_model
from wardround.onnx_files.in_square import in_square
from wardround.onnx_files.rules import OPSETS
from wardround.onnx_files.session import Session
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.intake.dicom.pixels import fit
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.personal import adapted_file as store
from wardround_client.personal import export_card, judged_file, smaller, whole_model
from wardround_client.personal.adapted_model import AdaptedModel, EmbeddedSupport
from wardround_client.personal.learner import Learner
from wardround_client.personal.maps import grids, upsampled, weighted
from wardround_client.personal.whole_model import OUTPUT, refusal, written_whole

CLASSES = ["no", "perhaps", "yes"]
TABLE = {"kind": "table", "features": ["a", "b", "c", "d"]}
IMAGES = {"image_size_px": 28}


def agreed(task: dict[str, Any], algorithm: str = "reptile", **model: Any) -> Federation:
    return Federation.model_validate(
        {
            "name": "f",
            "task": {"label_column": "ill", "classes": CLASSES, **task},
            "model": {"features": 4, **model},
            "algorithm": {"name": algorithm},
        }
    )


def adapted_to(
    federation: Federation, base: Path | None = None, *, learns: bool = False
) -> tuple[AdaptedModel, Examples]:
    """An adapted model of random numbers, or what it learns from 12 invented patients, and these."""
    generator = torch.Generator().manual_seed(0)
    model = federation.algorithm.extended(build_model(federation, base))
    noise = 0.3 * torch.randn(model.layout.size, generator=generator)
    if learns:  # of methods that embed, the head's place says which classes have a mean
        noise[model.body_size :] = 0
    theta = model.initial() + noise
    shift, scale = 0.1 * torch.randn(2, model.scaling_size, generator=generator)
    release = Release(run="r", federation=federation.digest, round=1, theta=theta, shift=shift, scale=scale.abs() + 0.5)
    learner = Learner.of(federation, model, theta, release.shift, release.scale)
    fitted = {"theta": theta}
    z = torch.empty(0)
    examples = Examples(z, z, z.long(), z, len(CLASSES))
    if learns:
        y = torch.arange(12) % 3
        z = model.encode(torch.randn(12, *federation.task.input_shape, generator=generator) + y[:, None])
        examples = Examples(z, y, torch.arange(12), z, len(CLASSES))
        fitted = dict(learner.adapt(examples))
    cases = EmbeddedSupport(*(torch.empty(0),) * 4)
    return AdaptedModel("m", federation, release, learner, fitted, cases, (), "", 0, 0, False), examples


def difference(adapted: AdaptedModel, data: bytes, inputs: Tensor) -> float:
    """The largest between the file's probabilities and torch's."""
    ours, theirs = judged_file.by_file(data), judged_file.by_torch(adapted)
    return max(float((ours(x[None]) - theirs(x[None])).abs().max()) for x in inputs)


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_each_algorithm_is_exported_or_refused_and_none_puts_a_case_into_its_file(name: str) -> None:
    adapted, support = adapted_to(agreed(TABLE, name, family="mlp", width=6), learns=True)
    compares = type(adapted.learner.algorithm).predict is not Algorithm.predict
    assert bool(refusal(adapted)) is compares, "what predicts by a classifier of its own keeps its cases"
    if compares:
        with pytest.raises(ConfigError, match=rf"{name} compares with the cases"):
            written_whole(adapted)
        return
    data = written_whole(adapted)
    assert difference(adapted, data, torch.randn(20, 4)) < 1e-5
    cases = [*support.z, *adapted.learner.embed(support.z)]
    assert not any(case.numpy().tobytes() in data for case in cases)


KINDS: dict[str, dict[str, Any]] = {
    "logistic": {"task": TABLE, "family": "logistic"},
    "gaps and units": {
        "task": {**TABLE, "centre": [1, 2, 3, 4], "spread": [2, 2, 1, 1], "may_miss": ["b", "d"]},
        "family": "logistic",
    },
    "projection": {"task": {**TABLE, "may_miss": ["a"]}, "family": "projection", "features": 4},
    "grey": {"task": IMAGES},
    "colour, embedded": {"task": {**IMAGES, "channels": 3}, "embedding": 3},
    "resized": {"task": {"image_size_px": 40}},
    "conv4": {"task": IMAGES, "family": "conv4", "width": 8},
    "several": {"task": {**TABLE, "labels": "several"}, "family": "mlp", "width": 5},
    "survival": {
        "task": {**TABLE, "labels": "survival", "ends": [1, 2, 3], "event_column": "dead"},
        "family": "logistic",
    },
    "volume": {"task": {"kind": "volume", "depth": 3, "image_size_px": 16}},
    "inputs": {
        "task": {
            "kind": "inputs",
            "inputs": [
                {"name": "front", "image_size_px": 16},
                {"name": "blood", "kind": "table", "features": ["a", "b"]},
            ],
        }
    },
    "masks": {"task": {"image_size_px": 32, "labels": "mask", "cell_px": 8}},
    "masks in colour": {"task": {"image_size_px": 48, "labels": "mask", "cell_px": 4, "channels": 3}},
    "points": {"task": {"image_size_px": 32, "labels": "points", "cell_px": 4}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_gives_torch_s_probabilities_as_a_file(kind: str) -> None:
    adapted, _ = adapted_to(agreed(**KINDS[kind]))
    data = written_whole(adapted)
    task, generator = adapted.federation.task, torch.Generator().manual_seed(1)
    x = torch.rand(4, *task.input_shape, generator=generator)
    x[1] = 0
    if task.kind == "volume":
        x[2, :, 1], x[3, :, :2] = 0, 0  # black slices
    if task.kind in ("table", "inputs"):
        flat = x.flatten(1)
        flat[2] = math.nan if task.kind == "inputs" or task.may_miss == ("*",) else flat[2]
        flat[3, -1:] = math.nan if task.may_miss or task.kind == "inputs" else 0.5
    assert difference(adapted, data, x) < 1e-4
    assert {node.domain for node in onnx.ModelProto.FromString(data).graph.node} == {""}


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.sampled_from([1, 3]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_image_of_any_size_is_fitted_as_the_intake_fits_it(
    h: int, w: int, side: int, channels: int, seed: int
) -> None:
    image = np.random.default_rng(seed).random((h, w, channels), np.float32)
    theirs = fit(image[..., 0] if channels == 1 else image, ImageRecipe(side, channels))
    ours = in_square(torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), side)
    np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-6)


def test_a_file_takes_images_of_any_size_and_one_of_the_cohort_as_it_is() -> None:
    adapted, _ = adapted_to(agreed(KINDS["conv4"]["task"], family="conv4", width=8))
    session, learner = Session(written_whole(adapted), OUTPUT), adapted.learner
    generator = np.random.default_rng(0)
    for size in ((28, 28), (60, 45), (17, 90), (1, 5)):
        image = generator.random(size, np.float32)
        x = torch.from_numpy(fit(image, ImageRecipe(28, 1)))[None]
        theirs = learner.probabilities(adapted.fitted, learner.loss.model.encode(x)).numpy()
        np.testing.assert_allclose(session(image[None, None]), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"task": {**TABLE, "ranks": True}, "family": "logistic"}, "ranks"),
    ],
)
def test_what_no_graph_can_do_is_refused_with_its_reason(kind: dict[str, Any], why: str) -> None:
    adapted, _ = adapted_to(agreed(**kind))
    with pytest.raises(ConfigError, match=why):
        written_whole(adapted)


def through(data: bytes, folder: Path, task: dict[str, Any]) -> tuple[AdaptedModel, bytes]:
    """A model behind an ONNX encoder, and its file."""
    (folder / "e.onnx").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    federation = agreed(task, encoder="e.onnx", encoder_sha256=digest, features=onnx_graphs.FEATURES)
    adapted, _ = adapted_to(federation, folder)
    return adapted, written_whole(adapted, data)


def as_old_files_are(model: Any) -> None:
    """Weights are named as inputs too, the operators' domain is spelt out, and somebody signed it."""
    graph = model.graph
    graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer)
    model.opset_import[0].domain = "ai.onnx"
    model.metadata_props.add(key="maker", value="somebody@example.org")


@pytest.mark.parametrize("opset", [OPSETS[0], 17, 20, OPSETS[-1]])
def test_an_encoder_of_any_version_of_onnx_is_joined_to_its_head(opset: int, tmp_path: Path) -> None:
    tasks: tuple[dict[str, Any], ...] = (IMAGES, {"image_size_px": 24, "labels": "mask", "cell_px": 4})
    for channels, task in product((1, 3), tasks):
        change = as_old_files_are if opset % 2 else None
        adapted, data = through(onnx_graphs.graph(change, channels=channels, opset=opset), tmp_path, task)
        assert difference(adapted, data, torch.rand(2, *adapted.federation.task.input_shape)) < 1e-5
        model = onnx.ModelProto.FromString(data)
        assert [each.name for each in model.graph.input] == ["input"]
        assert b"somebody" not in data
        assert {node.domain for node in model.graph.node} == {""}


def test_an_image_that_grows_for_its_encoder_is_resized_as_the_file_says(tmp_path: Path) -> None:
    data = onnx_graphs.graph(lambda model: model.metadata_props.add(key="wardround", value='{"resize": "bicubic"}'))
    adapted, whole = through(data, tmp_path, {"image_size_px": 12})
    assert difference(adapted, whole, torch.rand(3, 1, 12, 12)) < 1e-5


@pytest.mark.parametrize("by_onnx", [False, True])
def test_a_file_of_masks_gives_the_mask_that_predict_gives(by_onnx: bool, tmp_path: Path) -> None:
    task: dict[str, Any] = {"image_size_px": 24, "labels": "mask", "cell_px": 4}
    graph, inputs = onnx_graphs.graph(), torch.rand(6, 1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    adapted = through(graph, tmp_path, task)[0] if by_onnx else adapted_to(agreed(task))[0]
    by_torch = judged_file.by_torch(adapted)
    weights = 1 / torch.cat([by_torch(x) for x in inputs]).mean(0)  # so that each class is somewhere
    adapted = replace(adapted, fitted={**adapted.fitted, "weights": weights})
    session = Session(written_whole(adapted, graph), whole_model.MASK)
    shown = set()
    for x in inputs:
        expected = weighted(upsampled(grids(by_torch(x), 36)[0], 24), weights.numpy()).argmax(0)
        assert (session(x.numpy())[0] == expected).mean() > 0.99, "but for pixels on an edge, which are rounded"
        shown |= set(expected.ravel().tolist())
    assert len(shown) > 1


def weights_of(data: bytes) -> list[np.ndarray]:
    return [numpy_helper.to_array(each) for each in onnx.ModelProto.FromString(data).graph.initializer]


@given(st.floats(0, 0.99))
@settings(max_examples=10, deadline=None)
def test_pruning_sets_so_many_of_the_smallest_weights_to_zero(share: float) -> None:
    data = onnx_graphs.graph(lambda model: model.graph.initializer.append(_random((20, 30), "more")))
    (before,), (after,) = (
        [w for w in weights_of(each) if w.size == 600] for each in (data, smaller.pruned(data, share))
    )
    assert (after == 0).sum() == int(share * 600)
    kept = after != 0
    assert np.array_equal(after[kept], before[kept])
    assert np.abs(before[~kept]).max(initial=0) <= np.abs(before[kept]).min(initial=np.inf)


@given(st.integers(0, 99), st.sampled_from([(16, 40), (40, 16), (4, 3, 5, 6), (8, 8, 8)]))
@settings(max_examples=20, deadline=None)
def test_a_weight_of_one_byte_is_off_by_half_a_step_at_most(seed: int, shape: tuple[int, ...]) -> None:
    data = onnx_graphs.graph(lambda model: model.graph.initializer.append(_random(shape, "more", seed)))
    small = smaller.quantised(data)
    assert len(small) < len(data)
    exact = numpy_helper.to_array(_random(shape, "more", seed))
    kept = {each.name: numpy_helper.to_array(each) for each in onnx.ModelProto.FromString(small).graph.initializer}
    (node,) = (n for n in onnx.ModelProto.FromString(small).graph.node if n.op_type == "DequantizeLinear")
    axis = node.attribute[0].i
    scale = kept["more/scale"].reshape([-1 if each == axis else 1 for each in range(len(shape))])
    assert kept["more/int8"].dtype == np.int8
    assert np.abs(kept["more/int8"] * scale - exact).max() <= scale.max() * 0.5001


def _random(shape: tuple[int, ...], name: str, seed: int = 0) -> Any:
    return numpy_helper.from_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32), name)


@pytest.mark.parametrize(("count", "said"), [(0, "under 5"), (4, "under 5"), (5, "5"), (9, "5"), (128, "125")])
def test_small_numbers_of_patients_are_not_shown(count: int, said: str) -> None:
    assert export_card._rounded(count) == said


@pytest.fixture
def home(home_with_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A hospital with a model that it adapted."""
    home = Path(shutil.copytree(home_with_cohort, tmp_path / "north"))
    (tmp_path / "federation.toml").write_text(FEDERATION_TOML)
    model = write_release(tmp_path / "checkpoint.safetensors", load_federation(tmp_path / "federation.toml"))
    code, _, err = wardround(capsys, "adapt", home, "--task", tmp_path / "federation.toml", "--model", model)
    assert code == 0, err
    return home


def test_the_command_writes_files_that_hold_no_patient_and_a_card(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = wardround(capsys, "export", home, "--quantise", "--prune", "0.3")
    assert code == 0, err
    folder = home / "exported" / "test"
    said = json.loads((folder / "card.json").read_text())
    written = {file.name for file in folder.iterdir()}
    assert written - {"card.json", "card.md"} == set(said["files"])
    assert "model.onnx" in written
    assert said["metrics"]["model.onnx"]["largest_difference_from_torch"] < 1e-4
    evaluated = json.loads(wardround(capsys, "evaluate", home, "--json")[1])["after"]["metrics"]
    for name, value in said["metrics"]["model.onnx"]["values"].items():
        assert value["value"] == pytest.approx(evaluated[name]["value"], abs=6e-4)
    adapted = store.load(home, "test", torch.device("cpu"))
    secret = [*adapted.support, *(each.hex().encode() for each in adapted.support)]
    secret += [case.numpy().tobytes() for case in (*adapted.cases.embedded, *adapted.cases.points)]
    secret += [str(home).encode(), str(home.parent).encode()]
    for file in folder.iterdir():
        data = file.read_bytes()
        assert not any(each in data for each in secret), file
        assert file.stat().st_mode & 0o777 == 0o600
        if file.suffix == ".onnx":
            assert b"north" not in data
    counts = said["data"]["adapted_to"]
    assert all(each == "under 5" or int(each) % 5 == 0 for each in (*counts["by_class"].values(), counts["patients"]))
    assert "Not a medical device" in (folder / "card.md").read_text()
    assert "not written" not in out or not (folder / "pruned.onnx").exists()
    code, _, err = wardround(capsys, "export", home)
    assert (code, "there already" in err) == (2, True)

    def wrong(adapted: AdaptedModel, encoder: bytes) -> bytes:
        other = {"theta": -adapted.fitted["theta"]}
        return written_whole(type(adapted)(**{**vars(adapted), "fitted": other}))

    monkeypatch.setattr(whole_model, "written_whole", wrong)
    code, _, err = wardround(capsys, "export", home, "--to", home / "other")
    assert (code, "differs from torch" in err, (home / "other").exists()) == (3, True, False)
