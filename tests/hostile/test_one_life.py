"""One home, one life: copies that run beside each other, older copies put back, and what a liar can do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.attack import FEDERATION, with_header
from tests.hostile.conftest import make_home
from tests.rounds import RUN, read, request

from wardround.cli import run as command
from wardround.errors import PolicyRefusal, WardroundError
from wardround.wire import Answered, peek_reply, peek_request
from wardround_client import one_life
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import LEDGER
from wardround_client.round import answer
from wardround_server.answers import AnswerBook
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import Event, RoundEnded
from wardround_server.rounds import run

LONG = FEDERATION.replace(
    "rounds = 3\nevaluate_every = 3", "rounds = 6\nquorum = 1\ndeadline_s = 60.0\n[privacy]\nepsilon = 2.0"
)
ROUNDS = 7  # one of statistics, and six
SHA = "ab" * 32


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("one-life") / "home", 40, federation=LONG)


@pytest.fixture
def home(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "home"))


def copied(home: Path, name: str) -> Path:
    return Path(shutil.copytree(home, home.with_name(name)))


class Homes:
    """A transport to one hospital, st-anna. `turn` says whose home answers a round, and may put homes back before."""

    def __init__(self, turn: Callable[[int], Path], *, stop_after: int = -1) -> None:
        self._turn, self._stop_after = turn, stop_after
        self.seen: list[bytes] = []

    def hospitals(self) -> Sequence[str]:
        return ["st-anna"]

    def declared_patients(self, name: str) -> int | None:
        return 40

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        blob = requests["st-anna"]
        self.seen.append(blob)
        reply = answered(self._turn(peek_request(blob).round), blob)
        if peek_request(blob).round == self._stop_after:
            raise KeyboardInterrupt  # the coordinator dies: the answer left, and nobody noted it
        yield "st-anna", reply


def answered(home: Path, blob: bytes) -> bytes:
    hospital = Hospital.open(home)
    try:
        return answer(hospital, blob)
    finally:
        hospital.ledger.close()


def play(coordinator: Path, transport: Homes, name: str = RUN, *, resume: bool = False) -> list[Event]:
    """A run of the coordinator whose home that is -> its events, up to where it had to end."""
    hospital = Hospital.open(coordinator.parent / "home")
    (digest,) = hospital.approvals.digests()
    agreement = hospital.approvals.agreement(digest)
    hospital.ledger.close()
    events: list[Event] = []
    with suppress(WardroundError):
        events.extend(
            run(
                agreement.federation,
                agreement.model,
                transport,
                Checkpointer(coordinator / "runs" / name),
                run_name=name,
                resume=resume,
                answers=AnswerBook(coordinator / "answers", {"st-anna": "key"}),
                reconnect_s=0.0,
            )
        )
    return events


def rounds_of(home: Path) -> list[tuple[str, int]]:
    hospital = Hospital.open(home)
    try:
        return [(entry.run, entry.round) for entry in hospital.ledger.entries() if entry.kind == "released"]
    finally:
        hospital.ledger.close()


def spent(home: Path) -> float:
    hospital = Hospital.open(home)
    try:
        return hospital.ledger.spent(hospital.config.delta)
    finally:
        hospital.ledger.close()


def is_stopped(home: Path) -> bool:
    return bool(one_life.why(home))


def test_a_whole_life_in_one_home_is_never_stopped(home: Path, tmp_path: Path) -> None:
    for name in ("spring", "summer"):
        events = play(tmp_path / "coordinator", Homes(lambda _: home), name)
        assert events[-1].event == "done"
        assert all(event.rejected == {} for event in events if isinstance(event, RoundEnded))
    assert not is_stopped(home)
    lines = (tmp_path / "coordinator" / "answers" / "st-anna.jsonl").read_text().splitlines()
    assert [(json.loads(line)["run"], json.loads(line)["round"]) for line in lines] == rounds_of(home)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(split=st.integers(0, ROUNDS - 2), turns=st.lists(st.sampled_from(["home", "copy", "third"]), min_size=7))
def test_whoever_lacks_an_answer_that_the_coordinator_has_never_answers_again(
    fresh: Path, tmp_path_factory: pytest.TempPathFactory, split: int, turns: list[str]
) -> None:
    place = tmp_path_factory.mktemp("split")
    home = Path(shutil.copytree(fresh, place / "home"))
    held: dict[str, set[int]] = {"home": set()}
    known: list[int] = []

    def turn(number: int) -> Path:
        if number == split:
            for name in ("copy", "third"):
                copied(home, name)
                held[name] = set(held["home"])
        return place / (turns[number] if number >= split else "home")

    class Watched(Homes):
        def exchange(
            self, requests: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes | WardroundError]]:
            for name, reply in super().exchange(requests, deadline_s):
                number = peek_request(self.seen[-1]).round
                who = turns[number] if number >= split else "home"
                assert isinstance(reply, bytes)
                may = not known or known[-1] in held[who]
                assert (peek_reply(reply).refusal is None) == may, (number, who, held, known)
                assert is_stopped(place / who) == (not may)
                if may:
                    held[who].add(number)
                    known.append(number)
                yield name, reply

    coordinator = place / "coordinator"
    for _ in range(3):  # a round that a stopped copy refused is asked again, of the next in turn
        play(coordinator, Watched(turn), resume=coordinator.exists())
    for name in held:
        assert {number for _, number in rounds_of(place / name)} == held[name]


@pytest.mark.parametrize("what", ["ledger", "home"])
@pytest.mark.parametrize("when", ["in the run", "in the next run"])
def test_an_older_copy_put_back_is_noticed(home: Path, tmp_path: Path, what: str, when: str) -> None:
    def turn(number: int) -> Path:
        if number == 2:
            copied(home, "old")
        if number == 5 and when == "in the run":
            put_back()
        return home

    def put_back() -> None:
        if what == "ledger":
            shutil.copy(home.with_name("old") / LEDGER, home / LEDGER)
        else:
            shutil.rmtree(home)
            home.with_name("old").rename(home)

    transport = Homes(turn)
    events = play(tmp_path / "coordinator", transport)
    if when == "in the next run":
        assert events[-1].event == "done"
        put_back()
        events = play(tmp_path / "coordinator", Homes(lambda _: home), "autumn")
    assert events[-1].event == "missed"
    assert "one_life" in str(events[-1])
    assert is_stopped(home)
    assert len(rounds_of(home)) == 2, "nothing was paid or answered after it was noticed"


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_coordinator_that_died_asks_again_the_same_bytes_and_nobody_is_stopped(
    home: Path, tmp_path: Path, number: int
) -> None:
    first, second = Homes(lambda _: home, stop_after=number), Homes(lambda _: home)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "coordinator", first)
    events = play(tmp_path / "coordinator", second, resume=True)
    assert events[-1].event == "done"
    assert second.seen[0] == first.seen[-1]
    assert not is_stopped(home)
    assert [each for _, each in rounds_of(home)] == list(range(ROUNDS))


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str, int], None]:
    """Make the coordinator die at the nth call of a method; later calls work again."""

    def die(kind: type, name: str, at: int) -> None:
        real, calls = getattr(kind, name), 0

        def dies(*arguments: Any, **options: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            real(*arguments, **options)

        monkeypatch.setattr(kind, name, dies)

    return die


@pytest.mark.parametrize(("kind", "method"), [(AnswerBook, "add"), (Checkpointer, "save")])
def test_a_death_between_list_and_checkpoint_loses_nothing(
    home: Path, tmp_path: Path, kind: type, method: str, dying: Callable[[type, str, int], None]
) -> None:
    dying(kind, method, 3)
    first, second = Homes(lambda _: home), Homes(lambda _: home)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "coordinator", first)
    assert play(tmp_path / "coordinator", second, resume=True)[-1].event == "done"
    assert second.seen[0] == first.seen[-1]
    assert not is_stopped(home)


def test_a_copy_that_answers_a_round_for_the_second_time_is_stopped_at_the_next(
    home: Path, tmp_path: Path, dying: Callable[[type, str, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    def first(number: int) -> Path:
        if number == 2:
            copied(home, "copy")
        return home

    dying(Checkpointer, "save", 4)  # after the list has the answer to round 2
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "coordinator", Homes(first))
    events = play(tmp_path / "coordinator", Homes(lambda _: home.with_name("copy")), resume=True)
    assert [event.event for event in events] == ["start", "round", "missed"]
    assert "st-anna answered round 2 of run spring again" in caplog.text
    assert is_stopped(home.with_name("copy"))
    assert play(tmp_path / "coordinator", Homes(lambda _: home), resume=True)[-1].event == "done"
    assert not is_stopped(home)


def test_a_hospital_that_was_set_up_anew_under_its_old_name_begins_a_new_list(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    one = Answered(run=RUN, federation=SHA, round=3, sha256=SHA)
    old, new = AnswerBook(folder, {"st-anna": "old key"}), AnswerBook(folder, {"st-anna": "new key"})
    old.add("st-anna", one, epsilon=1.0)
    assert new.last() == {}
    assert old.identity("st-anna") != new.identity("st-anna")
    assert AnswerBook(folder, {"st-anna": "old key"}).last() == {old.identity("st-anna"): one}


@settings(max_examples=60, deadline=None)
@given(
    junk=st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line), max_size=5), cut=st.integers(0, 400)
)
def test_a_list_that_was_damaged_still_gives_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    book = AnswerBook(folder, {"st-anna": "key"})
    for number in range(2):
        book.add("st-anna", Answered(run=RUN, federation=SHA, round=number, sha256=SHA), epsilon=1.0)
    path = folder / "st-anna.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(junk) + b"\n" + whole[: max(len(whole) - cut, 0)])
    after = AnswerBook(folder, {"st-anna": "key"})
    lines = set(whole.splitlines())  # a line is whole without the end of line too
    kept = sum(line in lines for line in whole[: max(len(whole) - cut, 0)].splitlines())
    assert len(after.of("st-anna")) == kept
    after.add("st-anna", Answered(run="next", federation=SHA, round=0, sha256=SHA), epsilon=1.0)
    assert AnswerBook(folder, {"st-anna": "key"}).of("st-anna")[-1].run == "next"


NAMES = st.sampled_from([RUN, "summer", "a.b-c_d"])
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(last=st.builds(Answered, run=NAMES, federation=HEX, round=st.integers(0, 10**6), sha256=HEX))
def test_an_answer_that_never_was_stops_the_hospital_and_does_nothing_else(
    fresh: Path, tmp_path_factory: pytest.TempPathFactory, last: Answered
) -> None:
    home = Path(shutil.copytree(fresh, tmp_path_factory.mktemp("liar") / "home"))
    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    agreement = hospital.approvals.agreement(digest)
    assert peek_reply(answer(hospital, request(agreement, 0))).refusal is None
    before = hospital.ledger.entries()
    for number in (0, 1):  # also a round that was answered, and for good
        reply = answer(hospital, with_header(request(agreement, number), last=last.model_dump()))
        refusal = peek_reply(reply).refusal
        assert refusal and (refusal.error, refusal.rule) == ("PolicyRefusal", "one_life")
        assert read(agreement, reply, number).answer.shape == (0,)
        assert str(home) not in refusal.model_dump_json()
    assert hospital.ledger.entries() == before
    assert hospital.ledger.verify() is None
    hospital.ledger.close()
    assert is_stopped(home)


BROKEN: list[object] = [
    *("", SHA, 7, True, [], [None], {}, {"run": RUN}, [RUN, SHA, 0, SHA]),
    *({"run": RUN, "federation": SHA, "round": r, "sha256": SHA} for r in (-1, 10**7, 0.5, "0", None, True)),
    *({"run": RUN, "federation": SHA, "round": 0, "sha256": s} for s in ("", SHA[1:], SHA.upper(), "\u202e" * 64, 5)),
    *({"run": name, "federation": SHA, "round": 0, "sha256": SHA} for name in ("../../etc", "", "a" * 64, "\x1b[2J")),
    {"run": RUN, "federation": SHA, "round": 0, "sha256": SHA, "more": 1},
]


@pytest.mark.parametrize("last", BROKEN, ids=repr)
def test_what_is_no_answer_is_a_malformed_request_and_stops_nobody(home: Path, last: object) -> None:
    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    agreement = hospital.approvals.agreement(digest)
    refusal = peek_reply(answer(hospital, with_header(request(agreement, 0), last=last))).refusal
    assert refusal and refusal.error == "MessageError"
    assert peek_reply(answer(hospital, request(agreement, 0))).refusal is None
    hospital.ledger.close()
    assert not is_stopped(home)


def test_a_disk_that_takes_no_mark_still_refuses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    last = {"run": RUN, "federation": digest, "round": 3, "sha256": SHA}
    monkeypatch.setattr(one_life, "write_atomically", full)
    refusal = peek_reply(
        answer(hospital, with_header(request(hospital.approvals.agreement(digest), 4), last=last))
    ).refusal
    assert refusal and refusal.rule == "one_life"
    hospital.ledger.close()


@pytest.fixture
def forked(home: Path, tmp_path: Path) -> Path:
    """The original, stopped: rounds 2, 3 and 4 were answered by its copy. The list lies in coordinator/answers."""

    def turn(number: int) -> Path:
        if number == 2:
            copied(home, "copy")
        return home.with_name("copy") if number in (2, 3, 4) else home

    events = play(tmp_path / "coordinator", Homes(turn))
    assert events[-1].event == "missed"
    assert is_stopped(home)
    return home


def test_status_and_log_say_it_and_the_daemon_does_not_start(
    forked: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command(["hospital", "status", str(forked)]) == 6
    assert "STOPPED" in capsys.readouterr().out
    command(["hospital", "status", str(forked), "--json"])
    assert "run spring round 4" in json.loads(capsys.readouterr().out.splitlines()[0])["stopped"]
    assert command(["hospital", "up", str(forked), "--once"]) == 4
    assert "accept-history" in capsys.readouterr().err


def test_the_newer_ledger_put_back_ends_it_without_a_list(
    forked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["hospital", "accept-history", str(forked), "--yes"]) == 2
    assert "put the newer ledger back" in capsys.readouterr().err
    shutil.copy(forked.with_name("copy") / LEDGER, forked / LEDGER)
    before = spent(forked)
    assert command(["hospital", "accept-history", str(forked), "--yes"]) == 0
    assert spent(forked) == before
    assert play(tmp_path / "coordinator", Homes(lambda _: forked), resume=True)[-1].event == "done"


def test_accepting_the_list_counts_what_the_copy_answered(
    forked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "coordinator" / "answers" / "st-anna.jsonl"
    before, copys = spent(forked), spent(forked.with_name("copy"))
    assert command(["hospital", "accept-history", str(forked), str(answers), "--yes"]) == 0
    said = capsys.readouterr().out
    assert all(f"round {number}: gradient (reply " in said for number in (2, 3, 4))
    assert "round 1" not in said
    assert spent(forked) == pytest.approx(copys) and spent(forked) > before  # together all rounds, as the copy's own
    assert not is_stopped(forked)
    assert play(tmp_path / "coordinator", Homes(lambda _: forked), resume=True)[-1].event == "done"
    assert command(["hospital", "ledger", str(forked), "--verify"]) == 0
    assert command(["hospital", "ledger", str(forked), "--csv"]) == 0
    assert capsys.readouterr().out.count("adopted,spring") == 3
    # Accepted again, nothing is counted twice.
    after = spent(forked)
    assert command(["hospital", "accept-history", str(forked), str(answers), "--yes"]) == 0
    assert spent(forked) == after


def test_a_round_in_no_list_between_those_of_the_copy_is_counted_too(forked: Path, tmp_path: Path) -> None:
    answers = tmp_path / "coordinator" / "answers" / "st-anna.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    short = tmp_path / "short.jsonl"
    short.write_text("".join(lines[:3] + lines[4:]))  # without round 3: its reply came too late
    assert command(["hospital", "accept-history", str(forked), str(short), "--yes"]) == 0
    assert spent(forked) == pytest.approx(spent(forked.with_name("copy")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not hold the answer"),
        ("{}", "line 1 is not an answer"),
        ("\x00" * 40, "line 1 is not an answer"),
        ("[" * 100_000, "line 1 is not an answer"),
        (json.dumps({"run": RUN, "federation": SHA, "round": 4, "sha256": SHA}), "does not hold the answer"),
        (json.dumps({"run": "../..", "federation": SHA, "round": 4, "sha256": SHA}), "line 1 is not an answer"),
    ],
)
def test_a_list_that_cannot_be_believed_changes_nothing(
    forked: Path, tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(text)
    before = spent(forked)
    assert command(["hospital", "accept-history", str(forked), str(wrong), "--yes"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert is_stopped(forked)
    assert spent(forked) == before


def test_an_agreement_that_is_not_approved_prices_nothing(
    forked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "coordinator" / "answers" / "st-anna.jsonl"
    foreign = json.dumps({"run": "other", "federation": SHA, "round": 0, "sha256": SHA})
    answers.write_text(foreign + "\n" + answers.read_text())
    assert command(["hospital", "accept-history", str(forked), str(answers), "--yes"]) == 2
    assert "not approved here" in " ".join(capsys.readouterr().err.split())
    assert is_stopped(forked)


def test_what_was_overspent_is_booked_and_nothing_more_is_answered(forked: Path, tmp_path: Path) -> None:
    toml = forked / "hospital.toml"
    text = toml.read_text()
    assert "epsilon = 10.0" in text
    hospital = Hospital.open(forked)
    budget = hospital.ledger.spent(hospital.config.delta) * 1.01
    hospital.ledger.close()
    toml.write_text(text.replace("epsilon = 10.0", f"epsilon = {budget!r}"))
    answers = tmp_path / "coordinator" / "answers" / "st-anna.jsonl"
    assert command(["hospital", "accept-history", str(forked), str(answers), "--yes"]) == 0
    assert spent(forked) > budget
    events = play(tmp_path / "coordinator", Homes(lambda _: forked), resume=True)
    assert "BudgetExceeded" in str(events[-1])


def test_the_marks_own_words_are_those_of_the_header(home: Path) -> None:
    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    last = Answered(run="a.b-c", federation=digest, round=3, sha256=SHA)
    blob = with_header(request(hospital.approvals.agreement(digest), 4), last=last.model_dump())
    with pytest.raises(PolicyRefusal, match="accept-history"):
        one_life.check(hospital, peek_request(blob))
    mark = one_life.mark_of(home)
    assert mark and (mark.last, mark.run, mark.round) == (last, RUN, 4)
    hospital.ledger.close()
