"""The card of an exported model: what it was learned from and for, what it is worth, and what it must not be used for.

Small numbers of patients tell of patients: counts are multiples of STEP, rounded down, and what is below it is said to
be so; metrics of a scanner are shown from LEAST_JUDGED patients on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wardround import __version__
from wardround.text import listed
from wardround_client.clock import now
from wardround_client.config import HospitalConfig
from wardround_client.consent.facts import escaped
from wardround_client.personal.adapted_model import AdaptedModel
from wardround_client.personal.judged_file import Judgement
from wardround_client.personal.labelled import Labelled

STEP = 5
LEAST_JUDGED = 10
INTENDED = (
    "Research at the hospital that adapted it: a second opinion that a person reads beside the images, on studies like "
    "those that it was adapted to."
)
NOT_A_DEVICE = "Not a medical device. It is not cleared or certified for diagnosis or treatment anywhere."
LIMITS = (
    "Learned from the patients of one hospital; its scanners, its labels and its mixture of diseases are in it.",
    "The weights were adapted without noise: features of a patient can be read from them, above all where a class was "
    "learned from few. Guard the file as you guard images.",
    "The file checks nothing and refuses nothing: it takes intensities in [0, 1] as a viewer shows them, and square "
    "pixels, without text that is burned in. `wardround hospital predict` sees to all of that.",
    "It does not say when an image is unlike those that it knows; `wardround hospital predict` does.",
    "Intervals are of patients like those who judged it, and too narrow with fewer than about ten patients a class.",
)


def card(
    adapted: AdaptedModel,
    config: HospitalConfig,
    everybody: Labelled,
    judgements: Mapping[str, Judgement],
    files: Mapping[str, str],
    spent: float | None,
) -> dict[str, Any]:
    """Plain values. files: SHA-256 of each that was written. spent: epsilon of the ledger; None: it is not known."""
    task, release = adapted.federation.task, adapted.release
    learned = everybody.without(set(everybody.pseudonyms) - set(adapted.support))
    return {
        "name": adapted.name,
        "hospital": config.hospital.name,
        "time": now(),
        "wardround": __version__,
        "files": dict(files),
        "intended_use": INTENDED,
        "warning": NOT_A_DEVICE,
        "limits": list(LIMITS),
        "task": {"label_column": task.label_column, "classes": list(task.classes), "input": task.kind},
        "model": {
            "algorithm": adapted.federation.algorithm.name,
            "family": adapted.federation.model.family,
            "encoder": adapted.federation.model.encoder,
            "federation_sha256": release.federation,
            "run": release.run,
            "round": release.round,
        },
        "privacy": {
            "shared_model": {
                "epsilon_of_the_run": adapted.federation.privacy.epsilon,
                "delta_of_this_hospital": config.delta,
                "epsilon_this_hospital_spent_over_all_runs": spent,
            },
            "adapted_part": "no noise: epsilon says nothing about the patients that it was adapted to",
        },
        "data": {
            "counts": f"patients, in multiples of {STEP}, rounded down",
            "adapted_to": _counts(learned, task.classes),
            "judged_on": _counts(everybody.without(adapted.support), task.classes),
        },
        "metrics": {name: _metrics(each) for name, each in judgements.items()},
    }


def _counts(who: Labelled, classes: Sequence[str]) -> dict[str, Any]:
    """By class and by scanner."""
    import torch

    examples = who.examples
    shown = torch.zeros(examples.patients, examples.classes)
    if len(examples.y):
        shown.index_add_(0, examples.patient.cpu(), examples.targets.cpu())
    by_class = dict(zip(classes, (shown > 0).sum(0).tolist(), strict=True))
    return {
        "patients": _rounded(examples.patients),
        "by_class": {name: _rounded(int(count)) for name, count in by_class.items()},
        "by_scanner": {name: _rounded(count) for name, count in sorted(Counter(who.manufacturers).items())},
    }


def _rounded(count: int) -> str:
    return f"under {STEP}" if count < STEP else str(count - count % STEP)


def _metrics(judgement: Judgement) -> dict[str, Any]:
    judged, few = judgement.judged, f"under {LEAST_JUDGED} patients"
    return {
        "largest_difference_from_torch": float(f"{judgement.difference:.2g}"),
        "bytes": judgement.bytes,
        "bytes_compressed": judgement.compressed,
        "milliseconds": round(judgement.ms, 2),
        "threads": 1,
        "values": _three_digits(judged["metrics"]),
        "by_scanner": {
            maker: _three_digits(of_maker["metrics"]) if of_maker["patients"] >= LEAST_JUDGED else few
            for maker, of_maker in judged["manufacturers"].items()
        },
    }


def _three_digits(metrics: Mapping[str, Mapping[str, float] | None]) -> dict[str, Any]:
    """More would tell of how many patients a share is."""
    return {name: each and {key: round(value, 3) for key, value in each.items()} for name, each in metrics.items()}


def markdown(said: Mapping[str, Any]) -> str:
    """The same for a reader."""
    model, privacy, shared = said["model"], said["privacy"], said["privacy"]["shared_model"]
    spent = shared["epsilon_this_hospital_spent_over_all_runs"]
    lines = [
        f"# Model card: {escaped(said['name'])}",
        "",
        f"**{said['warning']}**",
        "",
        f"{said['intended_use']} Exported by wardround {said['wardround']} at {escaped(said['hospital'])}, "
        f"{said['time']}.",
        "",
        "## Task",
        "",
        f"{escaped(said['task']['label_column'])}: {escaped(listed(said['task']['classes']), 2000)}. "
        f"Input: {said['task']['input']}.",
        "",
        "## Model",
        "",
        *_table(("what", "value"), [(key.replace("_", " "), value) for key, value in model.items()]),
        "",
        *_table(("file", "SHA-256"), list(said["files"].items())),
        "",
        "## Privacy",
        "",
        f"The shared model: epsilon {shared['epsilon_of_the_run']:g} of its run, as agreed, at delta "
        f"{shared['delta_of_this_hospital']:.3g} here; over all runs this hospital has spent "
        f"{'an unknown epsilon' if spent is None else f'epsilon {spent:.4g}'}. The adapted part: "
        f"{privacy['adapted_part']}.",
        "",
        "## Data",
        "",
        f"Counts are {said['data']['counts']}.",
        "",
        *_data(said["data"]),
        "",
        "## What it is worth",
        "",
        "Patients whom it was not adapted to; in brackets the 95 % interval over patients.",
        "",
        *_worth(said["metrics"]),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in said["limits"]),
        "",
    ]
    return "\n".join(lines)


def _data(data: Mapping[str, Any]) -> list[str]:
    adapted, judged = data["adapted_to"], data["judged_on"]
    rows: list[tuple[object, ...]] = [("patients", adapted["patients"], judged["patients"])]
    for key, what in (("by_class", "class"), ("by_scanner", "scanner")):
        names = dict.fromkeys((*adapted[key], *judged[key]))
        nobody = _rounded(0)
        rows += [(f"{what}: {name}", adapted[key].get(name, nobody), judged[key].get(name, nobody)) for name in names]
    return _table(("", "adapted to", "judged on"), rows)


def _worth(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    ways = list(metrics)
    first = metrics[ways[0]]
    rows: list[tuple[object, ...]] = [
        ("largest difference from torch", *(f"{metrics[way]['largest_difference_from_torch']:.2g}" for way in ways)),
        ("bytes", *(f"{metrics[way]['bytes']:,}" if metrics[way]["bytes"] else "-" for way in ways)),
        (
            "bytes, compressed",
            *(f"{metrics[way]['bytes_compressed']:,}" if metrics[way]["bytes"] else "-" for way in ways),
        ),
        ("ms an input, 1 thread", *(f"{metrics[way]['milliseconds']:.2f}" for way in ways)),
    ]
    rows += [
        (name.replace("_", " "), *(_estimate(metrics[way]["values"][name]) for way in ways)) for name in first["values"]
    ]
    main = next(iter(first["values"]), "")
    for maker in first["by_scanner"]:
        cells = [metrics[way]["by_scanner"][maker] for way in ways]
        said = [each if isinstance(each, str) else _estimate(each[main]) for each in cells]
        rows.append((f"{main.replace('_', ' ')}, {maker}", *said))
    return _table(("", *ways), rows)


def _estimate(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows),
    ]
