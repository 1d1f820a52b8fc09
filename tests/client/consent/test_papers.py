"""Papers for the law: each value has a source that holds it, each gap is said to be one, and no text becomes markup."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.client.command_line import wardround
from tests.client.privacy.ledgers import reserve

from wardround.text import shown
from wardround_client.consent import papers as papers_module
from wardround_client.consent.approvals import Approvals
from wardround_client.consent.facts import GAP, Fact, Facts, Paper, escaped, of_entries
from wardround_client.consent.papers import papers
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger

ROOT = Path(__file__).parents[3]
HOSTILE = [
    "normal",
    "a|b",
    "<script>alert(1)</script>",
    "[x](http://evil.example)",
    "`x`",
    "**TO FILL IN: nothing**",
    "=1+1",
]
FEDERATION = f"""
name = "spring"
[task]
label_column = "![i](x)"
classes = {json.dumps(HOSTILE)}
image_size_px = 32
[model]
features = 8
[privacy]
epsilon = 4.0
[rounds]
rounds = 3
"""
MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.fixture
def paid(home: Path, tmp_path: Path) -> Path:
    """A home with one agreement, of which one round was answered, and another run."""
    (tmp_path / "federation.toml").write_text(FEDERATION)
    hospital = Hospital.open(home)
    digest = hospital.approvals.approve(tmp_path / "federation.toml").federation.digest
    hospital.ledger.release(
        reserve(hospital.ledger, 0, run="<b>run</b>", federation=digest, coordinator="[c](http://x)"),
        b"noise", norm=1.0, layout="w 4",
    )  # fmt: skip
    reserve(hospital.ledger, 0, run="other", federation="e" * 64)
    hospital.ledger.close()
    return home


def lines_of(found: Paper) -> list[Fact]:
    return [fact for _, facts in found.sections for fact in facts]


def test_each_value_stands_where_its_source_says(paid: Path) -> None:
    facts = Facts.of(paid)
    (agreed,) = facts.agreements
    files = {"hospital.toml": paid / "hospital.toml"}
    files[agreed.settings.name] = paid / "approved" / agreed.federation.digest / "federation.toml"
    specification = (ROOT / "docs" / "privacy-specification.md").read_text(encoding="utf-8")
    with closing(Ledger.of(paid)) as ledger:
        entries = {entry.digest: entry for entry in ledger.entries()}
    checked = dict.fromkeys(("line", "default", "ledger", "specification", "other"), 0)
    for fact in (fact for paper in papers(facts) for fact in lines_of(paper)):
        if fact.is_gap:
            assert fact.value.startswith(GAP)
            continue
        assert GAP not in fact.what
        if found := re.search(r"(hospital\.toml|agreement \w+), line (\d+): ([\w.]+)$", fact.source):
            name, line, key = found.groups()
            text = files[name].read_text().split("\n")[int(line) - 1]
            assert re.match(rf"\s*{key.rsplit('.', 1)[1]}\s*=", text), fact
            if not fact.source.startswith(("1 /", "follows")) and fact.value.replace(".", "").isdigit():
                assert float(fact.value) == float(re.findall(r"=\s*([\d._]+)", text)[0]), fact
            checked["line"] += 1
        elif found := re.search(r"(hospital\.toml|agreement \w+), not written, default of .*: ([\w.]+)$", fact.source):
            name, key = found.groups()
            table, _, last = key.rpartition(".")
            assert last not in tomllib.loads(files[name].read_text()).get(table, {}), fact
            checked["default"] += 1
        elif fact.source.startswith("ledger"):
            assert "no entry" in fact.source or re.findall(r"[0-9a-f]{64}", fact.source)[0] in entries, fact
            checked["ledger"] += 1
        elif "privacy-specification" in fact.source:
            for number in re.findall(r"P\d+", fact.source):
                assert f"**{number}**" in specification, fact
            checked["specification"] += 1
        else:
            checked["other"] += 1
    assert min(checked.values()) > 0, checked


def test_what_a_paper_says_of_the_ledger_is_what_the_ledger_says(paid: Path) -> None:
    facts = Facts.of(paid)
    by_name = {fact.what: fact for fact in lines_of(papers(facts)[1])}
    assert by_name["epsilon spent, over all runs and coordinators"].value == f"{facts.spent:.4g}"
    assert by_name["spring: what left"].value == "1 answer, 5 bytes in all"
    assert by_name["spring: what left"].source == of_entries([facts.entries[1]])
    assert by_name["spring: epsilon of a run, as agreed"].value == "4.0"
    others = next(fact for fact in lines_of(papers(facts)[2]) if "approved no more" in fact.what)
    assert others.value == "e" * 64


@pytest.mark.parametrize(("epsilon", "right"), [(0.0, 0.5), (1.0, 0.7311), (20.0, 1.0)])
def test_how_often_a_guesser_is_right_is_the_bound_of_the_literature(epsilon: float, right: float) -> None:
    assert papers_module._right(epsilon, 0.0) == pytest.approx(right, abs=1e-4)
    assert papers_module._up(0.83401) == "83.5 %", "at most is rounded up"


def parts(text: str) -> tuple[set[str], list[list[str]]]:
    """Kinds of everything inline, and the tables' rows as a reader sees them."""
    kinds, rows, inside = set[str](), list[list[str]](), False
    for token in MARKDOWN.parse(text):
        kinds.add(token.type)
        if token.type in ("tr_open", "tr_close"):
            rows += [[]] if token.nesting == 1 else []
            inside = token.nesting == 1
        if token.type == "inline" and token.children is not None:
            kinds |= {child.type for child in token.children}
            if inside:
                rows[-1].append("".join(child.content for child in token.children))
    return kinds, rows


