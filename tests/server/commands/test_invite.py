"""`wardround coordinator invite`: the kit has what a hospital needs, nothing secret, and the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.server.commands.test_commands import call
from tests.server.test_hospitals import card

from wardround.errors import ConfigError, Unreachable
from wardround.kit import Kit, digest, spoken
from wardround_server.home import Home


def invited(home: Path, *options: object) -> tuple[Path, str]:
    """The kit, and the digest that was said."""
    said = json.loads(call("invite", home, "st-anna", "--json", *options))
    assert said["hospital"] == "st-anna"
    return Path(said["kit"]), said["sha256"]


def test_a_kit_holds_the_invitation_and_the_agreement(tmp_path: Path) -> None:
    call("init", tmp_path, "--host", "fl.example.org", "--port", 4444)
    file, said = invited(tmp_path)
    kit, found = Kit.read(file)
    assert (said, kit.name) == (found, "st-anna")
    assert kit.agreement == (tmp_path / "federation.toml").read_bytes()
    assert kit.invitation == (tmp_path / "invitation.toml").read_bytes()
    assert tomllib.loads(kit.invitation.decode())["address"] == "fl.example.org:4444"
    assert spoken(found) in call("invite", tmp_path, "st-anna")
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_same_files_give_the_same_bytes_and_a_new_ca_others(tmp_path: Path) -> None:
    call("init", tmp_path)
    file, before = invited(tmp_path)
    data = file.read_bytes()
    again, _ = invited(tmp_path, "--out", tmp_path / "elsewhere" / "kit.zip")
    assert again.read_bytes() == data and digest(data) == before
    call("renew-ca", tmp_path)
    assert invited(tmp_path)[1] != before
    other = tmp_path / "autumn.toml"
    other.write_text((tmp_path / "federation.toml").read_text() + "\n# changed\n")
    assert len({before, invited(tmp_path)[1], invited(tmp_path, "--federation", other)[1]}) == 3


@pytest.mark.parametrize("renewed", [(), ("renew-ca",), ("renew-ca", "switch")])
def test_no_secret_of_the_home_is_in_it(tmp_path: Path, renewed: tuple[str, ...]) -> None:
    """Of every key of a home that has lived: no part of a private number, as bytes, hexadecimal or base64."""
    call("init", tmp_path, "--host", "fl.example.org")
    (tmp_path / "join.json").write_text(card("anna").model_dump_json())
    call("register", tmp_path, tmp_path / "join.json")
    if "renew-ca" in renewed:
        call("renew-ca", tmp_path, *(["--switch"] if "switch" in renewed else []))
    kit = Kit.read(invited(tmp_path)[0])[0]
    packed = b"".join(kit.files().values())
    secrets = [file for file in tmp_path.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
    assert {"ca.key", "server.key"} <= {file.name for file in secrets}
    for file in secrets:
        key = load_pem_private_key(file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        number = key.private_numbers().private_value.to_bytes(48, "big")
        plain = [number, number.hex().encode(), str(int.from_bytes(number, "big")).encode()]
        coded = [base64.b64encode(b"?" * skipped + number)[4:-4] for skipped in range(3)]
        found = b"".join(file.read_bytes().splitlines())
        assert any(text in found for text in coded), "it is looked for as it lies there"
        for text in (*plain, *coded):
            assert not any(text[a : a + 12] in packed for a in range(len(text) - 12)), file
    assert b"anna" not in packed.replace(b"st-anna", b"") and b"127.0.0.1:9093" not in packed
    assert str(tmp_path).encode() not in packed


def test_a_ca_file_into_which_somebody_put_the_key(tmp_path: Path) -> None:
    call("init", tmp_path)
    tls = Home(tmp_path).tls
    tls.ca.write_bytes(tls.ca.read_bytes() + tls.ca_key.read_bytes())
    with pytest.raises(ConfigError, match="private key"):
        call("invite", tmp_path, "st-anna")
    assert not (tmp_path / "kits").exists()


def test_an_encoder_goes_with_it(tmp_path: Path) -> None:
    call("init", tmp_path)
    (tmp_path / "xray.onnx").write_bytes(b"weights")
    text = (tmp_path / "federation.toml").read_text()
    pin = f'[model]\nencoder = "xray.onnx"\nencoder_sha256 = "{hashlib.sha256(b"weights").hexdigest()}"\n'
    (tmp_path / "federation.toml").write_text(text.replace("[model]\n", pin))
    assert Kit.read(invited(tmp_path)[0])[0].encoder == b"weights"
    (tmp_path / "xray.onnx").write_bytes(b"others")
    with pytest.raises(ConfigError, match="another file"):
        call("invite", tmp_path, "st-anna")
    (tmp_path / "xray.onnx").unlink()
    with pytest.raises(ConfigError, match="beside the federation"):
        call("invite", tmp_path, "st-anna")


@pytest.mark.parametrize("name", ["", "st anna", "../x", "-x", "a" * 64, "anna\x1b[2J"])
def test_a_name_that_no_hospital_may_have(tmp_path: Path, name: str) -> None:
    call("init", tmp_path)
    with pytest.raises(ConfigError) as refused:
        call("invite", tmp_path, "--", name)
    assert "\x1b" not in str(refused.value)
    assert not (tmp_path / "kits").exists()


def test_any_free_port_is_not_known_while_the_coordinator_is_down(tmp_path: Path) -> None:
    call("init", tmp_path, "--port", 0)
    with pytest.raises(Unreachable, match="coordinator up"):
        call("invite", tmp_path, "st-anna")
