"""`wardround hospital papers`: drafts of what the law asks for, with a source for each value, and gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import emit, say
from wardround.text import counted
from wardround_client.commands._common import HERE, HomeArgument, checked

FOLDER = "papers"


def papers(
    home: HomeArgument = HERE,
    federation: Annotated[
        str,
        typer.Argument(
            help="One approved federation, by name or digest; otherwise all of them.", metavar="[FEDERATION]"
        ),
    ] = "",
    to: Annotated[
        Path | None, typer.Option(help="A folder that is not there yet.", show_default=f"HOME/{FOLDER}/DATE-TIME")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write drafts of the papers that the law asks for, from the agreements, hospital.toml and the ledger.

    A record of processing (GDPR, Article 30), an impact assessment (Article 35) and the technical documentation of the
    AI Act (Annex IV), as Markdown. Each value stands beside its source: a line of an agreement or of hospital.toml,
    entries of the ledger, a sentence of the specification. What none of them says is marked TO FILL IN.

    They are made of public numbers: no patient is looked at, and nothing leaves.
    """
    home = checked(home)
    from datetime import UTC, datetime

    from wardround.files import cannot_write, private_folder, write_atomically
    from wardround_client.consent.facts import Facts
    from wardround_client.consent.papers import papers as all_papers

    facts = Facts.of(home, federation)
    folder = to or home / FOLDER / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    if folder.exists():
        raise ConfigError(f"{folder} is there already", do="choose another folder: what you filled in is kept")
    written = {paper.file: paper for paper in all_papers(facts)}
    try:
        private_folder(folder)
        for file, paper in written.items():
            write_atomically(folder / file, paper.markdown(facts).encode())
    except OSError as error:
        raise cannot_write(folder, error) from None
    if as_json:
        gaps = {file: paper.gaps for file, paper in written.items()}
        emit(event="papers", folder=str(folder), gaps=gaps, agreements=len(facts.agreements), head=facts.head)
        return
    for file, paper in written.items():
        say(f"{folder / file}: {paper.law}, {counted(paper.gaps, 'gap')} to fill in")


command = Command(
    papers,
    panel="Look",
    place=6,
    examples=(
        "wardround hospital papers ~/st-anna",
        "wardround hospital papers ~/st-anna 5e41c07a2b90 --to papers-2026",
    ),
)
