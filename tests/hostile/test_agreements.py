"""Any file at all is an agreement that is shown, or an error that says what is wrong; never a bug or unbounded work.

Thousands of files through the code path of `wardround hospital approve`, and of everything else that reads such files.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fuzzed
from hypothesis import strategies as st
from tests.hostile.agreements import BASE, FAR, LETTERS, ODD, approvals, mutated, said, settings, toml

from wardround import accountant
from wardround.accountant import Answers, Method, calibrate
from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.schedule import Schedule
from wardround.toml import Section, loads
from wardround_client.config import HospitalConfig
from wardround_client.consent.approvals import ApprovalFolder
from wardround_server.home import CoordinatorConfig

many = fuzzed(suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("approving") / "home"
    assert said("hospital", "init", home, "--name", "st-anna", "--patients", 60).code == 0
    return home


def approve(home: Path, data: bytes) -> None:
    """Approve it, and assert that what is approved afterwards is what was shown and given, or nothing."""
    file = home.parent / "federation.toml"
    file.write_bytes(data)
    told = said("hospital", "approve", home, file, "--yes", "--json")
    if told.code:
        assert approvals(home) == {}, told
        return
    shown = json.loads(told.out)
    assert approvals(home) == {shown["digest"]: data}
    record = json.loads((home / "approved" / shown["digest"] / "approval.json").read_text())
    assert all(record[key] == shown[key] for key in shown if key not in ("event", "cohort"))
    ApprovalFolder(home).remove(shown["digest"])


@many
@given(settings())
def test_settings_that_nobody_would_write(home: Path, text: str) -> None:
    approve(home, text.encode())


@many
@given(mutated())
def test_bytes_that_are_hardly_an_agreement(home: Path, data: bytes) -> None:
    approve(home, data)


def test_the_plain_agreement_is_approved_so_the_fuzzers_do_not_only_knock(home: Path) -> None:
    file = home.parent / "federation.toml"
    file.write_text(toml(BASE))
    assert said("hospital", "approve", home, file, "--yes", "--json").code == 0
    (digest,) = approvals(home)
    ApprovalFolder(home).remove(digest)


def test_the_generators_know_every_setting() -> None:
    known = {key for section in BASE if section for key in Federation.model_fields[section].annotation.model_fields}  # type: ignore[union-attr]
    by_hand = {key for _, key in FAR}
    assert known - by_hand <= {"rule", "optimizer", "beta1", "beta2", "tau", "weighting"} | {
        "adapt_learning_rate", "adapt_prior", "patients_per_step",
    }  # fmt: skip


NESTED = {
    "arrays": "x = " + "[" * 100_000,
    "inline tables": "x = " + "{a=" * 60_000,
    "dotted keys": "a." * 120_000 + "b = 1",
    "dotted keys within strings' shadow": 'x = ["""a"""", {' + "a." * 100_000 + 'a = 1, b = "z"}]',
    "tables": "[" + "a." * 100_000 + "b]",
    "array within the shadow of a string": 'x = ["""a"""", ' + "[" * 100_000 + ' "z"',
    "digits": "x = " + "9" * 200_000,
    "hexadecimal digits": "x = 0x" + "f" * 200_000,
    "a fraction": "x = 0." + "1" * 200_000,
    "blanks after a bracket": 'x = """\n[' + " " * 200_000 + '"""',
    "unknown keys": "\n".join(f"k{number} = 1" for number in range(15_000)),
    "a class for each letter": "[task]\nclasses = [" + '"a",' * 60_000 + "]",
    "too large": "#" * (1 << 20),
    "a byte order mark, and nothing": "\ufeff",
}


@pytest.mark.parametrize("kind", NESTED)
def test_what_a_parser_would_choke_on(home: Path, kind: str) -> None:
    approve(home, NESTED[kind].encode())


# The accountants are asked a bounded number of times, whatever is asked of them.

ABSURD = [
    (10**9, {"epsilon": 1e-3, "patients_per_step": 1}),
    (60, {"epsilon": 1e-3, "patients_per_step": 59, "statistics_share": 1e-4, "evaluation_share": 1e-4}),
    (60, {"epsilon": 1e9, "patients_per_step": 1}),
    (10**6, {"epsilon": 1e9, "patients_per_step": 1}),
    (2, {"epsilon": 1e9, "patients_per_step": 10**9}),
]


@pytest.mark.parametrize(("declared", "privacy"), ABSURD)
def test_calibrating_is_bounded_in_work_and_keeps_its_promise(
    monkeypatch: pytest.MonkeyPatch, privacy: dict[str, float], declared: int
) -> None:
    asked, price = [0], accountant._price

    def counted(rows: tuple[Answers, ...], delta: float) -> tuple[float, Method]:
        asked[0] += 1
        return price(rows, delta)

    monkeypatch.setattr(accountant, "_price", counted)
    federation = loads(toml(BASE | {"privacy": dict(privacy)}), Federation)
    schedule, delta = Schedule.of(federation), 1 / (10 * declared + 1)
    try:
        found = calibrate(schedule, federation.privacy, declared_patients=declared, delta=delta)
    except ConfigError:
        found = None
    assert asked[0] <= 2 * accountant._MOST_PRICES
    if found is not None:
        assert accountant.run_epsilon(found, schedule, len(schedule), delta) <= federation.privacy.epsilon


# Everything else that reads a file which somebody else wrote.

PARSERS: dict[str, tuple[type[Section], str]] = {
    "federation.toml": (Federation, toml(BASE)),
    "hospital.toml": (HospitalConfig, '[hospital]\nname = "a"\ndeclared_patients = 60\n[budget]\nepsilon = 10.0\n'),
    "coordinator.toml": (CoordinatorConfig, 'address = "127.0.0.1"\n'),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_a_configuration_of_any_text_is_read_or_refused_in_words(name: str, data: st.DataObject) -> None:
    model, text = PARSERS[name]
    at = data.draw(st.integers(0, len(text)))
    key = data.draw(st.sampled_from([*model.model_fields, "x"]))
    inserted = data.draw(st.one_of(LETTERS, ODD.map(lambda value: toml({"": {key: value}}))))
    changed = text[:at] + inserted + text[at + data.draw(st.integers(0, 9)) :]
    try:
        loads(changed, model, name=name)
    except ConfigError as error:
        assert str(error)
        assert len(str(error)) < 5_000


@pytest.mark.parametrize(
    "name", ["invitation.toml", "join.json", "labels.csv", "patients.txt", "task.toml", "run.toml"]
)
@fuzzed(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.one_of(st.binary(max_size=200), mutated(), LETTERS.map(lambda text: text.encode("utf-8", "replace"))))
def test_a_file_of_any_bytes_is_used_or_refused_in_words(home: Path, name: str, data: bytes) -> None:
    file = home.parent / name
    file.write_bytes(data)
    out = home.parent / "coordinator"
    if not out.exists():
        said("coordinator", "init", out)
    commands: dict[str, tuple[object, ...]] = {
        "invitation.toml": ("hospital", "join", home, file),
        "join.json": ("coordinator", "register", out, file),
        "labels.csv": ("hospital", "ingest", home, home, "--labels", file, "--workers", 1),
        "patients.txt": ("hospital", "withdraw", home, "--from", file, "--rounds-only"),
        "run.toml": ("coordinator", "run", out, file, "--run", "r"),
        "task.toml": ("hospital", "adapt", home, "--task", file),
    }
    said(*commands[name])
