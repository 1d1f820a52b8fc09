"""What an agreement would have this hospital compute, in plain words: every setting that decides it, and no other.

The approve screen shows these lines. A test walks all settings of a federation, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from wardround.accountant import Calibration
from wardround.config import Federation, Privacy
from wardround.labels import LABEL_KINDS
from wardround.schedule import Schedule
from wardround.settings import Unit
from wardround.settings import computed as settings_of
from wardround.task import EVERY, Example, Input, Task
from wardround.text import listed

_TASKS: dict[Unit, str] = {
    "hospitals": "a hospital",
    "episodes": "an episode of its patients",
    "stand-ins": "a patient, after learning from some who are drawn around what hospitals released of each class",
}


def computed(
    federation: Federation, schedule: Schedule, calibration: Calibration, declared_patients: int
) -> dict[str, str]:
    """A few words a line, from public numbers alone."""
    return {
        "labels": _labels(federation.task),
        "input": _input(federation.task),
        "network": _network(federation),
        "task_of_learning": _steps(federation),
        "patients_of_an_answer": _sample(federation.privacy, calibration),
        "episodes": _episodes(federation, declared_patients),
        "clip_norm": f"{federation.privacy.clip_norm:g}",
        "noise_in_clip_norms": _noise(schedule, calibration),
    }


def _labels(task: Task) -> str:
    said = LABEL_KINDS[task.labels].described
    if task.ends:
        ends = (f"{name} at {end:g}" for name, end in zip(task.classes, task.ends, strict=True))
        said += f"; intervals end {listed([*ends])}, in the unit of {task.label_column}"
        said += f"; {task.event_column} says whether it was" if task.event_column else ""
    meant = [f"{written!r} as {f'{means!r}' if means else 'no label'}" for written, means in task.values]
    return f"{said}; the CSV's {listed(meant)}" if meant else said


def _input(task: Task) -> str:
    if task.inputs:
        return "; ".join(f"{each.name}: {_of_example(each)}{_which(each)}" for each in task.inputs)
    said = _of_example(task)
    if task.dense:
        cells = f"{task.drawn} of its {task.cells} cells of {task.cell_px} px"
        said += f"; of each {cells}, half of them where something is shown"
    return f"{said}, {task.variants} variants of each ({', '.join(task.augment)})" if task.augment else said


def _which(chosen: Input) -> str:
    rules = {"modality": chosen.modality, "view": chosen.view, "series": chosen.series}
    said = ", ".join(f"{name} {value}" for name, value in rules.items() if value)
    return f" ({said})" if said else ""


def _of_example(task: Example) -> str:
    if task.kind == "table":
        said = f"a table of {_count(len(task.features), 'column')}: {listed(task.features)}"
        for name, values in (("centres", task.centre), ("spreads", task.spread)):
            said += f"; {name} {listed([f'{value:g}' for value in values])}" if values else ""
        said += f"; {listed(task.may_miss).replace(EVERY, 'each')} may be missing, with a flag" if task.may_miss else ""
        said += "; as ranks within a patient" if task.ranks else ""
        return said
    colour = "grey" if task.channels == 1 else "RGB"
    if task.kind == "volume":
        spacing = f", {task.spacing_mm[0]:g} x {task.spacing_mm[1]:g} mm apart" if task.spacing_mm else ""
        said = f"{colour} volumes of {task.depth} slices of {task.image_size_px} x {task.image_size_px} px{spacing}"
    else:
        said = f"{colour} images of {task.image_size_px} x {task.image_size_px} px"
    return f"{said}, {task.measured}" if task.measured else said


def _network(federation: Federation) -> str:
    model = federation.model
    if model.family == "logistic":
        return "logistic"
    if model.family in ("conv4", "mlp"):
        return f"{model.family} of width {model.width}"
    encoder = "built-in encoder"
    if model.encoder != "builtin":
        encoder = f"encoder {model.encoder} (SHA-256 {model.encoder_sha256[:16]})"
    embedding = f"an embedding of {model.embedding}" if model.embedding else "no embedding"
    if model.family == "projection":
        encoder = "random projections of the columns"
    return f"{encoder}, {_count(model.features, 'feature')}, {embedding}"


def _steps(federation: Federation) -> str:
    algorithm = federation.algorithm
    drawn = algorithm.unit == "stand-ins"
    settings = [(name, value) for name, value in settings_of(algorithm).items() if drawn or name != "stand_ins"]
    values = [
        f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}" for name, value in settings
    ]
    return f"{_TASKS[algorithm.unit]}, {_count(algorithm.answers_per_round, 'answer')} a round: {', '.join(values)}"


def _sample(privacy: Privacy, calibration: Calibration) -> str:
    rate = calibration.sampling_rate
    who = "everybody" if rate == 1 else f"each with probability {rate:.4g}"
    return f"{who}, at most {_count(privacy.images_per_patient, 'image')} of each"


def _episodes(federation: Federation, declared_patients: int) -> str:
    if federation.algorithm.question != "episode_gradient":
        return "none"
    privacy = federation.privacy
    episodes = privacy.episodes(declared_patients)
    return (
        f"{episodes} of about {privacy.patients_per_episode} patients, a share of {privacy.support_share:.4g} "
        f"to learn from; at most {privacy.side_cap(declared_patients)} on either side"
    )


def _noise(schedule: Schedule, calibration: Calibration) -> str:
    """The standard deviation that each question's answer gets, in units of what one patient may move."""
    return ", ".join(f"{name} {calibration.noise_multiplier(name):.4g}" for name in schedule.questions)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
