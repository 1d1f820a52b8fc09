"""`wardround hospital init`: a hospital's home."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import emit, say
from wardround_client.commands._common import NewHome, check_name
from wardround_client.commands._template import HOSPITAL_TOML


def init(
    home: NewHome,
    name: Annotated[str, typer.Option(help="How the federation calls this hospital.", show_default=False)],
    patients: Annotated[
        int,
        typer.Option(help="A round PUBLIC number near the cohort's size, never the exact one.", min=1, max=10**9),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a hospital's home: hospital.toml, the key of the pseudonyms, the node's key, and its card join.json."""
    check_name(name)
    from wardround_client.hospital import Hospital
    from wardround_client.keys import create_node_key, write_card

    hospital = Hospital.create(home, HOSPITAL_TOML.format(name=name, patients=patients))
    hospital.ledger.close()
    card = write_card(home, name=name, declared_patients=patients, public_key=create_node_key(home))
    if as_json:
        emit(event="init", home=str(home.absolute()), name=name, declared_patients=patients, card=str(card))
        return
    say(f"The home of {name} is {home}. Only its owner can read it; keep a backup of secret.key.")
    say("Next:", "bold")
    say(f"  1. read {home / 'hospital.toml'}: the budget and the policy are this hospital's alone")
    say(f"  2. wardround hospital ingest {home} DICOM_DIR --labels labels.csv")
    say(f"     or out of a PACS, once [pacs] says where it is: wardround hospital pull {home} --labels labels.csv")
    say(f"  3. give {card} to the coordinator; it holds no secret")
    say(f"  4. wardround hospital join {home} invitation.toml      (from the coordinator)")
    say(f"  5. wardround hospital approve {home} federation.toml   (from the coordinator)")
    say(f"  6. wardround hospital up {home}")


command = Command(
    init, panel="Set up", place=1, examples=("wardround hospital init ~/st-anna --name st-anna --patients 400",)
)
