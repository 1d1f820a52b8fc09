"""Classes under other names: what is a federation worth to a hospital that calls its classes otherwise?

    python benchmarks/other_names.py [--data DIR] [--encoder FILE --features N] [--study NAME ...] [--stand-ins]
                                     [--rows NAME ...] [--epsilon none 8] [--shots 1 5 20] [--seeds 5] [--out DIR]
                                     [--json]

Fed-HAM, as in fed_ham.py. All hospitals but one learn its seven classes by FedAvg; the one that took no part has 1, 5
or 20 lesions of each class of its own, of which it has ten at least, and is judged on all others. Its classes are

* renamed: the same under other names;
* merged, in two (malignant or benign) and in three (of melanocytes, of keratinocytes, others);
* split: nevi by the patient's age, benign keratoses by whether they are on the face, which are columns of the referral;
* unrelated: nevi by where they are, and by the patient's age, which no class of the federation's tells;
* new diseases: Bowen's disease, dermatofibroma and vascular lesions, where the federation has learned the other four
  classes alone.

A hospital starts from a head of zeros; from the map that it declares in [task.same_as]; with nothing declared, from the
federation's class scores; or from an untrained model of its own (local only). From each it goes on as `adapt` does: how
far, and from which of these starts, is chosen by cross-validation on the support (`Learner.tuned_on`); with one lesion
a class nothing can be chosen. All other settings are those of public_rule.py: nothing is tuned on a patient.

From the same supports it is told what its classes look like (`resemblances`): in how many classes something is said,
and how often that is right.

With --stand-ins the same at hospitals that stand in for the targets, which learn nothing then and are not looked at:
there the method was chosen.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from encoded import narrowed
from fed_ham import CLASSES, LEAST_LESIONS, NEW, NEW_HOSPITALS, OLD, Ham
from federated import learned
from hospitals import METRICS, Predictor, Problem, Study, Target, examples_of, judged, unchanging
from public_rule import IMAGES, by_rule
from real_data import SKIN_COLUMNS, folder
from rows import NONE
from study import ALONE, BASELINE, parser
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.errors import ConfigError, DataError
from wardround.files import write_atomically
from wardround.models import Model, Objective
from wardround.models.scaling import no_scaling
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner, k_shot
from wardround_client.personal.own_task import Origins, shares
from wardround_client.personal.resemblances import resemblances
from wardround_client.personal.suggestions import over_patients

DRAWS = {1: 3, 5: 2, 20: 1}
"""By lesions a class: how many supports make one value. With one lesion they differ most, and cost least."""
LOOKS_DRAWS = 5
"""Supports that what classes look like is judged on, for each seed."""
ZEROS, LOOKS = "head of zeros", "what classes look like"
ROWS = (ZEROS, "declared map", "class scores", "local only")
MIDDLE_AGE = 45
TRUNK, LIMBS = ("back", "trunk", "abdomen", "chest"), ("lower extremity", "upper extremity", "foot")
RENAMED = {
    "Bowen's disease": ("akiec",),
    "basalioma": ("bcc",),
    "benign keratosis": ("bkl",),
    "histiocytoma": ("df",),
    "melanoma": ("mel",),
    "angioma": ("vasc",),
    "common naevus": ("nv",),
}
IN_TWO = {"malignant": ("akiec", "bcc", "mel"), "benign": ("bkl", "df", "nv", "vasc")}
IN_THREE = {"of melanocytes": ("mel", "nv"), "of keratinocytes": ("akiec", "bcc", "bkl"), "others": ("df", "vasc")}
PARTS = {
    "naevus of the young": ("nv",),
    "naevus of the older": ("nv",),
    "keratosis of the face": ("bkl",),
    "keratosis elsewhere": ("bkl",),
    "melanoma": ("mel",),
    "basalioma": ("bcc",),
}


@dataclass(frozen=True)
class OwnWords:
    """How a hospital calls its classes.

    like: of each, which of the federation's it is; () for none. label: of every image, the hospital's own, "" for none.
    related: whether its classes have anything to do with the federation's.
    """

    name: str
    like: Origins
    label: Sequence[str]

    @property
    def related(self) -> bool:
        """Whether there is anything to declare."""
        return any(self.like.values())


@dataclass(frozen=True)
class Place:
    """A hospital outside of a federation.

    study: with one target for each of `words`. words: by the target's name.
    """

    study: Study
    words: Mapping[str, OwnWords]


@dataclass(frozen=True)
class Known:
    """What comes from a federation: its learner, its classes, and the model that it would have for others."""

    learner: Learner
    classes: tuple[str, ...]
    model: Callable[[tuple[str, ...]], Model] = field(repr=False)

    def anew(self, classes: tuple[str, ...], like: Origins | None = None, *, scores: bool = False) -> Learner:
        """As `shared_model.choose` makes it for a task of one's own. like: what is declared."""
        learner, model = self.learner, self.model(classes)
        loss = Objective(model, learner.loss.shift, learner.loss.scale)
        parts = shares(dict.fromkeys(classes, ()) | dict(like or {}), self.classes)
        theta = learner.algorithm.for_classes(learner.theta, learner.loss, loss, model.initial().detach(), parts)
        return Learner(learner.algorithm, loss, theta, scores=learner.loss.head(learner.theta) if scores else None)

    def alone(self, classes: tuple[str, ...]) -> Learner:
        """Without anything of the federation's, its scaling of features included."""
        model = self.model(classes)
        loss = Objective(model, *no_scaling(model.scaling_size))
        return Learner(self.learner.algorithm, loss, model.initial().detach())


