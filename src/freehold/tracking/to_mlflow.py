"""MLflow: an experiment `freehold` with one run for each row and seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from freehold.errors import UsageError
from freehold.events import Event, Listener
from freehold.tracking.cell import Cell, cell_of, figures_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_EXPERIMENT = "freehold"

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own: seven retries, each after twice as long, which for a server that does not answer are minutes of silence."""


def mlflow_listener(uri: str) -> AbstractContextManager[Listener]:
    """Writes to the tracking server or store at `uri`; ModuleNotFoundError without MLflow."""
    _import_without_telemetry()
    return _Runs(uri)


def _import_without_telemetry() -> None:
    # MLflow makes its telemetry client, and a file with an id of this installation, when it is imported, and only this variable
    # keeps it from that: there is no argument. It is set and not read, so how Freehold behaves still depends on no environment.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    if hasattr(mlflow, "telemetry"):  # since MLflow 3.2; imported by somebody else before, it may have a client already
        mlflow.telemetry.set_telemetry_client()


class _Runs:
    """The runs of one study; a run is made with its first figure, so that a cell without any leaves none."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._runs: dict[Cell, str] = {}
        self._open: set[Cell] = set()
        self._impatient: list[str] = []  # variables that were not there before

    def __enter__(self) -> Listener:
        from mlflow.tracking import MlflowClient

        # MLflow takes its patience from the environment alone; what the user set there stays.
        self._impatient = [name for name in _PATIENCE if name not in os.environ]
        os.environ.update({name: _PATIENCE[name] for name in self._impatient})
        try:
            with self._refusals():
                self._client: MlflowClient = MlflowClient(tracking_uri=self._uri)
                known = self._client.get_experiment_by_name(_EXPERIMENT)
                self._experiment = known.experiment_id if known else self._client.create_experiment(_EXPERIMENT)
        except BaseException:
            self._be_patient()
            raise
        return self._hear

    def _be_patient(self) -> None:
        for name in self._impatient:
            os.environ.pop(name, None)
        self._impatient = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            with self._refusals():
                for cell in sorted(self._open):
                    self._client.set_terminated(self._runs[cell], status)
        finally:
            self._be_patient()
        self._open.clear()

    def _hear(self, event: Event) -> None:
        if event.name == "round.evaluated":
            with self._refusals():
                run = self._run(cell_of(event))
                for name, value in figures_of(event).items():
                    self._client.log_metric(run, name, value, step=int(event.fields["round"]))
        elif event.name == "cell.closed" and (cell := cell_of(event)) in self._open:
            with self._refusals():
                self._client.set_terminated(self._runs[cell], "FINISHED")
            self._open.remove(cell)

    def _run(self, cell: Cell) -> str:
        if cell not in self._runs:
            made = self._client.create_run(self._experiment, run_name=f"{cell.row} · seed {cell.seed}")
            self._runs[cell] = made.info.run_id
            self._open.add(cell)
            self._client.log_param(made.info.run_id, "row", cell.row)
            self._client.log_param(made.info.run_id, "seed", cell.seed)
        return self._runs[cell]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise UsageError(
                f"MLflow refuses {self._uri!r}: {error.message}", hint="Check the address, or leave MLflow out."
            ) from error
