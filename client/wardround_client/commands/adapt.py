"""`wardround hospital adapt`: fine-tune the shared model on this hospital's labelled patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround import __version__
from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import Table, emit, say, show
from wardround.text import counted
from wardround_client.commands._at_home import (
    NOTHING_LEFT,
    FederationOption,
    ModelOption,
    TaskOption,
    opened,
    say_if_learned,
    say_shortfall,
    scores,
    separated,
    stages,
    warn,
)
from wardround_client.commands._common import HERE, HomeArgument, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wardround_client.hospital import Hospital
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.data_checks import Finding
    from wardround_client.personal.learner import Learner
    from wardround_client.personal.own_task import Origins
    from wardround_client.personal.resemblances import Resemblance
    from wardround_client.personal.shared_model import SharedModel

_NAMED = 8  # classes in one sentence
_SHOWN = 20  # classes in one table


def adapt(
    home: HomeArgument = HERE,
    task: TaskOption = "",
    model: ModelOption = None,
    shots: Annotated[
        int,
        typer.Option(
            help="Labelled patients a class to learn from, at most half of those there are. 0: half of them. "
            "The others judge.",
            min=0,
            max=100_000,
        ),
    ] = 0,
    name: Annotated[str, typer.Option(help="Name of the adapted model.", show_default="the federation's name")] = "",
    federation: FederationOption = "",
    classes: Annotated[
        str, typer.Option(help="A new disease: its labels, separated by commas, instead of the task's.")
    ] = "",
    label_column: Annotated[str, typer.Option(help="The column of the labels, instead of the task's.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the split into support and query.", min=0)] = 0,
    draw: Annotated[int | None, typer.Option(hidden=True)] = None,  # --seed, as 0.1 called it
    tune: Annotated[
        bool | None,
        typer.Option(
            "--tune/--no-tune",
            help="Choose how far adapting goes, whether to train without the shared model, and which of the task's "
            "variants of an image to learn from, by cross-validation on the patients it learns from; takes some 50 "
            "times as long. Or as the federation agreed.",
            show_default="--tune, but for outlines, places and networks",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing adapted model.")] = False,
    replace: Annotated[bool, typer.Option("--replace", hidden=True)] = False,  # --overwrite, as 0.1 called it
    as_json: JsonOption = False,
) -> None:
    """Personalise the federation's model on this hospital's labelled patients, and judge it on those left out.

    Nothing leaves and nothing is charged. The result lies in HOME/adapted/NAME: a model that holds traces of the
    patients it was learned from, without noise, so it must stay here; and card.json, what it is worth.

    With other classes than the federation's, what was learned to see is kept. A class of the same name starts where the
    federation's is; for another name, [task.same_as] in a task file says which of its classes one of yours is like. The
    last layer of all others is learned from your patients alone. Which of its classes yours look like is told by the
    patients that are learned from, where they suffice.
    """
    from wardround_client.personal import adapted_file as store
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.before_after import before_and_after
    from wardround_client.personal.labelled import Labelled
    from wardround_client.personal.resemblances import at_home
    from wardround_client.personal.shared_model import choose

    hospital, seed = opened(home), seed if draw is None else draw
    with stages("reading the cohort", "adapting", "judging", quiet=as_json) as step:
        start = choose(
            hospital,
            task=task,
            federation=federation,
            file=model,
            label_column=label_column,
            classes=separated(classes),
        )
        name = check_name(name or start.federation.name)
        if not (overwrite or replace) and name in store.names(hospital.home):
            raise ConfigError(
                f"an adapted model {name!r} is there already", do="choose another --name, or add --overwrite"
            )
        cohort = hospital.patients.cohort()
        agreed, network, device = start.federation, start.model, hospital.device
        with hospital.patients.encoding(cohort, agreed, network, device) as by:
            everybody, findings = Labelled.of(cohort, agreed.task, network, device, shots=shots, by=by)
        support, query = everybody.split(shots, seed)
        step()
        made = AdaptedModel.learned(
            name, start, support, recipe=cohort.layout.recipe, shots=shots, seed=seed, tune=tune
        )
        step()
        like = {name: list(theirs) for name, theirs in start.like.items()}
        looks = at_home(start, support.examples)
        card = (
            _described(hospital, made, findings)
            | {"like": like, "looks_like": [each.record() for each in looks]}
            | before_and_after(
                made.learner,
                made.fitted,
                classes=start.federation.task.classes,
                support=support,
                query=query,
            )
        )
        folder = store.save(hospital.home, made, card, encoder_from=start.base)
    if as_json:
        emit(event="adapt", folder=str(folder), note=NOTHING_LEFT, **card)
        return
    warn(findings)
    show(scores({"before": card["before"], "after": card["after"]}, f"{name} at {card['hospital']}"))
    say_if_learned(hospital, made.release.federation)
    say_shortfall(card["after"], card["classes"])
    counted_as = made.learner.loss.labels.counted
    learned = ", ".join(f"{count} {counted_as.format(label)}" for label, count in card["support_by_class"].items())
    if made.new_classes:
        say(_starting(start.like))
    say(
        f"Learned from {counted(card['support_patients'], 'patient')} ({learned}); "
        f"judged by {counted(len(query.pseudonyms), 'other')}."
    )
    if start.starts_anew:
        say("This federation learned a last layer alone, which new classes replace: only its public encoder is used.")
    else:
        _say_ways(made.learner)
    if (augment := made.learner.loss.augment) != made.learner.augment:
        say(f"Of an image's variants those by {' and '.join(augment) or 'nothing'} were learned from: others did harm.")
    _say_looks(looks, start, whole=bool(classes))
    say(f"The adapted model is {folder}. It holds traces of patients: keep it here.")
    say(NOTHING_LEFT)


def _starting(like: Origins) -> str:
    """Where the last layer of a task of one's own starts."""
    known = [f"{name!r} from {' and '.join(map(repr, theirs))}" for name, theirs in like.items() if theirs]
    anew = [repr(name) for name, theirs in like.items() if not theirs]
    if not known:
        return "No class has a name of the federation's: all of the last layer is new."
    return f"Classes start at the federation's: {_some(known)}{f'; new: {_some(anew)}' if anew else ''}."


