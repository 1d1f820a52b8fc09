"""Which model is meant, whether the file is that model, and what is left of it for a disease that is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.conftest import FEDERATION_TOML

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround.models import Model, build_model
from wardround.release import Release
from wardround_client.hospital import Hospital
from wardround_client.last_model import last_seen
from wardround_client.personal.shared_model import choose


def model_of(federation: Federation) -> Model:
    return federation.algorithm.extended(build_model(federation))


def write_release(path: Path, agreed: Federation, **other: Any) -> Path:
    """A model file of the federation, but for what is named."""
    model = model_of(agreed)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, Any] = {
        "run": "spring",
        "federation": agreed.digest,
        "round": 3,
        "theta": torch.randn(model.layout.size, generator=generator),
        "shift": torch.zeros(model.scaling_size),
        "scale": torch.ones(model.scaling_size),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(Release(**(parts | other)).pack())
    return path


@pytest.fixture
def file(tmp_path: Path, federation_toml: Path) -> Path:
    return write_release(tmp_path / "checkpoint.safetensors", load_federation(federation_toml))


def test_the_only_approved_federation_and_the_last_model_are_meant(hospital: Hospital, federation_toml: Path) -> None:
    federation = hospital.approvals.approve(federation_toml).federation
    with pytest.raises(ConfigError, match=r"seen no model of test .*--model"):
        choose(hospital)
    write_release(last_seen(hospital.home, federation.digest), federation, round=9)
    found = choose(hospital)
    assert (found.federation.digest, found.release.round, found.new_classes) == (federation.digest, 9, False)
    assert torch.equal(found.theta, found.release.theta)


@pytest.mark.parametrize("by", ["name", "digest", "file", "the model's own"])
def test_a_federation_is_known_by(hospital: Hospital, federation_toml: Path, file: Path, by: str) -> None:
    federation = hospital.approvals.approve(federation_toml).federation
    other = federation_toml.with_name("other.toml")
    other.write_text(FEDERATION_TOML.replace('name = "test"', 'name = "other"'))
    hospital.approvals.approve(other)
    named = {"name": "test", "digest": federation.digest[:8], "file": str(federation_toml), "the model's own": ""}[by]
    assert choose(hospital, task=named, file=file).release.federation == federation.digest
    with pytest.raises(ConfigError, match="several federations are approved"):
        choose(hospital)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[task]\nlabel_column = "urgent\n', "own.toml: not TOML"),
        ('[task]\nlabel_column = "urgent"\nclasses = ["yes", "no"]\n[same_as]\n', "unknown key 'same_as'"),
        (FEDERATION_TOML, "unknown key"),
        ("", "missing key 'task'"),
    ],
)
def test_a_task_file_that_is_none_is_refused_and_not_passed_over(
    hospital: Hospital, federation_toml: Path, file: Path, tmp_path: Path, text: str, said: str
) -> None:
    """Where the federation is named too, its own task would be adapted to."""
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=said):
        choose(hospital, task=str(own), federation=str(federation_toml), file=file)
    assert not choose(hospital, task=str(federation_toml), federation=str(federation_toml), file=file).new_classes


def test_nothing_has_to_be_approved_to_look_at_a_model_at_home(
    hospital: Hospital, federation_toml: Path, file: Path
) -> None:
    assert choose(hospital, task=str(federation_toml), file=file).federation.name == "test"
    with pytest.raises(ConfigError, match=r"is not approved here. Next: name its federation.toml with --task"):
        choose(hospital, file=file)
    for missing in ("other.toml", "folder/federation", str(federation_toml) + ".old"):
        with pytest.raises(ConfigError, match=r"no such file. Next: correct the path"):
            choose(hospital, task=missing, file=file)
    with pytest.raises(ConfigError, match="'lungs' is not a file and not an approved federation"):
        choose(hospital, task="lungs", file=file)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"federation": "b" * 64}, r"is a model of federation bbbbbbbbbbbb.*Allowed: a model of federation"),
        ({"theta": torch.zeros(3)}, r"theta is float32 \[3\].*Allowed: float32 \[36\]"),
        ({"shift": torch.zeros(8, dtype=torch.float64)}, r"shift is float64 \[8\].*Allowed: float32 \[8\]"),
        ({"theta": torch.full((36,), torch.nan)}, "theta holds NaN or infinity"),
        ({"scale": torch.zeros(8)}, "scale is not positive"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    hospital: Hospital, federation_toml: Path, tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    file = write_release(tmp_path / "file", load_federation(federation_toml), **other)
    with pytest.raises(ConfigError, match=said):
        choose(hospital, task=str(federation_toml), file=file)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_not_a_model_is_refused(
    hospital: Hospital, federation_toml: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match="is not a model of wardround"):
        choose(hospital, task=str(federation_toml), file=tmp_path / "file")
    with pytest.raises(ConfigError, match="no such file"):
        choose(hospital, task=str(federation_toml), file=tmp_path / "nothing")


def test_a_task_of_ones_own_takes_the_inputs_of_the_federation(
    hospital: Hospital, federation_toml: Path, file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[task]\nlabel_column = "urgent"\nclasses = ["yes", "no"]\n')
    found = choose(hospital, task=str(own), federation=str(federation_toml), file=file)
    assert found.new_classes
    assert (found.federation.task.label_column, found.federation.task.image_size_px) == ("urgent", 32)
    assert not found.theta.any(), "an encoder's head is all that this federation learned"

    own.write_text(own.read_text() + "image_size_px = 64\n")
    with pytest.raises(ConfigError, match=r"shape \(1, 64, 64\).*Allowed: .*\(1, 32, 32\)"):
        choose(hospital, task=str(own), federation=str(federation_toml), file=file)
    with pytest.raises(ConfigError, match="classes holds a value twice"):
        choose(hospital, task=str(federation_toml), classes=("a", "a"), file=file)


def test_the_same_classes_are_no_new_disease(hospital: Hospital, federation_toml: Path, file: Path) -> None:
    same = choose(hospital, task=str(federation_toml), classes=("normal", "nodule", "diffuse", "effusion"), file=file)
    assert not same.new_classes
    turned = choose(hospital, task=str(federation_toml), classes=("nodule", "normal", "diffuse", "effusion"), file=file)
    assert turned.new_classes, "the head's rows would mean other classes"


def test_a_new_disease_keeps_the_body_and_starts_the_head_at_zero(hospital: Hospital, tmp_path: Path) -> None:
    toml = tmp_path / "embedded.toml"
    toml.write_text(FEDERATION_TOML.replace("features = 8", 'features = 8\nembedding = 4\n[algorithm]\nname = "maml"'))
    file = write_release(tmp_path / "file", load_federation(toml))
    found = choose(hospital, task=str(toml), label_column="urgent", classes=("yes", "no"), file=file)
    body = found.model.body_size
    assert body == 32
    assert torch.equal(found.theta[:body], found.release.theta[:body])
    assert len(found.theta) == body + 2 * 5
    assert not found.theta[body:].any()
