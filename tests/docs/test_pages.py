"""What the pages say is true of this code: commands and their options, settings, Python, links, cited headings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from wardround import cli
from wardround.config import Federation
from wardround.toml import loads
from wardround_client.config import HospitalConfig
from wardround_server.home import CoordinatorConfig
from wardround_simulation import simulate
from wardround_simulation.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
}
MODELS: dict[str, Any] = {"federation": Federation, "hospital": HospitalConfig, "coordinator": CoordinatorConfig}
WRITTEN = {"settings.md", "table.md"}  # by benchmarks
WRITTEN |= {"record-of-processing.md", "impact-assessment.md", "technical-file.md", "card.md"}  # by papers, export
HEADINGS = {name: re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE) for name, text in PAGES.items()}
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (?:\$ )?(wardround (?:hospital|coordinator|simulate)\b.*(?:\\\n.*)*)", re.MULTILINE)
_INLINE = re.compile(r"`(wardround (?:hospital|coordinator|simulate)\b[^`]*)`")


def blocks(*languages: str) -> Iterator[tuple[str, str, str]]:
    """Every fenced block of these languages -> page, what stands behind the language, text."""
    for page, text in PAGES.items():
        yield from ((page, title, body) for language, title, body in _BLOCK.findall(text) if language in languages)


def commands() -> Iterator[tuple[str, str]]:
    """Every `wardround` command line of the pages, without comments."""
    for page, text in PAGES.items():
        typed = [*_INDENTED.findall(text), *(found.replace("\n", " ") for found in _INLINE.findall(text))]
        for _, _, body in (block for block in blocks("bash", "console", "text") if block[0] == page):
            typed += re.findall(
                r"^[ $]*(?:sudo -u \w+ )?(?:\S*/)?(wardround .*)$", body.replace("\\\n", " "), re.MULTILINE
            )
        for line in dict.fromkeys(typed):
            yield page, re.sub(r"\s#.*", "", line.replace("\\\n", " "))


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_exists_with_its_options(page: str) -> None:
    wrong = []
    for line in (line for where, line in commands() if where == page):
        words = shlex.split(line.replace("…", "").replace("...", "").replace("<(", "").rstrip("\\;|"))[1:]
        command: Any = cli.command()
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            word = words.pop(0)
            command = command.get_command(click.Context(command), word)
            if command is None and f"\n{word} = " in PAGES[page]:
                break  # the recipe's own
            if command is None:
                wrong.append(f"{line}: no {word}")
                break
        known = {option for parameter in getattr(command, "params", ()) for option in parameter.opts} | {
            "--help",
            "--version",
        }
        wrong += [f"{line}: {word}" for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert not wrong


def test_each_settings_file_of_a_page_is_one() -> None:
    checked = 0
    for page, title, body in blocks("toml"):
        named = re.search(r'title="([\w./-]+)"', title)
        if "[project" in body:
            continue  # a recipe's, which is followed to the letter elsewhere
        kind = next((each for each in MODELS if named is not None and each in named[1]), "federation")
        loads(body, MODELS[kind], name=page)
        checked += 1
    assert checked


def test_python_of_a_page_is_python() -> None:
    for page, _, body in blocks("python"):
        compile(body, page, "exec")


def test_the_python_of_the_researcher_s_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it but the rounds, which tests/simulation runs."""
    asked = []

    def noted(settings: Settings, watch: object) -> Path:
        asked.append(settings)
        (tmp_path / "comparison.json").write_text(json.dumps({"rows": [{"shots": 1, "meta": {"mean": 0.5}}]}))
        return tmp_path / "report.html"

    monkeypatch.setattr(simulate, "simulate", noted)
    (body,) = (body for page, _, body in blocks("python") if page.endswith("researcher.md"))
    exec(compile(body, "researcher.md", "exec"), {"__name__": "__main__"})
    assert [settings.federation.algorithm.name for settings in asked] == ["fedavg", "discriminant"]


_CITED = re.compile(r'((?:[\w-]+/)*[\w-]+\.md)(?:,? (?:under )?"([^"\n]+)"| (P\d+))?')


def cited() -> Iterator[tuple[str, str, str, str]]:
    """Every document that code names -> file, document, heading or "", number of a promise or ""."""
    for folder in ("shared", "client", "server", "simulation", "tests", "benchmarks", "tools", "deploy"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".toml", ".service", ".proto") and file != Path(__file__):
                for found in _CITED.findall(file.read_text(encoding="utf-8")):
                    yield str(file.relative_to(ROOT)), *found


def test_documents_that_code_cites_exist_with_the_heading_or_the_promise_that_is_cited() -> None:
    wrong = []
    for file, document, heading, promise in cited():
        page = PAGES.get(document, PAGES.get(f"docs/{document}"))
        if document in WRITTEN:
            continue
        if page is None:
            wrong.append(f"{file}: {document}")
        elif heading and heading not in HEADINGS[document]:
            wrong.append(f'{file}: {document} has no heading "{heading}"')
        elif promise and f"**{promise}**" not in page:
            wrong.append(f"{file}: {document} has no {promise}")
    assert not wrong, "\n".join(wrong)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_each_link_between_files_leads_somewhere(page: str) -> None:
    """In the repository, where mkdocs does not look: README, CONTRIBUTING and the like link into docs/."""
    wrong = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", PAGES[page]):
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        name = str(file.resolve().relative_to(ROOT.resolve()))
        there = file.exists() or name.startswith("docs/reference/")
        if not there or (fragment and name in HEADINGS and fragment not in map(anchor, HEADINGS[name])):
            wrong.append(target)
    assert not wrong
