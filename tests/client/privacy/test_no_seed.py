"""P50: "Noise comes from OS entropy ... a seed is refused whenever privacy is on".

There is nothing to refuse it with: no setting, field, option or argument reaches the mechanism, and nothing beside the
system's own generator moves while a hospital answers.
"""

from __future__ import annotations

import inspect
import os
import random
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from pydantic import BaseModel
from tests.client.privacy.generated import asks, cohort, examples_of, objective

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError, MessageError
from wardround.wire import ReplyHeader, RequestHeader, RoundRequest
from wardround_client.commands import app
from wardround_client.config import HospitalConfig, load_hospital_config
from wardround_client.privacy import mechanism
from wardround_client.privacy.private_cohort import PrivateCohort

SUSPICIOUS = ("seed", "generator", "random", "entropy", "rng", "noise_source", "deterministic")


def test_an_answer_draws_from_the_system_and_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No generator that has a state moves, none is made, and the system's own is asked for every answer."""
    asked, loss = cohort(examples_of([1, 2, 3]), rate=0.5), objective("logistic")
    theta, drawn, system = torch.zeros(loss.model.layout.size), list[int](), os.urandom
    for ask in asks(loss, theta).values():
        ask(asked)  # what torch loads at a first call may make generators of its own

    def counted(size: int) -> bytes:
        drawn.append(size)
        return system(size)

    monkeypatch.setattr(os, "urandom", counted)
    for owner, name in ((torch, "Generator"), (np.random, "default_rng"), (np.random, "Generator"), (random, "Random")):
        monkeypatch.setattr(owner, name, None)
    for name, ask in asks(loss, theta).items():
        before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        drawn.clear()
        ask(asked)
        assert drawn, name
        assert torch.equal(torch.get_rng_state(), before[0]), name
        assert (random.getstate(), repr(np.random.get_state())) == before[1:], name


def test_the_mechanism_takes_no_source_of_randomness() -> None:
    """Nobody can hand one in: neither to a function of the mechanism nor to the object that answers."""
    functions = [each for _, each in inspect.getmembers(mechanism, inspect.isfunction)]
    questions = [each for _, each in inspect.getmembers(PrivateCohort, inspect.isfunction)]
    names = {name for each in (*functions, *questions) for name in inspect.signature(each).parameters}
    assert not {name for name in names for word in SUSPICIOUS if word in name}
    assert {"std", "rate", "limit"} <= names, "the walk saw the parameters"


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted names of every key of a configuration or a message."""
    for name, info in model.model_fields.items():
        yield f"{path}{name}"
        for inner in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{path}{name}.")


@pytest.mark.parametrize("model", [Federation, HospitalConfig, RequestHeader, ReplyHeader])
def test_no_key_and_no_field_is_a_seed(model: type[BaseModel]) -> None:
    names = list(fields(model))
    assert len(names) > 4
    assert not [name for name in names for word in SUSPICIOUS if word in name.rsplit(".", 1)[-1]]


def options(group: object, command: str = "") -> Iterator[tuple[str, str]]:
    """(command, option or argument) of a command and of its subcommands."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            yield from options(group.get_command(context, name), name)
    for parameter in getattr(group, "params", []):
        yield from ((command, name) for name in (parameter.name, *parameter.opts))


def test_no_command_of_the_hospital_has_a_seed() -> None:
    """But for the one that draws who is learned from at home: it answers nobody, and makes no noise."""
    found = set(options(app))
    assert {("up", "home"), ("approve", "--yes")} <= found, "the walk saw the options"
    assert {each for each in found for word in SUSPICIOUS if word in each[1]} == {
        ("adapt", "seed"),
        ("adapt", "--seed"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[privacy]", "[privacy]\nseed = 1"),
        ("[privacy]", "[privacy]\nnoise_seed = 1"),
        ('name = "test"', 'name = "test"\nseed = 1'),
        ("[algorithm]", "[algorithm]\nseed = 1"),
    ],
)
def test_a_seed_in_federation_toml_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = 'name = "test"\n[task]\nlabel_column = "x"\nclasses = ["a", "b"]\n[algorithm]\n[privacy]\n'
    file = tmp_path / "federation.toml"
    file.write_text(text)
    load_federation(file)
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match="seed"):
        load_federation(file)


@pytest.mark.parametrize("section", ["hospital", "policy", "budget", "device", "coordinator"])
def test_a_seed_in_hospital_toml_is_refused(tmp_path: Path, section: str) -> None:
    file = tmp_path / "hospital.toml"
    rest = "" if section == "hospital" else f"[{section}]\nseed = 7\n"
    own = "seed = 7\n" if section == "hospital" else ""
    file.write_text(f'[hospital]\nname = "north"\ndeclared_patients = 40\n{own}{rest}')
    with pytest.raises(ConfigError, match="seed"):
        load_hospital_config(file)


def test_a_seed_in_a_message_is_refused() -> None:
    """The header of a request is closed: one field more, of the same length, and it is no request."""
    zeros = np.zeros(3, np.float32)
    header = RequestHeader(run="r", federation="0" * 64, round=0)
    blob = RoundRequest(header, zeros, zeros, zeros + 1).pack()
    RoundRequest.unpack(blob, size=3, scaling_size=3)
    seeded = blob.replace(b'\\"run\\":\\"r\\"', b'\\"run\\":\\"r\\",\\"seed\\":7')
    assert len(seeded) > len(blob)
    grown = len(seeded) - len(blob)
    seeded = seeded.replace(b" " * grown, b"", 1)  # out of the padding
    assert len(seeded) == len(blob)
    with pytest.raises(MessageError):
        RoundRequest.unpack(seeded, size=3, scaling_size=3)


def test_seeding_everything_repeats_no_answer() -> None:
    asked, loss = cohort(examples_of([1, 2, 3]), rate=0.5), objective("logistic")
    theta = torch.zeros(loss.model.layout.size)
    answers = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        answers.append(torch.cat([ask(asked) for ask in asks(loss, theta).values()]))
    # Two numbers of two answers agree by chance once in a few million.
    assert (answers[0] == answers[1]).sum() <= 3