def starts(row: str, known: Known, words: OwnWords, classes: tuple[str, ...]) -> Learner:
    """Where a row adapts from."""
    if row == "local only":
        return known.alone(classes)
    if row == "declared map":
        like = {name: words.like[name] for name in classes}
        return known.anew(classes, like, scores=not all(like.values()))
    return known.anew(classes, scores=row == "class scores")


def adapting(learner: Learner) -> Predictor:
    """As `wardround hospital adapt` does."""

    def predictor(support: Examples) -> Callable[[torch.Tensor], torch.Tensor]:
        chosen = learner.tuned_on(support)
        return partial(chosen.probabilities, chosen.adapt(support))

    return predictor


class Skin(Ham):
    """Fed-HAM in other words."""

    def places(self, *, stand_ins: bool) -> Iterator[Place]:
        """Every hospital outside, of a federation with all seven classes and of one with four."""
        for target, others in NEW_HOSPITALS.items():
            outside = [(each, (target, each)) for each in others] if stand_ins else [(target, (target,))]
            for here, left_out in outside:
                for classes, words in ((CLASSES, self._related()), (OLD, self._new_diseases())):
                    place = self._place(here, left_out, classes, words)
                    if place.words:
                        yield place

    def _related(self) -> list[OwnWords]:
        """Of those who know all seven classes, and two tasks that are not related."""
        age, place = self._column("age"), self._places()
        old = np.where(age < MIDDLE_AGE, "of the young", "of the older")
        parts = [
            f"naevus {when}" if label == "nv" and known
            else f"keratosis {'of the face' if where == 'face' else 'elsewhere'}" if label == "bkl" and where
            else {"mel": "melanoma", "bcc": "basalioma"}.get(label, "")
            for label, when, known, where in zip(self.label, old, ~np.isnan(age), place, strict=True)
        ]  # fmt: skip
        nevus = np.array(self.label) == "nv"
        return [
            self._mapped("renamed", RENAMED),
            self._mapped("merged in two", IN_TWO),
            self._mapped("merged in three", IN_THREE),
            OwnWords("split", PARTS, parts),
            self._unrelated("unrelated: place", np.where(nevus, place, "")),
            self._unrelated("unrelated: age", np.where(nevus & ~np.isnan(age), old, "")),
        ]

    def _new_diseases(self) -> list[OwnWords]:
        return [self._unrelated("new diseases", np.where(np.isin(self.label, NEW), self.label, ""))]

    def _mapped(self, name: str, like: Origins) -> OwnWords:
        own = {theirs: mine for mine, each in like.items() for theirs in each}
        return OwnWords(name, like, [own[each] for each in self.label])

    def _unrelated(self, name: str, label: NDArray[np.str_]) -> OwnWords:
        return OwnWords(name, dict.fromkeys(sorted({*label.tolist()} - {""}), ()), label.tolist())

    def _column(self, name: str) -> NDArray[np.float32]:
        if self.table is None:
            raise DataError("age and place are not there", do="put ham10000_128/ham10000_128.npz among the data")
        return self.table[:, SKIN_COLUMNS.index(name)]

    def _places(self) -> NDArray[np.str_]:
        """Of every image "face", "trunk", "limb", or "" where it is elsewhere or not known."""
        parts = {"face": ("face",), "trunk": TRUNK, "limb": LIMBS}
        found = np.full(len(self.label), "", dtype="U5")
        for name, columns in parts.items():
            found[np.any([self._column(each) == 1 for each in columns], axis=0)] = name
        return found

    def _place(self, here: str, left_out: tuple[str, ...], classes: tuple[str, ...], words: list[OwnWords]) -> Place:
        sources = [str(name) for name in np.unique(self.site) if name not in left_out]
        cohorts = {name: self._examples(classes, self.site == name) for name in sources}
        targets = [target for each in words if (target := self._in_own_words(each, self.site == here))]
        name = f"{here}, {len(classes)} classes" + f", without {left_out[0]}" * (len(left_out) > 1)
        problem = Problem(name, classes, cohorts, tuple(targets))
        study = Study(name, tuple(DRAWS), partial(unchanging, problem), (), self.images.federation, self.images.model)
        return Place(study, {target.name: each for each in words for target in targets if target.name == each.name})

    def _in_own_words(self, words: OwnWords, chosen: NDArray[np.bool_]) -> Target | None:
        """Of those of its classes that lesions enough show; None where there are not two."""
        own = np.array(words.label)
        least = LEAST_LESIONS["new hospital"]
        kept = tuple(each for each in words.like if len(np.unique(self.lesion[chosen & (own == each)])) >= least)
        if len(kept) < 2:
            return None
        examples = examples_of(self.z, words.label, self.lesion, kept, chosen & np.isin(own, kept))
        return Target(words.name, kept, examples, examples)


