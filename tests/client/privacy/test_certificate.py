"""Epsilon certificates: made of any ledger, they hold; changed anywhere, they do not. Two readers agree on each.

One reader is `wardround hospital certificate --check`, the other the stranger's of docs/how-to/verify_certificate.py,
which shares no code with it.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.command_line import wardround
from tests.client.privacy.ledgers import reserve

from wardround.accountant import Answers
from wardround.errors import BudgetExceeded, PrivacyError, Replay
from wardround.toml import loads
from wardround_client.config import HospitalConfig
from wardround_client.keys import public_text
from wardround_client.privacy import certificate as certificates
from wardround_client.privacy.chain import chained, text_of
from wardround_client.privacy.ledger import Adopted, Budget, Ledger

SCRIPT = Path(__file__).parents[3] / "docs" / "how-to" / "verify_certificate.py"
CONFIG = loads('[hospital]\nname = "st-anna"\ndeclared_patients = 400\n', HospitalConfig, name="hospital.toml")
KEY = ec.generate_private_key(ec.SECP384R1())
BUDGET = Budget(epsilon=50.0, delta=1e-3)
ROWS = [
    (Answers(20.0, 1.0, 1),),
    (Answers(6.0, 1.0, 10), Answers(40.0, 1.0, 1)),
    (Answers(3.0, 0.2, 5),),
    (Answers(1.43, 0.064, 25),),
]


def _stranger() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_certificate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRANGER = _stranger()


def stranger_says(data: bytes, **asked: Any) -> str:
    """Empty, or why it does not hold; what else it raises is its own fault, but for what its `main` expects."""
    try:
        STRANGER.verify(data, **asked)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        return str(error) or repr(error)
    return ""


def we_say(data: bytes) -> str:
    try:
        certificates.check(data)
    except PrivacyError as error:
        return str(error)
    return ""


def a_ledger(seed: int, entries: int = 8) -> Ledger:
    """Runs that reserve, release or not, in any order; and rounds of another copy."""
    draw, ledger = random.Random(seed), Ledger(None)
    for number in range(entries):
        run = draw.choice(["spring", "größe\u202e", "=1+1"])
        try:
            reserved = reserve(ledger, draw.randrange(6), run=run, rows=draw.choice(ROWS), budget=BUDGET)
        except (Replay, BudgetExceeded):
            continue
        if reserved.first and draw.random() < 0.7:
            ledger.release(reserved, f"reply {number}".encode(), norm=draw.random(), layout="w 4")
        if draw.random() < 0.1:
            adopted = Adopted(run, number, "f" * 64, "gradient", draw.choice(ROWS), draw.choice(["", "d" * 64]))
            ledger.adopt([adopted], coordinator="coordinator:9092", delta=1e-3)
    return ledger


def a_certificate(seed: int, *, key: ec.EllipticCurvePrivateKey | None = KEY) -> bytes:
    return certificates.make(a_ledger(seed), CONFIG, key)


@pytest.mark.parametrize("seed", range(4))
def test_a_certificate_of_any_ledger_holds_for_both_readers(seed: int) -> None:
    data = a_certificate(seed)
    assert (we_say(data), stranger_says(data)) == ("", "")
    found = certificates.check(data)
    said, above = STRANGER.verify(data)
    assert found.recomputed == said["epsilon"]
    assert above <= said["epsilon"] * 1.002
    assert above >= said["epsilon"] * 0.9, "the two accountants speak of the same rows"


def test_a_ledger_without_an_entry_costs_nothing() -> None:
    data = certificates.make(Ledger(None), CONFIG, KEY)
    assert (we_say(data), stranger_says(data)) == ("", "")
    assert json.loads(data)["epsilon"] == 0


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    value = copy.deepcopy(value)
    if not path:
        return change(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = change(at[path[-1]])
    return value


def other(draw: random.Random, value: Any) -> Any:
    """Another value in its place: near it, of its type, of another, or of none."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.choice([None, True, [], {}, "", 0, -1, 1e400, 10**400, "\ud83d\ude00", [[]]])
    if isinstance(value, bool | None):
        return not value
    if isinstance(value, int):
        return value + draw.choice([1, -1, 10**6])
    if isinstance(value, float):
        return value * draw.choice([0.5, 0.999999, 1.000001, 2.0, -1.0])
    if isinstance(value, str) and value:
        at = draw.randrange(len(value))
        return draw.choice(
            [value[:at] + "0" + value[at + 1 :], value[:at] + value[at + 1 :], value + "x", value.upper()]
        )
    if isinstance(value, list) and value:
        at = draw.randrange(len(value))
        return draw.choice([value[:at] + value[at + 1 :], value[::-1], [*value, value[at]]])
    if isinstance(value, dict) and value:
        gone = draw.choice(sorted(value))
        return draw.choice([{k: v for k, v in value.items() if k != gone}, {**value, "more": 1}, {**value, gone: None}])
    return ["x"]


