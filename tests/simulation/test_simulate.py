"""A newcomer types one word and watches a federation learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from wardround.cli import run
from wardround.config import load_federation
from wardround.experience.file import FILE, read
from wardround_server.events import Event, RoundEnded
from wardround_simulation import commands
from wardround_simulation.federation import changed, embedded, to_toml
from wardround_simulation.sites import READING
from wardround_simulation.watch import PlainWatch

SMALL = ["--hospitals", "2", "--rounds", "3", "--patients", "24-30", "--shots", "2"]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded federation, but for how far it goes at home, which takes most of the time."""
    file = tmp_path_factory.mktemp("quick") / "quick.toml"
    file.write_text(to_toml(changed(embedded(), algorithm={"adapt_steps": 3})))
    return str(file)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory, quick: str) -> tuple[Path, list[dict[str, object]]]:
    out = tmp_path_factory.mktemp("simulation") / "out"
    result = CliRunner().invoke(
        commands.app.as_click("simulate"), [quick, *SMALL, "--out", str(out), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0
    return out, lines(result.stdout)


def test_json_is_one_object_a_line_each_round_and_last_done(small_run: tuple[Path, list[dict[str, object]]]) -> None:
    _, events = small_run
    assert [e["event"] for e in events] == ["round"] * 4 + ["done"]
    assert [e["question"] for e in events[:-1]] == ["statistics", "gradient", "gradient", "gradient"]
    for number, event in enumerate(events[:-1]):
        assert event["round"] == number
        assert event["hospitals"] == event["replied"] == 2
        assert isinstance(event["seconds"], float)
        assert event["accuracy"] is None or 0 <= float(str(event["accuracy"])) <= 1
    assert all(e["delta_norm"] is not None for e in events[1:-1])
    assert events[0]["privacy"] == "ON"


def test_privacy_is_on_and_the_budget_is_spent_but_never_passed(
    small_run: tuple[Path, list[dict[str, object]]],
) -> None:
    spent = [float(str(e["epsilon_max"])) for e in small_run[1][:-1]]
    assert spent == sorted(spent)
    assert 0.97 * 8 <= spent[-1] <= 8


def test_the_folder_holds_the_report_and_all_that_it_was_made_of(
    small_run: tuple[Path, list[dict[str, object]]],
) -> None:
    out, events = small_run
    assert events[-1]["report"] == str(out / "report.html")
    assert "took no part" in (out / "report.html").read_text()
    assert load_federation(out / "federation.toml").rounds.rounds == 3
    assert len((out / "events.jsonl").read_text().splitlines()) == len(events)
    assert sorted(home.name for home in (out / "hospitals").iterdir()) == ["lakeside", "northgate", "st-anna"]
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["hospital"] == "lakeside"
    assert [row["shots"] for row in comparison["rows"]] == [0, 1, 2]
    (row,) = read(out / FILE).rows  # of phantoms, who are nobody
    assert set(row.scores) == {0, 1, 2} and row.newcomer
    assert len(row.task.hospitals) == 2 and row.task.epsilon == 8.0 and abs(sum(row.task.balance) - 1) < 0.01


def test_a_hospital_that_takes_no_part_is_never_asked(small_run: tuple[Path, list[dict[str, object]]]) -> None:
    out, events = small_run
    assert not any("lakeside" in json.dumps(e["epsilon"]) for e in events[:-1])
    assert not list((out / "hospitals" / "lakeside" / "home" / "approved").iterdir())


def test_a_folder_of_another_simulation_is_not_touched(
    small_run: tuple[Path, list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = small_run
    before = (out / "events.jsonl").read_bytes()
    assert ended(["simulate", *SMALL, "--out", str(out)]) == 2
    assert "holds another simulation already" in capsys.readouterr().err
    assert (out / "events.jsonl").read_bytes() == before


def test_without_privacy_every_line_and_the_report_say_so_and_no_epsilon_is_claimed(tmp_path: Path, quick: str) -> None:
    out = tmp_path / "out"
    arguments = [quick, *SMALL, "--out", str(out), "--no-privacy"]
    result = CliRunner().invoke(commands.app.as_click("simulate"), [*arguments, "--json"], catch_exceptions=False)
    events = lines(result.stdout)
    assert len(events) == 5
    assert all(e["privacy"] == "OFF" for e in events)
    assert all(e["epsilon_max"] is None and e["epsilon"] == {} for e in events[:-1])
    assert "PRIVACY OFF" in (out / "report.html").read_text()


def test_folders_of_ones_own_take_the_place_of_phantoms(
    small_run: tuple[Path, list[dict[str, object]]], tmp_path: Path, quick: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("lakeside", "northgate", "st-anna"):
        (data / name).symlink_to(small_run[0] / "hospitals" / name / "images")
    out = tmp_path / "out"
    arguments = [quick, "--data", str(data), "--rounds", "2", "--shots", "1", "--out", str(out)]
    result = CliRunner().invoke(commands.app.as_click("simulate"), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "round 2 of 2: 2/2 replied" in result.stdout
    assert "2 hospitals learn" in result.stdout
    described = json.loads((out / "simulation.json").read_text())
    assert not described["synthetic"]
    assert [h["took_part"] for h in described["hospitals"]] == [True, True, False]
    # The label files of st-anna have a row an image; what is declared is patients, rounded.
    assert all(20 <= h["declared_patients"] <= 30 for h in described["hospitals"])
    rounds = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()][:-1]
    assert not any(event["accuracy_by_hospital"] for event in rounds)
    (row,) = read(out / FILE).rows
    assert row.scores == {}  # nothing was evaluated, and what was measured of these people is exact


TABLE_FEDERATION = """
name = "hearts"
[task]
label_column = "num"
classes = ["0", "1"]
kind = "table"
features = ["age", "chol"]
[model]
family = "logistic"
[algorithm]
adapt_steps = 3
[rounds]
rounds = 2
quorum = 2
evaluate_every = 0
"""
PICTURES_FEDERATION = """
name = "shades"
[task]
label_column = "shade"
classes = ["dark", "light"]
image_size_px = 32
[model]
features = 8
[algorithm]
adapt_steps = 3
[rounds]
rounds = 2
quorum = 2
evaluate_every = 0
"""


def tables(data: Path) -> None:
    """A CSV for each hospital; one of them as its own spreadsheet writes it."""
    for number, name in enumerate(["north", "south", "west"]):
        separator = ";" if number == 1 else ","
        lines = [("PatientID", "age", "chol", "num")]
        lines += [(f"P{row // 2}", str(40 + row), str(200 + 7 * row % 90), str(row // 2 % 2)) for row in range(48)]
        (data / f"{name}.csv").write_text("\n".join(map(separator.join, lines)) + "\n")


def pictures(data: Path) -> None:
    """A folder of PNG files and their labels.csv for each hospital."""
    for name in ("north", "south", "west"):
        (data / name).mkdir()
        lines = ["file,PatientID,shade"]
        for number in range(24):
            Image.new("L", (12, 10), 40 + 150 * (number % 2) + number).save(data / name / f"{number}.png")
            lines.append(f"{number}.png,P{number},{['dark', 'light'][number % 2]}")
        (data / name / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("write", "federation", "wrong", "words"),
    [
        (tables, TABLE_FEDERATION, ("num", "numb"), "no label column 'num'"),
        (pictures, PICTURES_FEDERATION, ("dark", "Dark"), "did you mean 'dark'?"),
    ],
)
def test_tables_and_pictures_of_ones_own_are_read_too(
    tmp_path: Path,
    write: Callable[[Path], None],
    federation: str,
    wrong: tuple[str, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    (tmp_path / "federation.toml").write_text(federation)
    arguments = ["simulate", str(tmp_path / "federation.toml"), "--data", str(data), "--shots", "2"]
    assert ended([*arguments, "--out", str(tmp_path / "out")]) == 0
    described = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert [(h["name"], h["declared_patients"]) for h in described["hospitals"]] == [
        ("north", 20), ("south", 20), ("west", 20),
    ]  # fmt: skip
    for file in data.rglob("*.csv"):
        file.write_text(file.read_text().replace(*wrong))
    assert ended([*arguments, "--out", str(tmp_path / "again")]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "did you mean 'dark'?" in told or ("num, numb" not in told and "no label column 'num'" in told)


def test_ctrl_c_costs_the_round_under_way_and_resume_goes_on(
    tmp_path: Path, quick: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "out", PlainWatch.event

    def interrupted(self: PlainWatch, event: Event) -> None:
        told(self, event)
        if isinstance(event, RoundEnded) and event.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PlainWatch, "event", interrupted)
    options = [*SMALL, "--seed", "3", "--hold-out", "northgate", "--out", str(out)]
    assert ended(["simulate", quick, *options]) == 130
    monkeypatch.undo()
    spent = json.loads((out / "events.jsonl").read_text().splitlines()[-1])["epsilon_max"]
    assert ended(["simulate", "--resume", str(out), "--epsilon", "9"]) == 2
    assert ended(["simulate", "--resume", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Go on with: wardround simulate --resume {out}" in shown
    assert "Seed of the data: 3." in shown and "northgate takes no part" in shown
    events = lines((out / "events.jsonl").read_text())
    assert [event["event"] for event in events] == ["round"] * 4 + ["done"]
    assert [event.get("training_round") for event in events[:-1]] == [0, 1, 2, 3]
    assert float(str(events[-2]["epsilon_max"])) > spent, "the ledgers were kept"
    assert json.loads((out / "comparison.json").read_text())["hospital"] == "northgate"
    assert ended(["simulate", "--resume", str(out)]) == 2, "complete"
    assert "is complete" in capsys.readouterr().err
    assert ended(["simulate", "--resume", str(tmp_path)]) == 2
    assert ended(["simulate", quick, *SMALL, "--hold-out", "nowhere", "--out", str(tmp_path / "x")]) == 2
    assert "Allowed: northgate, st-anna, lakeside" in " ".join(capsys.readouterr().err.split())


def test_what_was_cut_off_before_it_learned_is_made_anew(
    tmp_path: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(self: PlainWatch, stage: str, done: int, total: int) -> None:
        if stage == READING and done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(PlainWatch, "step", interrupted)
    assert ended(["simulate", quick, *SMALL, "--out", str(out)]) == 130
    monkeypatch.undo()
    assert ended(["simulate", "--resume", str(out)]) == 0
    assert (out / "report.html").is_file()


def ended(arguments: list[str]) -> int:
    """The exit code of the whole command."""
    return run(arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hospitals", "0"], "--hospitals 0"),
        (["--hospitals", "1"], "rounds.quorum is 2"),
        (["--shots", "0"], "--shots 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--engine", "spark"], "Allowed: local, ray"),
        (["--compute", "tpu"], "Allowed: auto, cpu, cuda"),
        (["--patients", "many"], "60-220"),
        (["--patients", "2-3"], "at least 4"),
        (["--task", "cancer"], "finding, malignant, urgent"),
        (["--algorithm", "sgd"], "unknown algorithm 'sgd'"),
        (["--epsilon", "0"], "privacy.epsilon"),
        (["--rounds", "0"], "rounds.rounds"),
    ],
)
def test_an_impossible_option_ends_with_2_and_says_what_is_allowed(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["simulate", *options, "--out", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest_valid_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "federation.toml"
    file.write_text(to_toml(embedded()).replace("epsilon = 8.0", "epsilonn = 8.0"))
    line = next(i for i, text in enumerate(file.read_text().splitlines(), start=1) if text.startswith("epsilonn"))
    assert ended(["simulate", str(file), "--out", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"line {line}: unknown key 'privacy.epsilonn'; did you mean 'epsilon'?" in told


def test_a_folder_that_cannot_be_written_ends_with_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert ended(["simulate", *SMALL, "--out", str(tmp_path / "file" / "out")]) == 7
    assert "name another folder with --out" in " ".join(capsys.readouterr().err.split())


def test_data_without_labels_ends_with_3_and_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert ended(["simulate", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 3
    assert "has no labels.csv" in " ".join(capsys.readouterr().err.split())


def test_a_federation_survives_being_written_as_toml(tmp_path: Path) -> None:
    federation = embedded("urgent")
    (tmp_path / "f.toml").write_text(to_toml(federation))
    assert load_federation(tmp_path / "f.toml") == federation