def _say_looks(looks: Sequence[Resemblance], start: SharedModel, *, whole: bool) -> None:
    """What the classes look like to the federation's model, and what to write where it is not declared. whole: the task
    stands in no file yet.
    """
    from wardround_client.personal.resemblances import lines

    if not looks:
        return
    rows = [(each.own, str(each.patients), *_look(each)) for each in looks[:_SHOWN]]
    more = f"; {len(looks) - _SHOWN} more are in card.json" if len(looks) > _SHOWN else ""
    caption = f"sure: how often the nearest comes out, were these patients drawn again{more}"
    title = "What your classes look like to the federation's model"
    show(Table(("class", ">patients", "looks like", ">sure"), rows, title, caption))
    if (epsilon := start.federation.privacy.epsilon) < _HARDLY_NOISY:
        say(_NOISY.format(epsilon=epsilon), "yellow")
    for each in looks:
        declared = start.like[each.own]
        if each.like and declared and not {*each.like} & {*declared}:
            there, seen = (" and ".join(map(repr, names)) for names in (declared, each.like))
            say(f"Warning: {each.own!r} starts at {there} and looks like {seen}. Next: check its labels.", "yellow")
    like = {each.own: start.like[each.own] or each.like for each in looks}
    if like != start.like:
        say("If a physician agrees, start there: put this into the task file, and adapt again with --overwrite.")
        for line in lines(like, start.federation.task, whole=whole):
            say(f"  {line}")


_HARDLY_NOISY = 100.0  # an epsilon
_NOISY = (
    "The federation's model holds the noise of epsilon {epsilon:g}, which this cannot see: on public data a third of "
    'what looked alike at epsilon 8 was not (docs/benchmarks.md, "Classes under other names").'
)


def _look(found: Resemblance) -> tuple[str, str]:
    """What it looks like, and how sure that is."""
    from wardround_client.personal.resemblances import LEAST

    if found.patients < LEAST or not found.nearest:
        return f"too few patients to tell: {LEAST} at least", ""
    sure = f"{100 * found.sure:.0f} %"
    return (" and ".join(found.like), sure) if found.like else (f"nothing for sure; perhaps {found.nearest}", sure)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])])


def _say_ways(learner: Learner) -> None:
    """What was adapted."""
    if learner.scored:
        say(f"How much an image looks like classes that the federation knows counts for {100 * learner.scored:.0f} %.")
    if (locally := learner.locally) is None:
        return
    share = f"{100 * locally:.0f} %"
    if locally > 0.99:
        say("Local training: the shared model did not help here.")
    elif locally > 0.5:
        say(f"For the most part local training ({share}): the shared model did not help much here.")
    elif locally > 0.01:
        say(f"From the shared model; local training, without it, counts for {share}.")
    else:
        say("From the shared model, which is better here than local training.")


def _described(hospital: Hospital, made: AdaptedModel, findings: Sequence[Finding]) -> dict[str, Any]:
    """Where an adapted model comes from."""
    from wardround_client.clock import now

    release, federation, learner = made.release, made.federation, made.learner
    setting = learner.algorithm.adapts_by
    return {
        "name": made.name,
        "hospital": hospital.config.hospital.name,
        "time": now(),
        "wardround": __version__,
        "federation": federation.name,
        "federation_sha256": release.federation,
        "run": release.run,
        "round": release.round,
        "algorithm": federation.algorithm.name,
        "label_column": federation.task.label_column,
        "new_classes": made.new_classes,
        "shots": made.shots,
        "seed": made.seed,
        **({setting: getattr(learner.algorithm, setting)} if setting and not learner.ways else {}),
        "ways": [{"start": way.start, setting: way.value, "weight": way.weight} for way in learner.ways],
        "augment": list(learner.loss.augment),
        "warnings": [f"{finding.what}. Next: {finding.do}." for finding in findings],
    }


command = Command(
    adapt,
    panel="Use at home",
    place=1,
    examples=(
        "wardround hospital adapt ~/st-anna",
        "wardround hospital adapt ~/st-anna --task federation.toml --model checkpoint.safetensors --shots 5",
        "wardround hospital adapt ~/st-anna --task lungs --classes normal,sarcoidosis --label-column diagnosis "
        "--name sarcoidosis",
        "wardround hospital adapt ~/st-anna --task new-disease.toml --federation lungs --json",
    ),
)
