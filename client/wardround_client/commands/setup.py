"""`wardround hospital setup`: from a coordinator's startup kit to a home that waits for approval."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, TypeVar

import click
import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, WardroundError
from wardround.terminal import Fields, emit, say, show
from wardround.text import shown
from wardround_client.commands import _common

if TYPE_CHECKING:
    from wardround.kit import Kit
    from wardround_client.commands._new_home import NewHome, State

T = TypeVar("T")
EPSILON = 10.0
"""The question's default, which is hospital.toml's own."""


def setup(
    kit: Annotated[Path, typer.Argument(help="The zip that the coordinator sent.", show_default=False)],
    home: Annotated[
        Path, typer.Argument(help="The hospital's home: a folder that is empty or not there.", show_default=False)
    ],
    digest: Annotated[
        str, typer.Option(help="The kit's digest, as the coordinator read it out.", show_default=False)
    ] = "",
    images: Annotated[
        str | None,
        typer.Option(
            help="Where the images are: a folder, or the PACS by its DICOMweb URL or its host:port. Of a table: the "
            "CSV. Empty: not yet.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="CSV of the labels, as of `ingest`.", show_default=False)] = None,
    patient_column: Annotated[
        str | None,
        typer.Option(
            help="Of a table: the column that names the patient. Empty: each row is another patient.",
            show_default=False,
        ),
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(
            help="A round PUBLIC number near the cohort's size, never the exact one.",
            min=1,
            max=10**9,
            show_default=False,
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="The most that each patient's privacy may cost, over all runs.", show_default=False),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="The kit's answers.toml, filled in, instead of options.", show_default=False)
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Do not ask: what is not given is its default. Needs --digest and --patients."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set this hospital up from a coordinator's kit: five questions, and it waits for approval.

    It compares the digest, asks where the images and the labels are, how many patients are declared and how much
    privacy may be spent, makes the home, joins, looks at disk, GPU, clock, PACS and the way to the coordinator, takes
    the images in, and says what comes next. The kit sets no limit: these come from the answers and from hospital.toml's
    defaults. A home is never written over. Interrupted, the same command goes on, and asks nothing twice.

    Ends with the exit code of the first check that fails; everything else is done all the same.
    """
    if as_json and not yes:
        raise ConfigError("--json cannot ask", do="add --yes, --digest and --patients")
    from wardround.kit import Kit, spoken
    from wardround_client.commands._new_home import NewHome
    from wardround_client.commands.join import check_coordinator, invited

    opened, found = Kit.read(kit)
    address, pem, _ = invited(opened.invitation.decode("utf-8-sig"), str(kit / "invitation.toml"))
    check_coordinator(address, pem)
    new = NewHome(home, found)
    state = new.begun()
    if not as_json:
        told = {"for": opened.name, "federation": opened.federation.name, "coordinator": address}
        show(Fields(told | {"agreement": opened.federation.digest, "digest of the kit": spoken(found)}, "Startup kit"))
    given = _Given(opened, images, labels, patient_column, patients, epsilon, answers)
    if state is None or digest:
        _compare(found, digest, yes=yes)
    state = given.asked(found, yes=yes) if state is None else given.changed(state)
    with new.locked():
        earlier = new.begun()  # another setup may have been faster
        new.save(state.model_copy(update={"made": earlier is not None and earlier.made}))
        new.unpack(opened)
        state = new.make(state)
        failed, registered = _checked(new.folder, as_json=as_json)
        took = _take_in(new.folder, state, opened, as_json=as_json)
    if failed:
        raise failed
    _end(new, state, kit, took=took, registered=registered, as_json=as_json)


