from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from freehold.errors import UsageError
from freehold.events import Event
from freehold.tracking import listener
from tests.unit.tracking.events import CELLS, accuracy, study


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of files: the only one that MLflow's skinny package has without a server, and only if it is asked for by name."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "runs").as_uri()


def runs(uri: str) -> dict[str, Run]:
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "freehold"]
    return {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}


def test_each_cell_is_a_run_with_its_row_its_seed_and_its_learning_curve(uri: str) -> None:
    with listener(f"mlflow:{uri}") as hear:
        for event in study():
            hear(event)
    found = runs(uri)
    assert set(found) == {f"{row} · seed {seed}" for row, seed in CELLS}
    for row, seed in CELLS:
        run = found[f"{row} · seed {seed}"]
        assert run.data.params == {"row": row, "seed": str(seed)}
        assert set(run.data.metrics) == {"accuracy"}
        assert run.info.status == "FINISHED"
        history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "accuracy")
        assert [(point.step, point.value) for point in history] == [(at, accuracy(row, seed, at)) for at in (2, 4)]


def test_a_second_study_adds_its_runs_to_the_same_experiment(uri: str) -> None:
    for seed in (0, 1):
        with listener(f"mlflow:{uri}") as hear:
            hear(Event("round.evaluated", {"row": "fedavg", "seed": seed, "round": 1, "accuracy": 0.5}))
    assert {name: run.info.status for name, run in runs(uri).items()} == {
        "fedavg · seed 0": "FINISHED",
        "fedavg · seed 1": "FINISHED",
    }


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_study_that_breaks_off_leaves_no_run_open(uri: str, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), listener(f"mlflow:{uri}") as hear:
        hear(Event("round.evaluated", {"row": "fedavg", "seed": 0, "round": 1, "accuracy": 0.5}))
        raise error
    assert [run.info.status for run in runs(uri).values()] == [status]


def test_what_mlflow_refuses_is_a_usage_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with pytest.raises(UsageError, match="MLFLOW_ALLOW_FILE_STORE=true"), listener(f"mlflow:{(tmp_path / 'new').as_uri()}"):
        raise AssertionError("entered")


def test_a_server_that_refuses_is_told_soon_and_the_environment_is_as_before() -> None:
    before = dict(os.environ)
    begun = time.monotonic()
    with pytest.raises(UsageError, match="MLflow refuses"), listener("mlflow:http://127.0.0.1:9"):
        pass
    assert time.monotonic() - begun < 20  # by itself MLflow tries for minutes
    assert {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_HTTP")} == {
        k: v for k, v in before.items() if k.startswith("MLFLOW_HTTP")
    }


def test_a_server_that_never_answers_is_given_up_and_the_users_own_patience_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(UsageError, match="MLflow refuses"), listener(f"mlflow:http://127.0.0.1:{silent.getsockname()[1]}"):
            pass
    assert time.monotonic() - begun < 9  # ten seconds are what is waited otherwise
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