@given(st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_any_single_change_of_any_field_is_found_by_both_readers(seed: int, draw: random.Random) -> None:
    """Also a field of an entry's text, with the chain as it was."""
    said = json.loads(a_certificate_once(seed))
    path = draw.choice(list(places(said)))
    tampered = changed(said, path, lambda value: other(draw, value))
    if tampered == said and repr(tampered) == repr(said):
        return
    data = json.dumps(tampered).encode()
    assert we_say(data), path
    assert stranger_says(data), path


_made: dict[int, bytes] = {}


def a_certificate_once(seed: int) -> bytes:
    return _made.setdefault(seed, _made.get(seed) or a_certificate(seed))


def forged(said: dict[str, Any], *, chain: bool, key: ec.EllipticCurvePrivateKey | None) -> bytes:
    """The same with hashes that fit again: whoever writes a file can do so, and the hospital itself can sign it."""
    said = copy.deepcopy(said)
    if chain:
        digest = "0" * 64
        for entry in said["entries"]:
            digest = entry[1] = chained(digest, entry[0])
        said["head"] = digest
    said["public_key"] = public_text(key) if key is not None else ""
    rest = {name: value for name, value in said.items() if name not in ("sha256", "signature")}
    said["sha256"] = hashlib.sha256(text_of(rest).encode()).hexdigest()
    said["signature"] = certificates._signature(key, said["sha256"]) if key is not None else ""
    return json.dumps(said).encode()


def _body(said: dict[str, Any], at: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(said["entries"][at][0])
    return body


def _cheaper(said: dict[str, Any]) -> None:
    body = _body(said, 0)
    said["entries"][0][0] = text_of({**body, "rows": [[row[0] * 2, *row[1:]] for row in body["rows"]]})


def _without_a_reservation(said: dict[str, Any]) -> None:
    del said["entries"][0]


def _paid_twice(said: dict[str, Any]) -> None:
    said["entries"].append([text_of(_body(said, 0)), ""])


def _released_twice(said: dict[str, Any]) -> None:
    at = next(i for i in range(len(said["entries"])) if _body(said, i)["kind"] == "released")
    said["entries"].append(list(said["entries"][at]))


def _another_agreement(said: dict[str, Any]) -> None:
    body = _body(said, 0)
    said["entries"].append([text_of({**body, "round": 10**6, "federation": "e" * 64}), ""])
    for row in body["rows"]:
        same = next(each for each in said["rows"] if each[:2] == row[:2])
        same[2] += row[2]


def _more_than_an_entry(said: dict[str, Any]) -> None:
    said["entries"][0][0] = text_of({**_body(said, 0), "patient": "Mrs K"})


def _a_name_twice(said: dict[str, Any]) -> None:
    said["entries"][0][0] = said["entries"][0][0].replace('{"', '{"kind":"reserved","', 1)


def _rows_less(said: dict[str, Any]) -> None:
    said["rows"][0][2] -= 1


def _claim_less(said: dict[str, Any]) -> None:
    said["epsilon"] *= 0.97


def _delta_less(said: dict[str, Any]) -> None:
    said["delta"] /= 10


def _no_number(said: dict[str, Any]) -> None:
    said["epsilon"] = 10**400


FORGERIES = [
    _cheaper, _without_a_reservation, _paid_twice, _released_twice, _another_agreement, _more_than_an_entry,
    _a_name_twice, _rows_less, _claim_less, _delta_less, _no_number,
]  # fmt: skip


@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("forge", FORGERIES)
def test_a_hospital_that_lies_and_signs_does_not_get_a_certificate_that_holds(
    forge: Callable[[dict[str, Any]], None], signs: bool
) -> None:
    said = json.loads(a_certificate_once(1))
    key = KEY if signs else None
    assert not we_say(forged(said, chain=True, key=key)), "the forger's tools work"
    assert not stranger_says(forged(said, chain=True, key=key))
    forge(said)
    data = forged(said, chain=True, key=key)
    assert we_say(data)
    assert stranger_says(data)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@settings(max_examples=50, deadline=None)
def test_what_is_no_certificate_is_said_to_be_none(data: bytes) -> None:
    assert we_say(data)
    assert stranger_says(data)


def test_deep_nesting_is_refused() -> None:
    data = b'{"entries":' * 100_000 + b"1" + b"}" * 100_000
    assert we_say(data)
    with pytest.raises((ValueError, RecursionError)):
        STRANGER.verify(data)


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_stranger_s_signatures_are_those_of_a_library(draw: random.Random) -> None:
    """Any key, any message; and no signature of another key or message."""
    key = ec.derive_private_key(draw.randrange(1, certificates._ORDER), ec.SECP384R1())
    text, sha256 = public_text(key), f"{draw.getrandbits(256):064x}"
    signature = certificates._signature(key, sha256)
    assert STRANGER.signed(certificates._message(sha256), signature, text)
    assert not STRANGER.signed(certificates._message(f"{sha256}0"), signature, text)
    assert not STRANGER.signed(certificates._message(sha256), signature, public_text(KEY))


def test_a_field_that_nobody_judged_public_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(None)
    reserve(ledger, 0)
    monkeypatch.setitem(certificates.FIELDS, "reserved", certificates.FIELDS["reserved"] - {"request_sha256"})
    with pytest.raises(PrivacyError, match="request_sha256"):
        certificates.make(ledger, CONFIG, KEY)


def test_the_stranger_s_program_is_short_and_needs_dp_accounting_alone() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"dp_accounting"}


def test_a_hospital_makes_one_and_a_coordinator_checks_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(home / "ledger.sqlite")
    reply = ledger.release(reserve(ledger, 0), b"noise", norm=1.0, layout="w 4")
    ledger.close()
    file, received = home / "certificate.json", hashlib.sha256(reply).hexdigest()
    code, out, _ = wardround(capsys, "certificate", home)
    assert code == 0
    assert "fit together" in out
    for key in ("node.pub", "join.json"):
        code, out, _ = wardround(capsys, "certificate", "--check", file, "--key", home / key, "--knows", received)
        assert code == 0, out
    node = (home / "node.pub").read_text()
    assert not stranger_says(file.read_bytes(), key=node, knows=[received])
    code, _, err = wardround(capsys, "certificate", "--check", file, "--knows", "e" * 64)
    assert (code, "not of the whole ledger" in err) == (4, True)
    assert stranger_says(file.read_bytes(), key=node, knows=["e" * 64])
    (home / "other.pub").write_text(public_text(KEY))
    code, _, err = wardround(capsys, "certificate", "--check", file, "--key", home / "other.pub")
    assert (code, "not signed by the key" in err) == (4, True)
    assert stranger_says(file.read_bytes(), key=public_text(KEY))


def test_a_home_without_a_key_gets_one_that_says_that_nobody_signed_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "node.key").unlink()
    code, out, _ = wardround(capsys, "certificate", home, "--to", home / "c.json")
    assert code == 0
    assert "NOBODY" in out
    assert json.loads((home / "c.json").read_bytes())["signature"] == ""
    code, _, _ = wardround(capsys, "certificate", "--check", home / "c.json", "--key", home / "node.pub")
    assert code == 4


def test_what_cannot_be_is_refused(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (
        (home, "--key", home / "node.pub"),
        ("--check", home / "node.pub", "--to", tmp_path / "x"),
        ("--check", tmp_path / "missing.json"),
        ("--check", tmp_path),
    ):
        code, _, err = wardround(capsys, "certificate", *arguments)
        assert code == 2, err
    code, _, err = wardround(capsys, "certificate", home, "--to", tmp_path / "no" / "x")
    assert code == 7, err