class _Given:
    """What options and answers.toml say, and what is asked of the rest."""

    def __init__(
        self,
        kit: Kit,
        images: str | None,
        labels: str | None,
        patient_column: str | None,
        patients: int | None,
        epsilon: float | None,
        answers: Path | None,
    ) -> None:
        from wardround.kit import Answers
        from wardround.toml import load

        written = load(answers, Answers) if answers else Answers()
        self._kit, self._name = kit, written.name or kit.name
        self._images = written.images if images is None else images
        self._labels = written.labels if labels is None else labels
        self._column = patient_column
        self._patients, self._epsilon = patients or written.patients, epsilon or written.epsilon
        if epsilon is not None and not 0 < epsilon < float("inf"):
            raise ConfigError(f"--epsilon {epsilon:g}", allowed="a number above 0, such as 10")
        for value, of in ((self._images, _images), (self._labels, _labels)):
            if value:
                of(value)

    def asked(self, kit: str, *, yes: bool) -> State:
        """Raises: ConfigError."""
        from wardround_client.commands._new_home import State

        if yes and self._patients is None:
            raise ConfigError("--yes without --patients", do="declare a round number near that of your patients")
        images, labels = self._images, self._labels
        table = self._kit.federation.task.kind == "table"
        if images is None:
            images = "" if yes else _ask(_ASK_TABLE if table else _ASK_IMAGES, "", _images, empty="not yet")
        images = _images(images)
        column = self._column
        if column is None:
            column = "" if yes or not table or not images else _ask(_ASK_COLUMN, "", str.strip, empty="none")
        if labels is None:
            beside = Path(images) / "labels.csv"
            default = str(beside) if images and beside.is_file() else ""
            labels = default if yes or table or not images else _ask(_ASK_LABELS, default, _labels, empty="none")
        patients, epsilon = self._patients, self._epsilon
        if patients is None:
            patients = _ask(_ASK_PATIENTS, "", _patients, empty="such as 400")  # our guess would set their delta
        if epsilon is None:
            asks = f"This agreement asks for {self._kit.federation.privacy.epsilon:g} a run."
            epsilon = EPSILON if yes else _ask(f"{_ASK_EPSILON} {asks}", f"{EPSILON:g}", _epsilon)
        labels = _labels(labels)
        return State(
            kit=kit,
            name=self._name,
            patients=patients,
            epsilon=epsilon,
            images=images,
            labels=labels,
            patient_column=column,
        )

    def changed(self, state: State) -> State:
        """The answers of before; only where images and labels are may change. Raises: ConfigError."""
        for key, given in (("patients", self._patients), ("epsilon", self._epsilon)):
            if given is not None and given != getattr(state, key):
                raise ConfigError(
                    f"{key} = {given:g}, and the setup was begun with {getattr(state, key):g}",
                    do="change it in hospital.toml, and set up again without it",
                )
        changes = {"images": self._images and _images(self._images), "labels": self._labels and _labels(self._labels)}
        changes["patient_column"] = self._column
        after = state.model_copy(update={key: value for key, value in changes.items() if value})
        if state.pacs and after.pacs != state.pacs:
            raise ConfigError(f"images = {shown(after.images)}", do="write it into [pacs] of hospital.toml, and pull")
        return after


def _compare(found: str, digest: str, *, yes: bool) -> None:
    """Nobody goes on with a kit that was changed on its way. Raises: ConfigError; typer.Exit."""
    given = "".join(digest.split()).lower()
    if given and given != found:
        raise ConfigError(
            f"the kit's digest is {found}, and not {shown(given, 64)}",
            do="ask the coordinator for the kit again: this one was changed, or is another",
        )
    if not given and yes:
        raise ConfigError("--yes without --digest", do="have the coordinator read it out to you, and add --digest")
    if not given and not typer.confirm("1. Have the coordinator read out the digest by telephone. Is it the same?"):
        say("Nothing was made. Ask the coordinator for the kit again.")
        raise typer.Exit(1)


_ASK_IMAGES = (
    "2. Where are the images? A folder, or the PACS: its DICOMweb URL or host:port. They stay here, and so does "
    "what is made of them."
)
_ASK_TABLE = "2. Where is the CSV of measurements? It stays here, and so does what is made of it."
_ASK_LABELS = "3. Which CSV has the labels? One column names the patient or the study, the others what is learned."
_ASK_COLUMN = (
    "3. Which column of it names the patient? Without one each row is another patient; who has two is protected half."
)
_ASK_PATIENTS = (
    "4. How many patients do you declare? A round PUBLIC number near the cohort's size, never the exact one: noise, "
    "delta and this hospital's weight follow from it."
)
_ASK_EPSILON = (
    "5. How much may each patient's privacy cost, over all runs and coordinators? It is spent for good, so begin low: "
    "more can be allowed later, less cannot."
)


def _ask(question: str, default: str, of: Callable[[str], T], *, empty: str = "") -> T:
    """A question until its answer can be used; Enter is the default. -> of(answer)"""

    def value(text: str) -> T:
        try:
            return of(text)
        except WardroundError as error:
            raise click.UsageError(str(error)) from None

    say(question)
    prompt = f"   [{default or empty}]"
    answer: T = typer.prompt(prompt, default=default, show_default=False, value_proc=value)
    return answer


def _images(text: str) -> str:
    from wardround_client.commands._new_home import where

    return _path(text, "the images") if where(text.strip()) == "path" else text.strip()


