"""The models: one vector in, logits out; deterministic, per patient, and pinned."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from wardround.config import Federation, ModelChoice
from wardround.errors import ConfigError
from wardround.models import Model, Objective, build_model
from wardround.models.scaling import no_scaling
from wardround.task import Task

FAMILIES = ("encoder-head", "conv4", "logistic", "mlp")


def federation(family: str, *, size: int = 28, channels: int = 1, features: int = 8, width: int = 8) -> Federation:
    classes = ("a", "b", "c")
    model = ModelChoice.model_validate({"family": family, "features": features, "width": width})
    if family in ("logistic", "mlp"):
        return Federation(
            name="t",
            task=Task(label_column="y", classes=classes, kind="table", features=("age", "bp", "chol", "sex")),
            model=model,
        )
    task = Task.model_validate({"label_column": "y", "classes": classes, "image_size_px": size, "channels": channels})
    return Federation(name="t", task=task, model=model)


def examples(fed: Federation, n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *fed.task.input_shape, generator=generator), torch.arange(n) % 3


def some_theta(model: Model) -> Tensor:
    return model.initial() + 0.1 * torch.randn(model.layout.size, generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=FAMILIES)
def fed(request: pytest.FixtureRequest) -> Federation:
    return federation(request.param)


def test_shapes(fed: Federation) -> None:
    model = build_model(fed)
    x, _ = examples(fed)
    z = model.encode(x)
    theta = model.initial()
    assert theta.shape == (model.layout.size,)
    assert theta.dtype == z.dtype == torch.float32
    assert model.summary(z).shape == (6, model.scaling_size)
    assert model.logits(theta, z, *no_scaling(model.scaling_size)).shape == (6, 3)
    assert len(model.fingerprint) == 64


def test_two_machines_build_the_same_model(fed: Federation) -> None:
    one, other = build_model(fed), build_model(fed)
    assert torch.equal(one.initial(), other.initial())
    assert (one.fingerprint, one.layout) == (other.fingerprint, other.layout)


def test_a_vector_of_another_model_is_not_taken(fed: Federation) -> None:
    model = build_model(fed)
    z = model.encode(examples(fed)[0])
    with pytest.raises(ValueError, match="does not fit"):
        model.logits(torch.zeros(model.layout.size + 1), z, *no_scaling(model.scaling_size))


def test_per_patient_gradients_are_those_of_plain_autograd(fed: Federation) -> None:
    """vmap(grad) against a loop of autograd, one patient at a time; also for channels-last images."""
    model = build_model(fed)
    x, y = examples(fed)
    theta = some_theta(model)
    formats = [x] if x.ndim == 2 else [x, x.contiguous(memory_format=torch.channels_last), x.mT]
    for images in formats:
        z = model.encode(images)
        loss = Objective(model, *no_scaling(model.scaling_size), log_prior=torch.tensor([0.0, -1.0, -2.0]))
        together = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(theta, z[:, None], y[:, None])
        for i in range(len(y)):
            leaf = theta.clone().requires_grad_()
            (alone,) = torch.autograd.grad(loss(leaf, z[i : i + 1], y[i : i + 1]), leaf)
            torch.testing.assert_close(together[i], alone, rtol=1e-3, atol=1e-5)


def test_no_patient_changes_another_ones_logits(fed: Federation) -> None:
    """What batch normalisation would break."""
    model = build_model(fed)
    x, _ = examples(fed)
    theta, scaling = some_theta(model), no_scaling(model.scaling_size)
    alone = model.logits(theta, model.encode(x[:1]), *scaling)
    among_others = model.logits(theta, model.encode(x), *scaling)[:1]
    torch.testing.assert_close(alone, among_others, rtol=1e-4, atol=1e-5)


def test_every_parameter_counts(fed: Federation) -> None:
    model = build_model(fed)
    x, y = examples(fed)
    loss = Objective(model, *no_scaling(model.scaling_size))
    gradient = torch.func.grad(loss)(some_theta(model), model.encode(x), y)
    assert all(part.any() for part in model.layout.unpack(gradient).values())


def test_logit_adjustment_makes_a_rare_class_cheaper_to_predict(fed: Federation) -> None:
    model = build_model(fed)
    x, _ = examples(fed)
    z, scaling = model.encode(x), no_scaling(model.scaling_size)
    rare = torch.full((len(x),), 2)
    prior = torch.tensor([0.6, 0.39, 0.01]).log()
    plain, adjusted = Objective(model, *scaling), Objective(model, *scaling, prior)
    torch.testing.assert_close(
        adjusted(model.initial(), z, rare),
        torch.nn.functional.cross_entropy(model.logits(model.initial(), z, *scaling) + prior, rare),
    )
    assert adjusted(model.initial(), z, rare) > plain(model.initial(), z, rare)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 3), (64, 1), (65, 3)])
@pytest.mark.parametrize("family", ["encoder-head", "conv4"])
def test_any_image_size_and_channels(family: str, size: int, channels: int) -> None:
    fed = federation(family, size=size, channels=channels)
    model = build_model(fed)
    z = model.encode(examples(fed, 2)[0])
    assert torch.isfinite(model.logits(some_theta(model), z, *no_scaling(model.scaling_size))).all()


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)])
def test_an_empty_image_has_finite_bounded_features(image: Tensor) -> None:
    z = build_model(federation("encoder-head", size=64)).encode(image)
    assert torch.isfinite(z).all()
    assert z.abs().max() <= 6


def test_the_built_in_encoder_has_so_many_features_and_no_more() -> None:
    with pytest.raises(ConfigError, match="2 to 64"):
        build_model(federation("encoder-head", features=65))


def test_the_fingerprint_tells_encoders_apart() -> None:
    fingerprints = {
        build_model(federation("encoder-head", size=size, channels=channels, features=features)).fingerprint
        for size, channels, features in [(28, 1, 8), (28, 1, 9), (28, 3, 8), (64, 1, 8)]
    }
    assert len(fingerprints) == 4


def test_a_table_is_brought_to_the_units_of_its_public_guesses() -> None:
    task = Task(
        label_column="disease",
        classes=("no", "yes"),
        kind="table",
        features=("age", "chol"),
        centre=(55, 240),
        spread=(15, 50),
    )
    federation = Federation(name="heart", task=task, model=ModelChoice(family="logistic"))
    z = build_model(federation).encode(torch.tensor([[70.0, 190.0]]))
    assert z.tolist() == [[1.0, -1.0]]


def test_guesses_that_do_not_fit_the_columns_are_refused() -> None:
    with pytest.raises(ValidationError, match="centre holds 1 numbers for 2 features"):
        Task(label_column="d", classes=("no", "yes"), kind="table", features=("age", "chol"), centre=(55,))
