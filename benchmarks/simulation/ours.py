"""Freehold: the vector engine as users get it, each of its executors where it can be told one, and the loop engine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.simulation.contender import SHOWN, timed
from benchmarks.simulation.works import Ready
from freehold.core import Round, Tree, flatten
from freehold.engines import LoopEngine, VectorEngine

EXECUTORS = ("loop", "stacked", "lowrank", "vmap")


def takes(keyword: str) -> bool:
    """Whether the vector engine of this version can be told so."""
    return keyword in inspect.signature(VectorEngine).parameters


class Ours:
    """An engine, and around it what `train` does in a round."""

    def __init__(self, made: Ready, executor: str | None = None) -> None:
        """`executor`: one of EXECUTORS; None: as the engine chooses."""
        told: dict[str, Any] = {}
        kind: type[LoopEngine] = VectorEngine
        if executor is not None and takes("executor"):
            told["executor"] = executor
        elif executor == "loop":
            kind = LoopEngine
        elif executor not in (None, "vmap"):
            raise ValueError(f"this version's engine has no executor {executor}")
        self.executor = executor
        self.made, self.engine = made, kind(made.algorithm, made.feed, made.work, **told)
        self.server = made.algorithm.init()
        self.mean: Tree = {}

    def round(self, index: int) -> float:
        """One round of all clients."""
        return timed(self.made.device, lambda: self._round(index))

    def outcome(self) -> Mapping[str, Tensor]:
        """Of the last round."""
        clients = self.made.clients[:SHOWN]
        personal = {c: flatten(self.engine.store.read(c, self.made.algorithm.broadcast(self.server))) for c in clients}
        return {**flatten(self.mean), **{f"personal/{c}/{k}": v for c, state in personal.items() for k, v in state.items()}}

    def close(self) -> None:
        """Nothing is held."""

    def _round(self, index: int) -> None:
        algorithm, clients = self.made.algorithm, self.made.clients
        asked = Round(index, len(clients), len(clients))
        tally = self.engine.collect(asked, algorithm.broadcast(self.server), clients)
        self.mean = tally.mean()
        algorithm.server_update(asked, self.server, self.mean)
        self.engine.settle(True)
