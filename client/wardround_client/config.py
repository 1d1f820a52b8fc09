"""hospital.toml: what this hospital is and what it permits. Nothing that arrives can widen it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from wardround.algorithms import ALGORITHMS
from wardround.config import Family, Fraction, Name, Positive
from wardround.operations import Operations
from wardround.schedule import QUESTIONS
from wardround.toml import Section, load


def _question(name: str) -> str:
    if name not in QUESTIONS:
        raise ValueError(f"unknown question; allowed: {', '.join(QUESTIONS.names)}")
    return name


Count = Annotated[int, Field(ge=1)]


class Identity(Section):
    """name: how the federation calls this hospital. declared_patients: a round PUBLIC number near the cohort's size;
    sampling rates, denominators, delta and weights are computed from it and never from the true count.
    """

    name: Name
    declared_patients: Annotated[int, Field(ge=1, le=10**9)]


class Device(Section):
    """compute: "auto" takes CUDA when it is there. threads: CPU threads of the training; 0: as many as cores."""

    compute: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0


class BudgetLimits(Section):
    """epsilon: over all runs and coordinators, for the lifetime of the cohort. delta: 0 takes a value just below
    1/(10 declared patients). epsilon_per_round: the most that one round may cost when it is looked at alone.
    """

    epsilon: Positive = 10.0
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epsilon_per_round: Positive | None = None


class Policy(Section):
    """Limits on what may be asked: one for every setting of an agreement that decides what is computed here.

    questions, algorithms: those that come with wardround, unless others are listed here, by name. An empty list of
    labels permits every label code.
    greatest_epsilon: of one run. greatest_gradients_per_round: training answers of one round, of patients or of
    episodes; greatest_local_steps: also of those within an episode. greatest_episodes: of one round.
    greatest_variants: of an image, by `augment`. greatest_features: of the columns of a table, with a flag for each
    that may be missing, and of an encoder. greatest_answer_bytes: of the longest answer. greatest_magnitude: of the
    numbers that a request brings (theta, shift, scale) and of 1 / scale, and of a table's centre, spread and
    1 / spread; a float32 of a million moves in
    steps of 1/16, so nothing that still learns is near it. reply_grid_s: replies leave only whole
    multiples of so many seconds after their requests came; 0: at once. It makes a reply's time say less about the data,
    not nothing.
    """

    least_noise_multiplier: Positive = 0.3
    greatest_epsilon: Positive = 100.0
    least_clip_norm: Positive = 0.001
    greatest_clip_norm: Positive = 10.0
    least_patients: Count = 20
    greatest_rounds: Count = 10_000
    questions: tuple[Annotated[str, AfterValidator(_question)], ...] = QUESTIONS.built_in
    algorithms: tuple[Name, ...] = ALGORITHMS.built_in
    greatest_gradients_per_round: Count = 100
    greatest_local_steps: Count = 100
    greatest_local_batches: Count = 100
    least_local_learning_rate: Positive = 1e-6
    greatest_local_learning_rate: Positive = 100.0
    greatest_proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 100.0
    least_regularization: Positive = 1e-4
    greatest_regularization: Positive = 1e4
    greatest_sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    greatest_images_per_patient: Count = 16
    greatest_patients_per_episode: Count = 200
    greatest_episodes: Count = 10_000
    least_support_share: Fraction = 0.05
    greatest_support_share: Fraction = 0.95
    families: tuple[Family, ...] = ("encoder-head", "conv4", "logistic", "mlp", "projection")
    greatest_parameters: Count = 5_000_000
    greatest_features: Count = 40_000
    greatest_embedding: Count = 1024
    greatest_width: Count = 1024
    greatest_encoder_bytes: Count = 1 << 29
    greatest_image_size_px: Count = 512
    greatest_variants: Count = 16
    greatest_depth: Count = 256
    greatest_inputs: Count = 8
    greatest_cells: Count = 16_384
    greatest_cells_per_image: Count = 1024
    greatest_classes: Count = 100
    labels: tuple[str, ...] = ()
    greatest_magnitude: Positive = 1e6
    greatest_answer_bytes: Count = 1 << 25
    reply_grid_s: Annotated[float, Field(ge=0, le=3600)] = 0.0


Glob = Annotated[str, Field(min_length=1, max_length=64)]
Globs = Annotated[tuple[Glob, ...], Field(max_length=32)]
LeftOut = Literal["localizer", "dose-report", "secondary-capture", "derived", "mr-phase", "mosaic", "for-processing"]
"""Kinds of DICOM images that no ingest uses unless the hospital allows them: `wardround_client.intake.dicom.select`."""


class Select(Section):
    """Which DICOM images of an archive are used. Each list holds patterns, with * and ?, whatever the case; a value is
    used that fits one of them and none that begins with "!". An empty list takes everything.

    sop_classes: names or UIDs. image_types: of the whole text, "ORIGINAL/PRIMARY/*". views: View Position. series:
    descriptions. least_slices, greatest_slices: images of a series in the folder; 0: any number. allow: kinds that are
    left out otherwise.
    """

    sop_classes: Globs = ()
    modalities: Globs = ()
    image_types: Globs = ()
    views: Globs = ()
    body_parts: Globs = ()
    series: Globs = ()
    least_slices: Annotated[int, Field(ge=0, le=100_000)] = 0
    greatest_slices: Annotated[int, Field(ge=0, le=100_000)] = 0
    allow: Annotated[tuple[LeftOut, ...], Field(max_length=7)] = ()


class PatientIds(Section):
    """Who is who. issuer: a file whose Issuer of Patient ID is this one, or which names none, is of this hospital's own
    patients; with another issuer the same PatientID is another patient. allow_placeholders: use files whose PatientID
    stands for nobody ("ANONYMOUS", "0000"): all with one such PatientID are one patient, who cannot withdraw.
    """

    issuer: Annotated[str, Field(max_length=64)] = ""
    allow_placeholders: bool = False


class CoordinatorAddress(Section):
    """The one coordinator whose rounds are answered.

    address: host:port. ca_file: its CA certificate, relative to hospital.toml. ca_sha256: of that file's bytes, so that
    nobody can exchange it; `join` writes it, empty leaves the file unpinned. known_as: how the ledger and the approvals
    go on calling this coordinator after it changed its address or its CA; `join` writes it when it sees that it is the
    same one.
    """

    address: Annotated[str, Field(pattern=r"^(|[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5})$")] = ""
    ca_file: str = "coordinator-ca.pem"
    ca_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    known_as: Annotated[
        str, Field(pattern=r"^(|([^\s:/]+|\[[0-9a-fA-F:]+\]):\d{1,5}( \(CA [0-9a-f]{16}\))?)$", max_length=300)
    ] = ""

    @property
    def identity(self) -> str:
        """Who the coordinator is, as the ledger names it: the address, and the pinned CA by its first 64 bits; both as
        they were when it was joined first.
        """
        if self.known_as:
            return self.known_as
        return f"{self.address} (CA {self.ca_sha256[:16]})" if self.ca_sha256 else self.address

    def is_pinned_to(self, ca_pem: bytes) -> bool:
        """Whether this is the CA that was joined; any is, where none is pinned."""
        return self.ca_sha256 in ("", hashlib.sha256(ca_pem).hexdigest())


Hours = Annotated[str, Field(pattern=r"^(|([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)$")]
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]


class Pacs(Section):
    """The archive that `pull` fetches studies from: by DICOMweb (url) or by DIMSE (address and AE titles).

    url: of the DICOMweb service, without a query. address: host:port of the DIMSE service. called, calling: its AE
    title and ours. retrieve: "move" where the PACS gives nothing by C-GET; it then opens a connection to `listen`,
    host:port here, under our AE title. tls: of DIMSE. ca_file, certificate_file, key_file, credentials_file: relative
    to hospital.toml; the last two for their owner only. hours: when it may be asked, local time, as 20:00-06:00.
    megabits_per_second: at most, on average; 0 is no limit. read_timeout_s: at least 64 kB, or an answer's end, arrive
    in each such time. attempts: for what is not answered, or badly.
    """

    url: Annotated[str, Field(pattern=r"^(|https?://[^\s/@?#]+(/[^\s?#]*)?)$", max_length=1000)] = ""
    address: Annotated[str, Field(pattern=r"^(|[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5})$")] = ""
    called: AeTitle = "ANY-SCP"
    calling: AeTitle = "WARDROUND"
    retrieve: Literal["get", "move"] = "get"
    listen: Annotated[str, Field(pattern=r"^(|[^\s:/]*:\d{1,5})$")] = ""
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    credentials_file: str = ""
    hours: Hours = ""
    megabits_per_second: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    connect_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    read_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 5


class Serve(Section):
    """What `wardround hospital serve` does with new studies; results go back to [pacs], by the protocol it names.

    on: false, and nothing is done. models: names of adapted models that predict. write: "sr", a structured report of
    each study; "seg", of models of masks; "heatmap", pictures of where predictions come from; "fhir", a
    DiagnosticReport as JSON in HOME/serve/fhir, which is sent nowhere. arrive: "poll", the PACS is asked for new
    studies; "listen", they are sent to `listen`, host:port here, under the AE title `title`, by `callers` and nobody
    else, associations at once of one address; with [pacs] tls both sides show certificates. days: a study is new on its
    Study Date and so many days after it. every_s: how often the PACS is asked. settle_s: a study is looked at when
    nothing was added to it for so long. most_waiting: studies that are not done; gigabytes: of all that lies in
    HOME/serve; then nothing more is taken. greatest_study_mb, greatest_objects: of one study. intended_use: the site's
    own words; they stand in each result.
    """

    on: bool = False
    models: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    write: Annotated[tuple[Literal["sr", "seg", "heatmap", "fhir"], ...], Field(min_length=1, max_length=4)] = ("sr",)
    arrive: Literal["poll", "listen"] = "poll"
    listen: Annotated[str, Field(pattern=r"^(|[^\s:/]*:\d{1,5})$")] = ""
    title: AeTitle = "WARDROUND"
    callers: Annotated[tuple[AeTitle, ...], Field(max_length=64)] = ()
    associations: Annotated[int, Field(ge=1, le=64)] = 4
    days: Annotated[int, Field(ge=0, le=365)] = 1
    every_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    most_waiting: Annotated[int, Field(ge=1, le=100_000)] = 1000
    gigabytes: Annotated[float, Field(gt=0, le=1e5)] = 20.0
    greatest_study_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 4000
    greatest_objects: Annotated[int, Field(ge=1, le=100_000)] = 5000
    intended_use: Annotated[str, Field(min_length=1, max_length=500)] = (
        "Research only: to be compared with a reading by a radiologist, never to replace it."
    )


BurnedInText = Literal["quarantine", "blacken", "crop", "ignore"]
CHECKED = ("US", "IVUS", "XA", "RF", "ES", "XC", "OT", "SC", "multi-frame", "picture")
"""What is looked at for text in its pixels, unless hospital.toml says otherwise."""

Kind = Annotated[str, Field(pattern=r"^(multi-frame|picture|[A-Z][A-Z0-9 _]{0,15})$")]


class BurnedIn(Section):
    """What becomes of images with text in their pixels: a name, a birth date, a hospital.

    text: "quarantine": the file is refused; and so is ultrasound in which anything stands outside of its Sequence of
    Ultrasound Regions (0018,6011). "blacken": text is made black, with a margin, in all frames, and so is all outside
    of such regions. "crop": as "blacken" for files with such regions, as "quarantine" for others. "ignore": nobody
    looks.
    checked: which files are looked at: modalities (0008,0060), "SC" (secondary captures), "multi-frame", and "picture"
    (PNG, JPEG and the like); beside them, files that are marked with Burned In Annotation YES.
    """

    text: BurnedInText = "quarantine"
    checked: tuple[Kind, ...] = CHECKED


class HospitalConfig(Section):
    """hospital.toml."""

    hospital: Identity
    device: Device = Device()
    budget: BudgetLimits = BudgetLimits()
    policy: Policy = Policy()
    select: Select = Select()
    patients: PatientIds = PatientIds()
    coordinator: CoordinatorAddress = CoordinatorAddress()
    pacs: Pacs = Pacs()
    serve: Serve = Serve()
    burned_in: BurnedIn = BurnedIn()
    operations: Operations = Operations()

    @property
    def delta(self) -> float:
        """What the hospital says, else just below 1/(10 declared patients): docs/privacy-specification.md P4."""
        return self.budget.delta or 1 / (10 * self.hospital.declared_patients + 1)


def load_hospital_config(path: Path) -> HospitalConfig:
    """Read hospital.toml. Raises: ConfigError."""
    return load(path, HospitalConfig)
