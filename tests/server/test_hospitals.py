from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import ConfigError
from wardround.files import write_atomically
from wardround_server.hospitals import Card, Registry, load_card


def key(encoding: Encoding = Encoding.OpenSSH) -> str:
    form = PublicFormat.OpenSSH if encoding is Encoding.OpenSSH else PublicFormat.SubjectPublicKeyInfo
    return ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(encoding, form).decode()


PUBLIC = [key() for _ in range(8)]


def card(name: str = "anna", public_key: str | None = None, patients: int = 100) -> Card:
    return Card(name=name, public_key=public_key or key(), declared_patients=patients)


def test_cards_in_either_form_are_one_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert list(registry) == []
    registry.add(card("bert", key(Encoding.PEM)))
    registry.add(card("anna", key(Encoding.OpenSSH)))
    assert [hospital.name for hospital in registry] == ["anna", "bert"]
    assert all(hospital.public_key.startswith("ecdsa-sha2-nistp384 ") for hospital in registry)
    assert all(serialization.load_pem_public_key(hospital.key_pem) for hospital in registry)


def test_a_card_again_keeps_the_node_and_takes_the_new_number(tmp_path: Path) -> None:
    registry, public = Registry(tmp_path), key()
    registry.add(card("anna", public))
    registry.set_nodes({"anna": 42, "nobody": 43})
    registry.add(card("anna", public, patients=200))
    assert registry.by_node()[42].declared_patients == 200


def test_a_card_names_a_delta_of_its_own_or_none(tmp_path: Path) -> None:
    registry, public = Registry(tmp_path), key()
    assert registry.add(card("anna", public)).delta is None
    own = Card(name="anna", public_key=public, declared_patients=100, delta=1e-6)
    registry.add(own)
    assert next(iter(registry)).delta == 1e-6
    for delta in (0.0, 1.0, -1.0, 1e-300, float("nan"), float("inf")):  # a tiny delta would excuse any noise
        with pytest.raises(ValueError, match="delta"):
            Card(name="anna", public_key=public, declared_patients=100, delta=delta)


def test_a_name_keeps_its_key_and_a_key_its_name(tmp_path: Path) -> None:
    registry, public = Registry(tmp_path), key()
    registry.add(card("anna", public))
    with pytest.raises(ConfigError, match="another key"):
        registry.add(card("anna"))
    with pytest.raises(ConfigError, match="as 'anna'"):
        registry.add(card("bert", public))
    assert len(list(registry)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"public_key": "rubbish"}, "public_key"),
        (
            {
                "public_key": ed25519.Ed25519PrivateKey.generate()
                .public_key()
                .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
                .decode()
            },
            "elliptic-curve",
        ),
        ({"name": "../../etc"}, "name"),
        ({"declared_patients": 0}, "declared_patients"),
        ({"secret": 1}, "secret"),
    ],
)
def test_a_card_that_is_wrong_says_where(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "join.json"
    path.write_text(json.dumps({"name": "anna", "public_key": key(), "declared_patients": 100} | change))
    with pytest.raises(ConfigError, match=said):
        load_card(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_what_is_no_card_is_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "join.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_card(path)
    with pytest.raises(ConfigError):
        load_card(tmp_path / "absent.json")


def test_a_broken_registry_is_a_config_error_and_is_left_alone(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.path.write_text('{"hospitals": [{"name": 1}]}')
    with pytest.raises(ConfigError, match="not a registry"):
        registry.add(card())
    assert "name" in registry.path.read_text()


@given(st.lists(st.sampled_from(["add", "add in another process", "remove", "node", "damage", "mend"]), max_size=8))
def test_what_one_process_reads_is_what_another_wrote(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        registry, kept = Registry(home), b""
        for number, step in enumerate(steps):
            writer = Registry(home) if "another" in step else registry
            match step.partition(" ")[0]:
                case "add":
                    with contextlib.suppress(ConfigError):
                        writer.add(card(f"h{number}", PUBLIC[number]))
                case "remove":
                    with contextlib.suppress(ConfigError):
                        Registry(home).remove(next(iter(Registry(home)), card()).name)
                case "node":
                    with contextlib.suppress(ConfigError):
                        registry.set_nodes({each.name: number for each in Registry(home)})
                case "damage":
                    kept = registry.path.read_bytes() if registry.path.exists() else b""
                    write_atomically(registry.path, b"{")
                case "mend":
                    write_atomically(registry.path, kept or b'{"hospitals": []}')
            try:
                fresh = list(Registry(home))
            except ConfigError:
                with pytest.raises(ConfigError):
                    list(registry)
            else:
                assert list(registry) == fresh
