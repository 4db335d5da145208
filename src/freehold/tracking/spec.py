"""Trackers by name: `mlflow:URI` and `tensorboard:DIR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from freehold.errors import MissingExtra, UsageError, near_miss
from freehold.events import Listener
from freehold.tracking.to_mlflow import mlflow_listener
from freehold.tracking.to_tensorboard import tensorboard_listener

_TRACKERS: Mapping[str, Callable[[str], AbstractContextManager[Listener]]] = {
    "mlflow": mlflow_listener,
    "tensorboard": tensorboard_listener,
}


def listener(spec: str) -> AbstractContextManager[Listener]:
    """Listens to a study and tells a tracker: `mlflow:URI` (as MLflow takes it) or `tensorboard:DIR` (made if it is not there).

    Each row with each seed becomes a run of its own, with the metric of each round that was evaluated; nothing else leaves.
    Leaving the context finishes what is open. Raises UsageError for another spec, MissingExtra without the extra.
    """
    name, colon, target = spec.partition(":")
    if name not in _TRACKERS:
        raise UsageError(f"There is no tracker {name!r}.", hint=near_miss(name, _TRACKERS))
    if not colon or not target:
        example = {"mlflow": "mlflow:http://localhost:5000", "tensorboard": "tensorboard:runs"}[name]
        raise UsageError(f"{spec!r} does not say where to write.", hint=f"For example {example}.")
    try:
        return _TRACKERS[name](target)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise MissingExtra(f"{spec!r} needs {name}, which is not installed.", hint=f"pip install 'freehold[{name}]'") from error
