"""The hospital's policy: each rule of [policy] in hospital.toml, checked against what a federation would ask.

Checked when a federation is approved and again whenever it is loaded, on the hospital's own copy of the agreement, and
for the numbers of a request when it arrives. No rule looks at data, and a refusal costs nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from wardround.accountant import Calibration
from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.models import Model
from wardround.schedule import Schedule
from wardround.settings import limited, unbounded
from wardround.wire import RoundRequest, Vector
from wardround_client.config import HospitalConfig, Policy

BYTES_PER_NUMBER = 4  # float32
Rule = tuple[str, str, str, bool]
"""(rule, asked, allowed, whether it holds)."""


def check(
    config: HospitalConfig, federation: Federation, schedule: Schedule, calibration: Calibration, model: Model
) -> None:
    """Refuse a federation that asks for more than the hospital permits.

    Args:
        config: the hospital's own.
        federation: the agreement.
        schedule: its rounds.
        calibration: its noise at this hospital.
        model: its model.

    Raises: PolicyRefusal, for the first rule that is broken.
    """
    _hold(_rules_of_privacy(config, federation, schedule, calibration))
    check_sizes(config, federation)
    _hold(_rules_of_learning(config, federation))
    _hold(_rules_of_model(config.policy, federation, schedule, calibration, model))


def check_sizes(config: HospitalConfig, federation: Federation, base: Path | None = None) -> None:
    """Refuse an algorithm before it computes anything, and sizes before anything of that size is read or built.

    Args:
        config: the hospital's own.
        federation: the agreement.
        base: the folder of its encoder's file; None leaves that file alone.

    Raises: PolicyRefusal.
    """
    _hold(_rules_of_learning(config, federation))
    _hold(_rules_of_size(config.policy, federation, base))


def _hold(rules: Iterator[Rule]) -> None:
    for rule, asked, allowed, holds in rules:
        if not holds:
            raise PolicyRefusal(f"policy.{rule}", asked=asked, allowed=allowed)


# Comparisons are written so that NaN never holds.


def _at_most(policy: Policy, name: str, asked: float) -> Rule:
    limit = getattr(policy, f"greatest_{name}")
    return f"greatest_{name}", _number(asked), f"at most {_number(limit)}", asked <= limit


def _at_least(policy: Policy, name: str, asked: float) -> Rule:
    limit = getattr(policy, f"least_{name}")
    return f"least_{name}", _number(asked), f"at least {_number(limit)}", asked >= limit


def _among(rule: str, asked: Iterable[str], allowed: Collection[str]) -> Rule:
    extra = sorted({each for each in asked if each not in allowed})
    return rule, ", ".join(extra)[:200], ", ".join(allowed)[:200] or "none", not extra


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _rules_of_privacy(
    config: HospitalConfig, federation: Federation, schedule: Schedule, calibration: Calibration
) -> Iterator[Rule]:
    policy, privacy, declared = config.policy, federation.privacy, config.hospital.declared_patients
    yield _at_least(policy, "noise_multiplier", calibration.least_noise())
    yield _at_most(policy, "epsilon", privacy.epsilon)
    yield _at_least(policy, "clip_norm", privacy.clip_norm)
    yield _at_most(policy, "clip_norm", privacy.clip_norm)
    fewest = policy.least_patients
    yield "least_patients", f"a cohort of {declared} declared", f"at least {fewest}", declared >= fewest
    yield _among("questions", schedule.questions, policy.questions)
    steps = max((plan.times for plan in schedule.rounds if plan.trains), default=0)
    yield _at_most(policy, "gradients_per_round", steps)
    yield _at_most(policy, "rounds", len(schedule))
    rate = calibration.sampling_rate
    yield "greatest_sampling_rate", _number(rate), "above 0", rate > 0
    yield _at_most(policy, "sampling_rate", rate)
    yield _at_most(policy, "images_per_patient", privacy.images_per_patient)


def _rules_of_learning(config: HospitalConfig, federation: Federation) -> Iterator[Rule]:
    """Whatever the algorithm is: what of its settings no limit bounds must have bounds of its own, which are those of
    the class that this hospital installed.
    """
    policy, algorithm, privacy = config.policy, federation.algorithm, federation.privacy
    yield _among("algorithms", [algorithm.name], policy.algorithms)
    for name, value in limited(algorithm).items():
        if f"least_{name}" in Policy.model_fields:
            yield _at_least(policy, name, value)
        if f"greatest_{name}" in Policy.model_fields:
            yield _at_most(policy, name, value)
    free = unbounded(type(algorithm), limits=Policy.model_fields)
    asked = f"{algorithm.name}, whose settings {', '.join(free)} have no bounds"[:200]
    yield "algorithms", asked, "a limit of the policy, or bounds of its own, for every setting", not free
    yield _at_most(policy, "patients_per_episode", privacy.patients_per_episode)
    yield _at_most(policy, "episodes", privacy.episodes(config.hospital.declared_patients))
    yield _at_least(policy, "support_share", privacy.support_share)
    yield _at_most(policy, "support_share", privacy.support_share)


def _rules_of_size(policy: Policy, federation: Federation, base: Path | None) -> Iterator[Rule]:
    task, model = federation.task, federation.model
    yield _among("questions", federation.rounds.questions, policy.questions)  # before any of another's code is run
    yield _among("families", [model.family], policy.families)
    yield _among("labels", task.written, policy.labels or task.written)
    yield _at_most(policy, "classes", len(task.classes))
    yield _at_most(policy, "image_size_px", max(each.image_size_px for each in task.examples))
    yield _at_most(policy, "depth", max(each.depth for each in task.examples))
    yield _at_most(policy, "inputs", len(task.examples))
    yield _at_most(policy, "variants", task.variants)
    yield _at_most(policy, "cells", task.cells)
    yield _at_most(policy, "cells_per_image", task.drawn)
    columns = (len(each.features) + len(each.gaps) for each in task.examples)
    yield _at_most(policy, "features", max(model.features, *columns))
    yield _at_most(policy, "embedding", model.embedding)
    yield _at_most(policy, "width", model.width)
    centres, spreads = ([value for each in task.examples for value in getattr(each, of)] for of in ("centre", "spread"))
    for name, values in (
        ("centre", centres),
        ("spread", spreads),
        ("1 / spread", [math.inf if value < 1e-300 else 1 / value for value in spreads]),
    ):
        yield _magnitude_rule(policy, name, max(map(abs, values), default=0.0))
    if base is not None and model.encoder != "builtin":
        file = base / model.encoder
        yield _at_most(policy, "encoder_bytes", file.stat().st_size if file.is_file() else 0)


def _rules_of_model(
    policy: Policy, federation: Federation, schedule: Schedule, calibration: Calibration, model: Model
) -> Iterator[Rule]:
    yield _at_most(policy, "parameters", model.layout.size)
    mixing = sorted(mixing_layers(model))
    yield "model", ", ".join(mixing)[:200], "layers that keep patients apart, such as GroupNorm", not mixing
    finite = all(math.isfinite(calibration.noise_multiplier(plan.question)) for plan in schedule.rounds)
    yield "model", "answers without a finite noise", "finite noise", finite
    longest = max(schedule.answer_sizes(federation, model))
    yield _at_most(policy, "answer_bytes", BYTES_PER_NUMBER * longest)


def _magnitude_rule(policy: Policy, name: str, magnitude: float) -> Rule:
    limit = policy.greatest_magnitude
    return "greatest_magnitude", f"{name} of magnitude {magnitude:.4g}", f"at most {limit:g}", magnitude <= limit


def check_request(config: HospitalConfig, request: RoundRequest) -> None:
    """Refuse numbers at which arithmetic breaks down, whoever's patients they meet.

    Args:
        config: the hospital's own.
        request: theta, shift and scale, finite, scale > 0.

    Raises: PolicyRefusal.
    """
    found = {
        "theta": _magnitude(request.theta),
        "shift": _magnitude(request.shift),
        "scale": _magnitude(request.scale),
        "1 / scale": 1 / float(request.scale.min()) if request.scale.size else 0.0,
    }
    _hold(_magnitude_rule(config.policy, name, magnitude) for name, magnitude in found.items())


def _magnitude(vector: Vector) -> float:
    """The greatest absolute value; by its ends, so that nothing of the vector's size is allocated."""
    return max(float(vector.max()), -float(vector.min())) if vector.size else 0.0


