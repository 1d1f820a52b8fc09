"""The sink `mlflow`: what lies in MLflow's own store afterwards, and what a tracker that fails costs a run."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.extend.test_sink import play
from tests.server.conftest import a_federation

from wardround_server.events import RunEnded, RunStarted
from wardround_server.sinks import Sinks
from wardround_server.sinks import mlflow as ours


def settings(tmp_path: Path, **more: Any) -> Mapping[str, Mapping[str, Any]]:
    return {"mlflow": {"uri": (tmp_path / "store").as_uri(), **more}}


def client(tmp_path: Path) -> Any:
    pytest.importorskip("mlflow")
    return ours._client((tmp_path / "store").as_uri())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's run is shorter than MLflow's import."""
    monkeypatch.setattr("wardround_server.sinks.LAST_WORDS_S", 300.0)


def run_log(folder: Path) -> str:
    return (folder / "run.log").read_text()


@pytest.mark.usefixtures("patient")
def test_what_mlflow_reads_back_is_what_the_events_said(tmp_path: Path) -> None:
    store = client(tmp_path)
    events = play(tmp_path / "runs" / "spring", settings(tmp_path, experiment="hearts"))
    assert "failed" not in run_log(tmp_path / "runs" / "spring")
    [found] = store.search_runs([store.get_experiment_by_name("hearts").experiment_id])
    assert (found.info.run_name, found.info.status) == ("spring", "FINISHED")
    assert found.data.params["digest"] == a_federation(rounds=2).digest
    assert found.data.tags["privacy"] == "ON" and "version.torch" in found.data.tags
    rounds = [event.model_dump() for event in events if event.event == "round"]
    for name in ("epsilon_max", "seconds", "hospitals", "replied"):
        history = sorted((each.step, each.value) for each in store.get_metric_history(found.info.run_id, name))
        assert history == [(each["round"], each[name]) for each in rounds]
    shown_names = " ".join([*found.data.params.values(), *found.data.metrics])
    assert "anna" not in shown_names


@pytest.mark.usefixtures("patient")
def test_a_run_that_is_resumed_goes_on_in_the_same_run(tmp_path: Path) -> None:
    store = client(tmp_path)
    folder = tmp_path / "runs" / "spring"
    for last in (False, True):
        with Sinks(folder, settings(tmp_path)) as sinks:
            sinks.tell(RunStarted(run="spring", federation="f", digest="d", from_round=int(last)))
            if last:
                sinks.tell(RunEnded(run="spring"))
        [found] = store.search_runs([store.get_experiment_by_name("wardround").experiment_id])
        assert found.info.status == ("FINISHED" if last else "KILLED")
    assert "failed" not in run_log(folder)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("at", ["create_experiment", "create_run", "log_batch", "set_terminated"])
def test_a_store_that_fails_at_any_call_costs_no_round(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    def fails(*_: object, **__: object) -> None:
        raise OSError("the store is gone \x1b[2J")

    monkeypatch.setattr(MlflowClient, at, fails)
    folder = tmp_path / "runs" / "spring"
    events = play(folder, settings(tmp_path))
    assert isinstance(events[-1], RunEnded)
    assert run_log(folder).count("event sink mlflow failed") == 1 and "\x1b" not in run_log(folder)


def test_a_server_that_never_answers_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr("wardround_server.sinks.LAST_WORDS_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        folder = tmp_path / "runs" / "spring"
        assert isinstance(play(folder, {"mlflow": {"uri": uri}})[-1], RunEnded)
        assert "event sink mlflow is busy" in run_log(folder)


@pytest.mark.usefixtures("patient")
def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    folder = tmp_path / "runs" / "spring"
    assert isinstance(play(folder, settings(tmp_path))[-1], RunEnded)
    assert "pip install 'wardround[mlflow]'" in run_log(folder)


@pytest.mark.usefixtures("patient")
def test_a_setting_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "spring"
    assert isinstance(play(folder, settings(tmp_path, url="x"))[-1], RunEnded)
    assert "[sinks.mlflow]" in run_log(folder) and "url" in run_log(folder)


@pytest.mark.parametrize(("run", "store"), [("home/runs/spring", "home/mlruns"), ("demo", "demo/mlruns")])
def test_without_a_uri_it_is_a_folder_of_the_home_or_of_the_simulation(
    run: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr(ours, "_client", asked.append)
    with ours.sink(tmp_path / run, {}):
        pass
    assert asked == [(tmp_path / store).as_uri()]
