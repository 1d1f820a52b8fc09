"""hospital.toml: what this hospital is and what it permits. Nothing that arrives can widen it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wardround.config import Family, Name, Positive
from wardround.schedule import Question
from wardround.toml import Section, load

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
    """Limits on what may be asked. An empty list of labels permits every label code."""

    least_noise_multiplier: Positive = 0.3
    greatest_clip_norm: Positive = 10.0
    least_patients: Count = 20
    greatest_gradients_per_round: Count = 100
    greatest_sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    greatest_images_per_patient: Count = 16
    families: tuple[Family, ...] = ("encoder-head", "conv4", "logistic", "mlp")
    greatest_parameters: Count = 5_000_000
    labels: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ("statistics", "gradient", "confusion")


class CoordinatorAddress(Section):
    """address: host:port of the coordinator; ca_file: its CA certificate, relative to hospital.toml."""

    address: Annotated[str, Field(pattern=r"^(|[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5})$")] = ""
    ca_file: str = "coordinator-ca.pem"


class HospitalConfig(Section):
    """hospital.toml."""

    hospital: Identity
    device: Device = Device()
    budget: BudgetLimits = BudgetLimits()
    policy: Policy = Policy()
    coordinator: CoordinatorAddress = CoordinatorAddress()

    @property
    def delta(self) -> float:
        """The hospital's delta: what it says, else just below 1/(10 declared patients) (privacy.md, "The promise")."""
        return self.budget.delta or 1 / (10 * self.hospital.declared_patients + 1)


def load_hospital_config(path: Path) -> HospitalConfig:
    """Read hospital.toml. Raises: ConfigError."""
    return load(path, HospitalConfig)