def _labels(text: str) -> str:
    return _path(text, "the labels") if text.strip() else ""


def _path(text: str, what: str) -> str:
    try:
        path = Path(text.strip()).expanduser().absolute()
        there = path.exists()
    except (OSError, ValueError, RuntimeError):
        there = False
    if not there:
        raise ConfigError(f"{what}: {shown(text)} is not there", do="correct the path")
    return str(path)


def _patients(text: str) -> int:
    digits = text.strip().replace(",", "")
    if not (digits.isascii() and digits.isdigit() and 1 <= int(digits[:11]) <= 10**9):
        raise ConfigError(f"{shown(text, 40)} patients", allowed="a whole number from 1 to 1,000,000,000")
    return int(digits)


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"an epsilon of {shown(text, 40)}", allowed="a number above 0, such as 10")
    return value


def _checked(home: Path, *, as_json: bool) -> tuple[WardroundError | None, bool]:
    """Join, and look at everything -> (what failed first, whether the coordinator has registered this hospital)."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported
    from wardround.kit import FOLDER as KIT
    from wardround.kit import INVITATION
    from wardround_client.commands import _machine
    from wardround_client.commands.join import join
    from wardround_client.config import load_hospital_config

    if not load_hospital_config(home / "hospital.toml").coordinator.address:
        join(home, home / KIT / INVITATION, as_json=as_json)
    failed, registered = None, False
    for step in _machine.look(home):
        waiting = _machine.waits(step)
        _common.tell_step(step, as_json=as_json, waits=waiting)
        registered = step.name == "key" and step.error is None
        if step.error and not waiting:
            failed = failed or step.error
            if not as_json:
                say(f"          {step.error}")
    return failed, registered


def _take_in(home: Path, state: State, kit: Kit, *, as_json: bool) -> bool:
    """Images and labels into the cohort -> whether there is one. Raises: as `ingest` and `pull`."""
    from wardround.kit import AGREEMENT
    from wardround.kit import FOLDER as KIT
    from wardround_client.commands.ingest import ingest
    from wardround_client.commands.pull import pull

    labels, agreement, task = Path(state.labels) if state.labels else None, home / KIT / AGREEMENT, kit.federation.task
    beside = task.kind == "table" or task.dense  # a table holds its labels, and segmentations lie beside their images
    if state.pacs and labels:
        pull(home, labels=labels, federation=agreement, as_json=as_json)
    elif state.images and not state.pacs and (labels or beside):
        column = state.patient_column
        ingest(home, state.images, labels=labels, federation=agreement, patient_column=column, as_json=as_json)
    else:
        return (home / "cohort").exists()
    return True


def _end(new: NewHome, state: State, kit: Path, *, took: bool, registered: bool, as_json: bool) -> None:
    """Where it stands, and the one command that is next."""
    from wardround.kit import AGREEMENT
    from wardround.kit import FOLDER as KIT
    from wardround_client.hospital import Hospital
    from wardround_client.keys import create_node_key, fingerprint

    home = new.folder
    hospital = Hospital.open(home)
    hospital.ledger.close()
    approved = bool(hospital.approvals.digests())
    card, key = home / "join.json", fingerprint(create_node_key(home))
    here = quote(str(home))  # it is copied into a shell
    if not took:
        lacks = "--labels CSV" if state.images else "--images WHERE --labels CSV"
        stands = "waiting for labels" if state.images else "waiting for images"
        following = f"setup {quote(str(kit))} {here} {lacks}"
    elif approved:
        stands, following = "approved", f"up {here}"
    else:
        stands, following = "waiting for approval", f"approve {here} {quote(str(home / KIT / AGREEMENT))}"
    following = f"wardround hospital {following}"
    if as_json:
        emit(event="setup", hospital=state.name, home=str(home), state=stands, registered=registered, card=str(card),
             key=key, next=following)  # fmt: skip
        return
    say(f"{state.name}: {stands}.", "bold")
    if not registered:
        say(f"Send {card} to the coordinator; it holds no secret. Its key, for the telephone: {key}")
    say(f"Next: {following}")
    if took and not approved:
        say(f"Or read and approve it on a page: wardround hospital page {here}")


command = Command(
    setup,
    panel="Set up",
    place=0,
    examples=(
        "wardround hospital setup st-anna.zip ~/st-anna",
        "wardround hospital setup st-anna.zip ~/st-anna --images /data/dicom --labels /data/labels.csv",
    ),
)
