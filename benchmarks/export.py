"""Exported models: bytes, milliseconds and a metric of torch, of the ONNX file, and of its smaller variants.

    python benchmarks/export.py --data FOLDER [--patients 300]

Each model is adapted to half of the patients of one public data set and judged on the other half, as the commands
`adapt` and `export` do; the shared start is untrained. One thread, one input at a time, all ways in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import real_data
from wardround.config import Federation
from wardround.models import build_model
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import image_by_image
from wardround_client.personal.adapted_model import AdaptedModel, EmbeddedSupport
from wardround_client.personal.judged_file import Patients, judgements
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.smaller import pruned, quantised
from wardround_client.personal.whole_model import written_whole

PRUNED = (0.3, 0.6)
MODELS: dict[str, dict[str, Any]] = {
    "built-in encoder, 32 features, linear head": {"features": 32},
    "Conv4-32": {"family": "conv4", "width": 32},
}


def some(site: real_data.Site, patients: int, generator: torch.Generator) -> real_data.Site:
    """So many patients of a data set, drawn."""
    names = torch.unique(torch.from_numpy(site.patient))
    chosen = names[torch.randperm(len(names), generator=generator)[:patients]]
    rows = torch.isin(torch.from_numpy(site.patient), chosen).nonzero().flatten()
    label = tuple(site.label[row] for row in rows.tolist())
    return real_data.Site(site.name, site.x[rows], label, site.patient[rows.numpy()])


def adapted_to(site: real_data.Site, model: dict[str, Any]) -> tuple[AdaptedModel, Patients]:
    """An adapted model, and the patients whom it has not seen."""
    classes = sorted(set(site.label))
    task = {"label_column": "class", "classes": classes, "image_size_px": site.x.shape[-1], "channels": site.x.shape[1]}
    federation = Federation.model_validate({"name": "export", "task": task, "model": model})
    network = build_model(federation)
    theta = network.initial()
    shift, scale = torch.zeros(network.scaling_size), torch.ones(network.scaling_size)
    learner = Learner.of(federation, network, theta, shift, scale)
    z = image_by_image(network.encode, site.x)
    y = torch.tensor([classes.index(name) for name in site.label])
    patient = torch.unique(torch.from_numpy(site.patient), return_inverse=True)[1]
    examples = Examples(z, y, patient, network.summary(z), len(classes))
    names = tuple(number.to_bytes(4, "big") for number in range(examples.patients))
    everybody = Labelled(examples, names, ("unknown",) * len(names))
    support, query = everybody.split(0, 0)
    seen = {names.index(name) for name in support.pseudonyms}
    x = site.x[[each not in seen for each in patient.tolist()]]

    def inputs() -> Iterator[Tensor]:
        yield from torch.split(x, 1)

    release = Release(run="", federation=federation.digest, round=0, theta=theta, shift=shift, scale=scale)
    cases = EmbeddedSupport.of(learner, support.examples)
    fitted = learner.adapt(support.examples)
    made = AdaptedModel(site.name, federation, release, learner, fitted, cases, support.pseudonyms, "", 0, 0, False)
    return made, Patients(query, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the public data")
    parser.add_argument("--patients", type=int, default=300)
    asked = parser.parse_args()
    data = real_data.folder(asked.data)
    generator = torch.Generator().manual_seed(0)
    skin = max(real_data.ham10000(data), key=lambda each: len(each.x))
    sites = {
        "skin, 28 px, colour": some(skin, asked.patients, generator),
        "chests of children, 28 px": some(real_data.pneumonia(data)[0], asked.patients, generator),
    }
    print("| data | model | file | bytes | compressed | ms | largest difference | balanced accuracy |")
    print("|---|---|---|---|---|---|---|---|")
    for named, site in sites.items():
        for described, model in MODELS.items():
            made, patients = adapted_to(site, model)
            whole = written_whole(made)
            files = {"ONNX": whole, "int8": quantised(whole)}
            files |= {f"without {share:.0%} of each weight": pruned(whole, share) for share in PRUNED}
            for way, found in judgements(made, patients, files, lambda: None).items():
                _, value = found.main
                judged = ("{value:.1%} ({low:.1%} to {high:.1%})" if value else "").format(**(value or {}))
                size = f"{found.bytes:,} | {found.compressed:,}" if found.bytes else "- | -"
                cells = (named, described, way, size, f"{found.ms:.1f}", f"{found.difference:.1g}", judged)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