def arrived(study: Study, column: str) -> Known:
    """What a federation learned by the rule; another draw of noise each time."""
    (row,) = (row for row in by_rule(IMAGES) if row.name == BASELINE)
    epsilon = None if column == NONE else float(column)
    study, _ = narrowed(study, epsilon)
    trial, problem = (row.exact if epsilon is None else row.private)[0], study.problem(0)

    def agreed(classes: tuple[str, ...]) -> Any:
        return study.federation(classes, row.algorithm, trial, epsilon or 8.0)

    def model(classes: tuple[str, ...]) -> Model:
        federation = agreed(classes)
        extended: Model = federation.algorithm.extended(study.model(federation))
        return extended

    learner = learned(agreed(problem.classes), model(problem.classes), problem.cohorts, private=epsilon is not None)
    return Known(learner, problem.classes, model)


def measured(
    store: Store, place: Place, column: str, seed: int, shots: Sequence[int], rows: Sequence[str] = (LOOKS, *ROWS)
) -> None:
    """What is missing of a seed at a place: metrics by shots, of each task and row, and what its classes look like."""
    known, narrow = None, narrowed(place.study, None if column == NONE else float(column))[0]
    for target in narrow.problem(seed).targets:
        words = place.words[target.name]
        for row in rows:
            key = f"{place.study.name}/{words.name}/{column}/{row}/{seed}"
            cell: dict[str, Any] = dict(store.rows().get(key, {}))
            found: dict[str, Any] = cell.get("found", {})
            missing = [k for k in shots if str(k) not in found]
            if not missing or not _stands(row, words, column):
                continue
            known = known or arrived(place.study, column)
            if row == LOOKS:
                found |= {str(k): looked_at(known, words, target, k, seed) for k in missing}
            else:
                adapt = adapting(starts(row, known, words, target.classes))
                found |= {str(k): judged(adapt, target, k, seed, draws=DRAWS[k]) for k in missing}
            cell |= {"place": place.study.name, "task": words.name, "related": words.related, "column": column}
            cell |= {"row": row, "seed": seed, "found": found, "date": datetime.now(UTC).date().isoformat()}
            store.put(key, cell)


