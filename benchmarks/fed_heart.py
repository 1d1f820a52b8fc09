"""Heart disease at four real hospitals, from tables: what is a federation worth to a new hospital?

    python benchmarks/fed_heart.py [--data DIR] [--study NAME ...] [--rows NAME ...|main|all]
                                   [--epsilon none 8 3 1] [--seeds 5] [--out DIR] [--json]

UCI Heart Disease (Janosi, Steinbrunn, Pfisterer and Detrano, 1988), 123 to 303 patients a hospital: healthy or not,
from the ten columns that all of them recorded. A value that is missing becomes the usual one, from textbooks
(`real_data.heart`): all cholesterol of Switzerland, 28 % of it and of blood pressure at the veterans' hospital.

Each hospital in turn takes no part, and adapts with 0, 1, 5 or 20 patients of each class. Settings are chosen at each
of the other three while the remaining two learn. Once with logistic regression and once with a network of one hidden
layer; methods that learn an embedding have a hidden layer in both.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from hospitals import Problem, Study, Target, agreed, examples_of, unchanging
from real_data import HEART_CENTRE, HEART_FEATURES, HEART_SPREAD, Site, heart
from rows import Trial, rows
from study import parser, run
from wardround.config import Federation, ModelChoice
from wardround.models import build_model
from wardround.task import Task
from wardround_client.cohort.examples import Examples

CLASSES = ("healthy", "disease")
SHOTS = (0, 1, 5, 20)
HIDDEN = 8
EMBEDDINGS = (4, 8)
RATE = 5.0
"""Of FedAvg: ten standardised columns are longer than an image's features, and at 20 a run diverges."""
TASK = Task(
    label_column="num", classes=CLASSES, kind="table", features=HEART_FEATURES, centre=HEART_CENTRE, spread=HEART_SPREAD
)


def studies(data: Path) -> list[Study]:
    """Every hospital in turn is new, once for each model."""
    sites = heart(data)
    return [
        Study(
            f"new hospital {new.name}, {model}",
            SHOTS,
            partial(unchanging, _problem(sites, new)),
            tuple(_problem([site for site in sites if site != new], each) for each in sites if each != new),
            partial(_federation, hidden),
            build_model,
        )
        for model, hidden in (("logistic", 0), (f"{HIDDEN} hidden", HIDDEN))
        for new in sites
    ]


def _problem(sites: list[Site], new: Site) -> Problem:
    """All sites but one learn, and that one is new."""
    sources = {site.name: _examples(site) for site in sites if site != new}
    here = _examples(new)
    return Problem(f"{'+'.join(sources)} for {new.name}", CLASSES, sources, (Target(new.name, CLASSES, here, here),))


def _examples(site: Site) -> Examples:
    """Encoded by the public guesses, which is all that is frozen in either model."""
    z = build_model(_federation(0, CLASSES, "fedavg", Trial(), 8.0)).encode(site.x)
    return examples_of(z, site.label, site.patient, CLASSES, np.ones(len(site.label), dtype=bool))


def _federation(hidden: int, classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
    """What the hospitals would agree on; hidden: units, for methods that can do without."""
    width = trial.embedding or hidden
    model = ModelChoice(family="mlp", width=width) if width else ModelChoice(family="logistic")
    task = TASK.model_copy(update={"classes": classes})
    return Federation(name="fed-heart", task=task, model=model, **agreed(algorithm, trial, epsilon))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("fed_heart", "Heart disease at four hospitals: a new hospital.", encoder=False)
    run(known.parse_args(arguments), lambda data, console: studies(data), rows(EMBEDDINGS, rate=RATE))


if __name__ == "__main__":
    main()
