"""Whatever others wrote, a page keeps its structure and shows letters: no markup, no controls, no reading backwards."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.client.pages.homes import ATOMS, fill, hostile, propose
from tests.web import Served, served

from wardround_client.office.at_home import picture, predictions
from wardround_client.pages.desk import Desk
from wardround_client.pages.site import app


class Structure(HTMLParser):
    """Tags and their attributes, in order, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def home(home_with_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("strings") / "north"
    shutil.copytree(home_with_cohort, home)
    propose(home)
    return home


@pytest.fixture(scope="module")
def there(home: Path) -> Iterator[Served]:
    with served(app(Desk(home))) as found:
        yield found


def looked_at(there: Served) -> list[Structure]:
    """Every page that shows what others wrote."""
    listed = there.page("/home").text
    paths = re.findall(rf'href="{there.session.area}(/home/\w+/[0-9a-f]+)"', listed)
    assert len(paths) == 2
    found = []
    for path in ("/", "/intake", "/home", *paths):
        answer = there.page(path)
        assert answer.status == 200, path
        found.append(Structure(answer.text))
    return found


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(hostile, min_size=20, max_size=20))
def test_a_page_has_the_structure_that_it_has_of_harmless_names(there: Served, home: Path, drawn: list[str]) -> None:
    fill(home, lambda field: "n")
    plain = looked_at(there)
    fields: dict[str, str] = {}
    fill(home, lambda field: fields.setdefault(field, drawn[len(fields) % len(drawn)]))
    for page, expected in zip(looked_at(there), plain, strict=True):
        assert page.tags == expected.tags
        for text in page.texts:
            assert not {unicodedata.category(letter) for letter in text} & {"Cf", "Cs", "Co", "Zl", "Zp"}
            assert not any(unicodedata.category(letter) == "Cc" and letter != "\n" for letter in text)
            assert len(text) < 9000


@pytest.mark.parametrize("atom", range(len(ATOMS)))
def test_and_so_it_does_of_each_kind_of_mischief_in_every_field(there: Served, home: Path, atom: int) -> None:
    fill(home, lambda field: "n")
    plain = looked_at(there)
    fill(home, lambda field: "n" + ATOMS[atom])
    assert [page.tags for page in looked_at(there)] == [page.tags for page in plain]


@pytest.mark.parametrize(
    "name",
    ["../../secret.key", "/etc/passwd", "../predictions.json", "heatmaps/../../../hospital.toml", "heatmaps/1.txt"],
)
def test_no_picture_is_read_from_elsewhere(home: Path, name: str) -> None:
    fill(home, lambda field: "n")
    assert picture(home / "predictions" / "lungs-1" / "predictions.json", {"heatmap": name}) is None


def test_nor_through_a_link(home: Path, there: Served) -> None:
    fill(home, lambda field: "n")
    file = home / "predictions" / "lungs-1" / "predictions.json"
    (file.parent / "heatmaps" / "2.png").symlink_to(home / "secret.key")
    try:
        assert picture(file, {"heatmap": "heatmaps/2.png"}) is None
        assert picture(file, {"heatmap": "heatmaps/1.png"})
    finally:
        (file.parent / "heatmaps" / "2.png").unlink()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": 3}', '{"images": [{}]}', "null", "9" * 5000, "\x00"])
def test_a_file_that_is_not_what_it_should_be_is_one_sentence(home: Path, there: Served, text: str) -> None:
    fill(home, lambda field: "n")
    (home / "predictions" / "lungs-1" / "predictions.json").write_text(text)
    answer = there.page("/home")
    assert answer.status == 200
    assert "Cannot be read" in answer.text
    (path,) = re.findall(rf'href="{there.session.area}(/home/predictions/[0-9a-f]+)"', answer.text)
    assert there.page(path).status == 422


def test_who_has_withdrawn_is_not_on_the_pages(home: Path, there: Served) -> None:
    from wardround_client.cohort.optout import Register

    gone, left = "ab" * 32, "cd" * 32
    names = iter([left, gone, gone])
    fill(home, lambda field: next(names, gone) if field in ("patient", "cell") else "n")
    file = home / "predictions" / "lungs-1" / "predictions.json"
    assert len(predictions(file, []).images) == 1
    assert predictions(file, [bytes.fromhex(left)]).withdrawn == 1
    register = Register.of(home)
    register.add([bytes.fromhex(gone)])
    (path,) = re.findall(rf'href="{there.session.area}(/home/suggestions/[0-9a-f]+)"', there.page("/home").text)
    assert gone not in there.page(path).text
