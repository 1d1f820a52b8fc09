"""The memory of a round: an upper bound of what it takes, from public numbers, held against what the machine has."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import onnx_graphs
from tests.chosen import UNITS
from tests.client.agreements import IMAGES, TABLE, agreed
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.models import Objective, build_model
from wardround.models.onnx_encoder import OnnxEncoder, onnx_bytes
from wardround.questions import EpisodeGradient, Loss, Shots
from wardround_client.consent.footprint import Footprint, footprint, free_memory

DECLARED, DRAWN = 1000, 2
LARGE = {"privacy": {"images_per_patient": DRAWN, "patients_per_episode": 200}}
CONV4 = {**IMAGES, "model": {"family": "conv4", "width": 16}}
WIDE = {
    **TABLE,
    "task": {**TABLE["task"], "centre": [], "spread": [], "features": [f"c{number}" for number in range(1000)]},
    "model": {"family": "mlp", "width": 1024},
}
# What makes each method large, and what it holds then; bytes that an estimate has for everything are left out.
GRASPING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "maml": (CONV4, {"local_steps": 2}),
    "meta-sgd": (CONV4, {"local_steps": 2, "tasks": "episodes"}),
    "prototypical": (CONV4, {}),
    "siamese": ({**TABLE, "model": {"family": "mlp", "width": 256}}, {}),
    "learned-optimizer": (WIDE, {"local_steps": 3}),
}


class AtTheCap(SilentCohort):
    """One episode of as many patients as there may be."""

    def __init__(self, federation: Federation, rows: int) -> None:
        patient = torch.arange(rows) // DRAWN
        x, y = torch.rand(rows, *federation.task.input_shape), patient % len(federation.task.classes)
        self.shots = Shots(x, y, patient, torch.full((rows,), 1 / DRAWN))

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        return gradient(theta, self.shots, self.shots)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(loss)(theta, self.shots.x[:DRAWN], self.shots.y[:DRAWN])
        return found


def answered(federation: Federation, rows: int) -> Tensor:
    model = federation.algorithm.extended(build_model(federation))
    loss = Objective(model, torch.zeros(model.scaling_size), torch.ones(model.scaling_size))
    choice = federation.algorithm
    return choice.inner(model.initial(), AtTheCap(federation, rows), loss)


def peak(name: str) -> int:
    """Bytes that an answer takes beyond what a fresh process holds, whose heap no earlier test has freed."""
    base, settings = GRASPING[name]
    torch.set_num_threads(1)
    answered(agreed({**TABLE, **LARGE}, algorithm={"name": name, **settings}), 4)  # libraries are there from now on
    federation = agreed({**base, **LARGE}, algorithm={"name": name, **settings})
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS:")
    answered(federation, federation.privacy.side_cap(DECLARED) * DRAWN)
    return _resident("VmHWM:") - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("name", GRASPING)
def test_an_estimate_is_above_what_an_episode_takes_and_not_far(name: str) -> None:
    base, settings = GRASPING[name]
    federation = agreed({**base, **LARGE}, algorithm={"name": name, **settings})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        taken = process.submit(peak, name).result()
    model = federation.algorithm.extended(build_model(federation))
    estimate = footprint(federation, model, DECLARED).round
    assert taken < estimate
    assert estimate < 8 * taken + (300 << 20)


def loaded(width: int) -> tuple[int, int]:
    """What an ONNX encoder of that width takes of a fresh process, loaded and run on three images; and the estimate."""
    size = onnx_graphs.FEATURES, width
    weights: dict[str, np.ndarray[Any, Any]] = {
        "up": np.ones(size, np.float32),
        "down": np.ones(size[::-1], np.float32) / width,
    }
    nodes = [
        onnx_graphs.onnx.helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        onnx_graphs.onnx.helper.make_node("MatMul", ["flat", "up"], ["wide"]),
        onnx_graphs.onnx.helper.make_node("MatMul", ["wide", "down"], ["low"]),
    ]
    small, data = onnx_graphs.graph(), onnx_graphs.before_features(*nodes, of="low", weights=weights)
    side, channels = onnx_graphs.SIDE, 1

    def use(data: bytes) -> OnnxEncoder:
        sha256 = hashlib.sha256(data).hexdigest()
        encoder = OnnxEncoder.load(Path("e"), sha256, channels=channels, features=onnx_graphs.FEATURES, data=data)
        for run in (encoder, encoder.maps):
            run(torch.rand(3, channels, side, side))
        return encoder

    _first = use(small)  # libraries are there from now on
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS:")
    held = use(data)
    return _resident("VmHWM:") - before, onnx_bytes(held.fingerprint)


@pytest.mark.parametrize("width", [1 << 20, 1 << 22])
def test_an_estimate_is_above_what_an_onnx_encoder_takes_and_not_far(width: int) -> None:
    pytest.importorskip("onnxruntime")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        taken, estimate = process.submit(loaded, width).result()
    assert taken < estimate, (taken, estimate)
    assert estimate < 8 * taken + (64 << 20)
    assert onnx_bytes("") == 0


def test_an_agreement_counts_the_onnx_encoder_that_it_pins() -> None:
    pytest.importorskip("onnxruntime")
    data = onnx_graphs.graph()
    pinned = hashlib.sha256(data).hexdigest()
    held = OnnxEncoder.load(Path("e"), pinned, channels=1, features=onnx_graphs.FEATURES, data=data)
    builtin = agreed(IMAGES)
    brought = agreed(IMAGES, model={"encoder": "e.onnx", "encoder_sha256": pinned})
    without, counted = (footprint(each, build_model(builtin), DECLARED).round for each in (builtin, brought))
    assert counted - without == onnx_bytes(held.fingerprint) > 0


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("base", [IMAGES, TABLE, CONV4], ids=["encoder-head", "mlp", "conv4"])
def test_every_method_has_an_estimate_that_grows_with_what_is_asked(name: str, base: dict[str, Any]) -> None:
    if (name, base) == ("fedrep", CONV4):
        pytest.skip("fedrep refuses a model that makes its features itself")
    tasks = "episodes" if "episodes" in UNITS[agreed(base, algorithm={"name": name}).algorithm.name] else "hospitals"
    few = agreed(base, algorithm={"name": name, "tasks": tasks}, privacy={"patients_per_episode": 20})
    many = agreed(
        base,
        algorithm={"name": name, "tasks": tasks},
        privacy={"patients_per_episode": 20_000, "images_per_patient": 200},
    )
    small, large = (footprint(each, each.algorithm.extended(build_model(each)), 100_000) for each in (few, many))
    assert small.cohort == large.cohort
    assert small.round < large.round


@given(declared=st.integers(1, 10**6), more=st.integers(0, 10**6))
def test_more_patients_never_take_less(declared: int, more: int) -> None:
    federation = agreed(TABLE, algorithm={"name": "svm"})
    model = federation.algorithm.extended(build_model(federation))
    few, many = (footprint(federation, model, number) for number in (declared, declared + more))
    assert few.cohort <= many.cohort
    assert few.total > 0


def test_an_agreement_larger_than_the_machine_is_refused_by_name() -> None:
    needs = Footprint(cohort=10**9, round=2 * 10**9)
    assert needs.check(10**11) == "at most 3.7 GB of the 100.0 GB that this machine has free"
    assert "not known" in needs.check(None)
    with pytest.raises(PolicyRefusal) as refusal:
        needs.check(10**9)
    assert refusal.value.rule == "policy.memory"
    assert refusal.value.asked == "at most 3.7 GB of memory"
    assert refusal.value.allowed == "1.0 GB that this machine has free"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5 kB\n"}, 5 * 1024),
        ({"proc/meminfo": "MemAvailable: ?\n\xff"}, None),
        ({"proc/meminfo": "MemAvailable: 5 kB\n", "sys/memory.max": "1024\n"}, 1024),
        ({"proc/self/cgroup": "1:x:/y\n0::/a/b\n", "sys/a/b/memory.max": "max\n", "sys/a/memory.max": "77\n"}, 77),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/a/b/memory.max": "50\n", "sys/a/memory.max": "77\n"}, 50),
        ({"proc/self/cgroup": "0::/../../elsewhere\n", "elsewhere/memory.max": "1\n"}, None),
        ({"proc/meminfo": "MemAvailable: 5 kB\n", "sys/memory.max": "999999\n"}, 5 * 1024),
    ],
)
def test_the_least_of_what_limits_a_process_counts(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (-1, -1))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert free_memory(tmp_path / "proc", tmp_path / "sys") == expected


def test_a_limit_on_address_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 90000000 kB\n")
    monkeypatch.setattr("resource.getrlimit", lambda _: (3 << 30, 3 << 30))
    found = free_memory(tmp_path, tmp_path)
    assert found is not None
    assert found <= (3 << 30) + (1 << 30)
