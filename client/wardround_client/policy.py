"""The hospital's policy: each rule of [policy] in hospital.toml, checked against what a federation would ask.

Checked when a federation is approved and again whenever it is loaded, on the hospital's own copy of the agreement, and
for the numbers of a request when it arrives. No rule looks at data, and a refusal costs nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from wardround.accountant import Calibration
from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.models import Model
from wardround.schedule import Schedule
from wardround.wire import RoundRequest, Vector
from wardround_client.config import HospitalConfig


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
    for rule, asked, allowed, holds in _rules(config, federation, schedule, calibration, model):
        if not holds:
            raise PolicyRefusal(f"policy.{rule}", asked=asked, allowed=allowed)


def _rules(
    config: HospitalConfig, federation: Federation, schedule: Schedule, calibration: Calibration, model: Model
) -> Iterator[tuple[str, str, str, bool]]:
    """(rule, asked, allowed, whether it holds). Comparisons are written so that NaN never holds."""
    policy, privacy = config.policy, federation.privacy

    noise = calibration.least_noise()
    least = policy.least_noise_multiplier
    yield "least_noise_multiplier", f"{noise:.4g}", f"at least {least:g}", noise >= least

    clip, most = privacy.clip_norm, policy.greatest_clip_norm
    yield "greatest_clip_norm", f"{clip:g}", f"at most {most:g}", clip <= most

    patients, fewest = config.hospital.declared_patients, policy.least_patients
    yield "least_patients", f"a cohort of {patients} declared", f"at least {fewest}", patients >= fewest

    steps = max((plan.times for plan in schedule.rounds if plan.trains), default=0)
    limit = policy.greatest_gradients_per_round
    yield "greatest_gradients_per_round", f"{steps}", f"at most {limit}", steps <= limit

    rounds, longest = len(schedule), policy.greatest_rounds
    yield "greatest_rounds", f"{rounds}", f"at most {longest}", rounds <= longest

    rate, fastest = calibration.sampling_rate, policy.greatest_sampling_rate
    yield "greatest_sampling_rate", f"{rate:.4g}", f"at most {fastest:g}", 0 < rate <= fastest

    images, many = privacy.images_per_patient, policy.greatest_images_per_patient
    yield "greatest_images_per_patient", f"{images}", f"at most {many}", images <= many

    family = federation.model.family
    yield "families", family, ", ".join(policy.families) or "none", family in policy.families

    parameters, largest = model.layout.size, policy.greatest_parameters
    yield "greatest_parameters", f"{parameters}", f"at most {largest}", parameters <= largest

    foreign = [code for code in federation.task.classes if policy.labels and code not in policy.labels]
    yield "labels", ", ".join(foreign)[:200], ", ".join(policy.labels)[:200], not foreign

    asked = {plan.question for plan in schedule.rounds if plan.times}
    extra = sorted(asked - set(policy.questions))
    yield "questions", ", ".join(extra), ", ".join(policy.questions) or "none", not extra

    mixing = sorted(mixing_layers(model))
    yield "model", ", ".join(mixing)[:200], "layers that keep patients apart, such as GroupNorm", not mixing

    finite = all(math.isfinite(calibration.noise_multiplier(plan.question)) for plan in schedule.rounds)
    yield "model", "answers without a finite noise", "finite noise", finite


def check_request(config: HospitalConfig, request: RoundRequest) -> None:
    """Refuse numbers at which arithmetic breaks down, whoever's patients they meet.

    Args:
        config: the hospital's own.
        request: theta, shift and scale, finite, scale > 0.

    Raises: PolicyRefusal.
    """
    limit = config.policy.greatest_magnitude
    found = {
        "theta": _magnitude(request.theta),
        "shift": _magnitude(request.shift),
        "scale": _magnitude(request.scale),
        "1 / scale": 1 / float(request.scale.min()) if request.scale.size else 0.0,
    }
    for name, magnitude in found.items():
        if not magnitude <= limit:
            raise PolicyRefusal(
                "policy.greatest_magnitude", asked=f"{name} of magnitude {magnitude:.4g}", allowed=f"at most {limit:g}"
            )


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