ALLOWED = {
    "heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "softbreak", "text_special",
    "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close", "strong_open", "strong_close",
    *(f"{each}_{end}" for each in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
}  # fmt: skip


def test_hostile_text_is_text(paid: Path) -> None:
    facts = Facts.of(paid)
    for paper in papers(facts):
        kinds, rows = parts(paper.markdown(facts))
        assert kinds <= ALLOWED, kinds - ALLOWED
        assert all(len(row) == 3 for row in rows)
        assert sum(row[1].startswith(GAP) for row in rows) == paper.gaps
    assert any("<script>alert(1)</script>" in row[1] for row in rows)


@given(st.text(max_size=60) | st.text(alphabet="\\`*_[]<>|~&$@{}#!():/.w \n\r\t\u202e-+=1", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_one_cell_that_reads_as_it_is_shown(text: str) -> None:
    kinds, rows = parts(f"| a | b |\n|---|---|\n| x{escaped(text)}x | y |\n")
    assert kinds <= ALLOWED
    assert [len(row) for row in rows] == [2, 2]
    assert rows[1][0] == f"x{shown(text, 300)}x"


def test_a_long_text_is_cut(paid: Path) -> None:
    assert len(escaped("|" * 100_000)) < 1000


def test_the_command_writes_them_once_and_overwrites_nothing(
    paid: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = wardround(capsys, "papers", paid, "spring", "--to", tmp_path / "papers")
    assert code == 0
    files = sorted(file.name for file in (tmp_path / "papers").iterdir())
    assert files == ["impact-assessment.md", "record-of-processing.md", "technical-file.md"]
    assert all(f"{tmp_path / 'papers' / file}" in out for file in files)
    code, _, err = wardround(capsys, "papers", paid, "--to", tmp_path / "papers")
    assert (code, "there already" in err) == (2, True)
    code, out, _ = wardround(capsys, "papers", paid, "--json")
    told = json.loads(out)
    assert (code, told["agreements"], Path(told["folder"]).parent) == (0, 1, paid / "papers")


def test_a_new_home_and_a_broken_approval_have_papers_that_say_so(home: Path, tmp_path: Path) -> None:
    facts = Facts.of(home)
    assert all(paper.gaps and paper.markdown(facts) for paper in papers(facts))
    (tmp_path / "federation.toml").write_text(FEDERATION)
    hospital = Hospital.open(home)
    digest = hospital.approvals.approve(tmp_path / "federation.toml").federation.digest
    assert isinstance(hospital.approvals, Approvals)
    hospital.ledger.close()
    file = home / "approved" / digest / "federation.toml"
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 4"))
    facts = Facts.of(home)
    assert facts.unusable == [digest]
    assert all(digest in paper.markdown(facts) for paper in papers(facts))