def mixing_layers(model: object) -> set[str]:
    """Layers under which one patient's gradient depends on another, BatchNorm and its like.

    Opacus' ModuleValidator judges every torch module that the model holds. It looks at trainable layers only, and ours
    take their parameters from outside, so it is shown a copy that is trainable. A frozen encoder may hold BatchNorm,
    but only in evaluation mode, where it is a fixed map of one image.
    """
    from opacus.validators import ModuleValidator  # Opacus takes a second to import

    found = set()
    for module, frozen in _modules(model):
        for name, layer in module.named_modules():
            if isinstance(layer, _NormBase) and (layer.training if frozen else layer.track_running_stats):
                found.add(f"{type(layer).__name__} {name}".strip())
        if not frozen:
            trainable = copy.deepcopy(module).requires_grad_(True)
            found |= {str(error).splitlines()[0] for error in ModuleValidator.validate(trainable, strict=False)}
    return found


def _modules(owner: object, frozen: bool = False, depth: int = 4) -> Iterator[tuple[nn.Module, bool]]:
    """The torch modules of an object and of what it holds, and whether they belong to its frozen encoder."""
    if isinstance(owner, nn.Module):
        yield owner, frozen
    elif depth and hasattr(owner, "__dict__"):
        for name, value in vars(owner).items():
            yield from _modules(value, frozen or name == "encoder", depth - 1)
