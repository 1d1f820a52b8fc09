"""`wardround hospital evaluate`: what a model is worth to this hospital's own patients, before and after adapting."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import emit, say, show
from wardround_client.commands._at_home import (
    NOTHING_LEFT,
    FederationOption,
    ModelOption,
    TaskOption,
    decisions,
    opened,
    say_if_learned,
    say_shortfall,
    scores,
    stages,
    warn,
)
from wardround_client.commands._common import HERE, HomeArgument


def evaluate(
    home: HomeArgument = HERE,
    adapted: Annotated[
        str,
        typer.Option(help="Name of an adapted model; not needed where there is one.", show_default=False),
    ] = "",
    unadapted: Annotated[
        bool, typer.Option("--unadapted", help="The federation's model as it is, on all labelled patients.")
    ] = False,
    task: TaskOption = "",
    model: ModelOption = None,
    federation: FederationOption = "",
    as_json: JsonOption = False,
) -> None:
    """Judge a model on this hospital's labelled patients, each metric with its interval, and by scanner manufacturer.

    An adapted model is judged on patients it was not learned from, those who came in since among them, and the
    federation's model on the same patients beside it. All images of a patient make one prediction.
    """
    if adapted and unadapted:
        raise ConfigError("--adapted and --unadapted were both given", do="take one")
    if not unadapted and (task or model or federation):
        raise ConfigError("--task, --model and --federation choose an unadapted model", do="add --unadapted")
    from wardround_client.office.models import chosen
    from wardround_client.personal.kinds import at_home
    from wardround_client.personal.labelled import Labelled
    from wardround_client.personal.shared_model import choose

    hospital = opened(home)
    seen: tuple[bytes, ...] = ()
    with stages("reading the cohort", "judging", quiet=as_json) as step:
        if unadapted:
            start = choose(hospital, task=task, federation=federation, file=model)
            name, agreed, learner = "", start.federation, start.learner(hospital.device)
            release = start.release
            fits = {"before": learner.unadapted()}
        else:
            found = chosen(hospital, adapted)
            name, agreed, learner, release = found.name, found.federation, found.learner, found.release
            fits, seen = {"before": learner.unadapted(), "after": found.fitted}, found.support
        judging = agreed.task.model_copy(update={"augment": ()})
        cohort, network = hospital.patients.cohort(), learner.loss.model
        with hospital.patients.encoding(cohort, agreed, network, hospital.device) as by:
            everybody, findings = Labelled.of(cohort, judging, network, hospital.device, by=by)
        query, kind = everybody.without(seen), at_home(learner.loss.labels)
        step()
        judged: dict[str, dict[str, Any]] = {
            when: kind.report(learner, fitted, query, agreed.task.classes).to_json() for when, fitted in fits.items()
        }
    said = {
        "name": name,
        "hospital": hospital.config.hospital.name,
        "federation": agreed.name,
        "label_column": agreed.task.label_column,
        "classes": list(agreed.task.classes),
        "warnings": [f"{finding.what}. Next: {finding.do}." for finding in findings],
    }
    if as_json:
        emit(event="evaluate", note=NOTHING_LEFT, **said, **judged)
        return
    warn(findings)
    shown = judged if name else {"as it is": judged["before"]}
    show(scores(shown, f"{name or agreed.name} at {said['hospital']}"))
    for table in decisions([*judged.values()][-1], agreed.task.classes):
        say("")
        show(table)
    say("")
    say_if_learned(hospital, release.federation)
    say_shortfall(judged["before"], agreed.task.classes)
    say(NOTHING_LEFT)


command = Command(
    evaluate,
    panel="Use at home",
    place=2,
    examples=(
        "wardround hospital evaluate ~/st-anna",
        "wardround hospital evaluate ~/st-anna --adapted lungs --json",
        "wardround hospital evaluate ~/st-anna --unadapted --task federation.toml --model checkpoint.safetensors",
    ),
)