def looked_at(known: Known, words: OwnWords, target: Target, shots: int, seed: int) -> dict[str, int]:
    """How often `adapt` says what a class looks like, and is right, in so many LOOKS_DRAWS supports: classes, those of
    which something is said, pairs of classes that are said, those of them that are declared, and all that are declared.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + shots)
    counts = dict.fromkeys(("classes", "told", "said", "right", "true"), 0)
    for _ in range(LOOKS_DRAWS):
        support = k_shot(target.examples, shots, generator).support
        told = over_patients(known.learner.probabilities(known.learner.unadapted(), support.z), support)
        shows = over_patients(support.targets, support) > 0
        for each in resemblances(told, shows, target.classes, known.classes):
            like, true = {*each.like}, {*words.like[each.own]}
            found = {"told": bool(like), "said": len(like), "right": len(like & true), "true": len(true)}
            counts = {name: count + found.get(name, 1) for name, count in counts.items()}
    return counts


def _stands(row: str, words: OwnWords, column: str) -> bool:
    """Nothing is declared of what is not related; and training alone costs nobody anything."""
    return words.related if row == "declared map" else column == NONE or row not in ALONE


def publish(store: Store) -> None:
    """Write the tables. Raises: StorageError."""
    every: list[dict[str, Any]] = [dict(cell) for cell in store.rows().values()]
    cells = [cell for cell in every if cell["row"] != LOOKS]
    said = "Balanced accuracy in %, with the half width of the 95 % interval over seeds; ahead: of a head of zeros."
    parts = [f"{hardware()}. {said}\n"]
    for place, task in dict.fromkeys((str(cell["place"]), str(cell["task"])) for cell in cells):
        own = [cell for cell in cells if (cell["place"], cell["task"]) == (place, task)]
        parts.append(f"\n## {place}: {task}\n\n")
        headings = {"row": ""}
        for column in sorted({cell["column"] for cell in own}, key=lambda each: each != NONE):
            for shots in DRAWS:
                what = "" if column == NONE else f", epsilon {column}"
                headings |= {
                    f"{column}/{shots}": f"{shots} shot{'s' * (shots > 1)}{what}",
                    f"{column}/{shots}+": "ahead",
                }
        parts.append(markdown(_lines(own), headings))
    looks = [cell for cell in every if cell["row"] == LOOKS]
    parts.append(f"\n## {LOOKS.capitalize()}, by the support\n\n{_looks(looks)}")
    write_atomically(store.folder / TABLE, "".join(parts).encode())


def _looks(cells: Sequence[dict[str, Any]]) -> str:
    """Shares in percent, over all seeds."""
    lines = []
    for place, task, column in dict.fromkeys((cell["place"], cell["task"], cell["column"]) for cell in cells):
        line: dict[str, str] = {"place": f"{place}, {'not private' if column == NONE else f'epsilon {column}'}: {task}"}
        own = [cell for cell in cells if (cell["place"], cell["task"], cell["column"]) == (place, task, column)]
        for shots in map(str, DRAWS):
            each = [cell["found"][shots] for cell in own if shots in cell["found"]]
            sums = {name: sum(found[name] for found in each) for name in ("classes", "told", "said", "right", "true")}
            parts = [("told", "classes"), ("right", "said"), ("right", "true")]
            shares = [f"{100 * sums[a] / sums[b]:.0f}" if sums[b] else "-" for a, b in parts]
            line[shots] = " / ".join(shares)
        lines.append(line)
    said = "classes told of / pairs right / pairs found, "
    return markdown(lines, {"place": ""} | {str(k): f"{said}{k} shot{'s' * (k > 1)}" for k in DRAWS})


def _lines(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """A row a start; how far it is ahead of a head of zeros is taken seed by seed."""
    for row in ROWS:
        line = {"row": row}
        for column in {cell["column"] for cell in cells}:
            for shots in map(str, DRAWS):
                found, zeros = (_by_seed(cells, column, name, shots) for name in (row, ZEROS))
                ahead = [value - zeros[seed] for seed, value in found.items() if seed in zeros]
                if len(found) > 1:
                    line[f"{column}/{shots}"] = str(estimate(list(found.values())))
                if len(ahead) > 1 and row != ZEROS:
                    line[f"{column}/{shots}+"] = str(estimate(ahead))
        if len(line) > 1:
            yield line


def _by_seed(cells: Sequence[dict[str, Any]], column: str, row: str, shots: str) -> dict[int, float]:
    return {
        cell["seed"]: cell["found"][shots][METRICS[0]]
        for cell in cells
        if (cell["column"], cell["row"]) == (column, row) and shots in cell["found"]
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("other_names", "Classes under other names.", encoder=True)
    known.set_defaults(size=28, table=False, epsilon=[NONE, "8"])
    known.add_argument("--stand-ins", action="store_true", help="at the hospitals where the method was chosen")
    known.add_argument("--shots", nargs="+", type=int, choices=list(DRAWS), default=list(DRAWS), help="lesions a class")
    options = known.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    rows = (LOOKS, *ROWS) if options.rows in (["main"], ["all"]) else tuple(options.rows)
    with ending(console, stopped="Stopped. The same command goes on."):
        if unknown := {*rows} - {LOOKS, *ROWS}:
            raise ConfigError(f"no row is called {unknown.pop()!r}", allowed=", ".join((LOOKS, *ROWS)))
        places = _chosen(options, folder(options.data), console)
        for seed in range(options.seeds):
            for column in options.epsilon:
                for place in places:
                    measured(store, place, column, seed, options.shots, rows)
                    console.print(f"{place.study.name}, {column}, seed {seed}: done", highlight=False)
            publish(store)
    if options.json:
        for cell in store.rows().values():
            print(json.dumps(cell))
    else:
        print((options.out / TABLE).read_text(), end="")


def _chosen(options: Namespace, data: Path, console: Console) -> list[Place]:
    every = Skin(options, data, console).places(stand_ins=options.stand_ins)
    return [each for each in every if not options.study or any(part in each.study.name for part in options.study)]


if __name__ == "__main__":
    main()
