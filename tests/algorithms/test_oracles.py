"""Each algorithm gives what a plain script gives: server state, every personal state, and every client's predictions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from freehold.algorithms import wrapped
from freehold.core import Algorithm, algorithm_entry, algorithm_names, flatten, train
from freehold.engines import LoopEngine
from tests.algorithms import oracles
from tests.algorithms.problems import CLASSES, WORK, Problem, log_of, problem

ROUNDS, COHORT = 3, 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """An algorithm with settings, the oracle for it, and what else the oracle has to be told."""

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    oracle: Callable[..., oracles.Outcome]
    told: Mapping[str, Any] = field(default_factory=dict)
    norm: bool = False
    wrapper: tuple[str, Mapping[str, float]] | None = None
    label: str = ""

    def build(self, problem: Problem) -> Algorithm:
        algorithm = algorithm_entry(self.name).build(problem.task, **self.settings)
        return wrapped(algorithm, self.wrapper[0], **self.wrapper[1]) if self.wrapper else algorithm


def is_norm(name: str) -> bool:
    return name.startswith("body.1.")


def centers(algorithm: Algorithm) -> list[dict[str, Tensor]]:
    stacked = algorithm.init()
    return [{k: t[j] for k, t in stacked.items()} for j in range(2)]


CASES = [
    Case(name="local", settings={"lr": 0.2}, oracle=oracles.local, norm=True),
    Case(name="local", settings={"lr": 0.01, "optimizer": "adam"}, oracle=oracles.local, label="-adam"),
    Case(name="fedavg", settings={"lr": 0.2}, oracle=oracles.fedavg, norm=True),
    Case(name="fedprox", settings={"lr": 0.2, "mu": 0.7}, oracle=oracles.fedavg, norm=True),
    Case(name="scaffold", settings={"lr": 0.2, "server_lr": 0.8}, oracle=oracles.scaffold, told={"uniform": False}, norm=True),
    Case(name="scaffold-uniform", settings={"lr": 0.2, "server_lr": 1.0}, oracle=oracles.scaffold, told={"uniform": True}),
    *(
        Case(
            name=f"fed{kind}",
            settings={"lr": 0.2, "server_lr": 0.05, "beta1": 0.8, "tau": 0.01} | rest,
            oracle=oracles.fedopt,
            told={"kind": kind},
            norm=True,
        )
        for kind, rest in (("adam", {"beta2": 0.9}), ("yogi", {"beta2": 0.9}), ("adagrad", {}))
    ),
    Case(name="fedavg-finetuned", settings={"lr": 0.2, "tune_lr": 0.1}, oracle=oracles.finetuned, norm=True),
    Case(name="fedavg-intercept", settings={"lr": 0.2, "tune_lr": 0.4}, oracle=oracles.intercept),
    Case(name="ditto", settings={"lr": 0.2, "lam": 0.7}, oracle=oracles.ditto, norm=True),
    Case(name="apfl", settings={"lr": 0.2, "alpha": 0.3}, oracle=oracles.apfl),
    Case(name="fedper", settings={"lr": 0.2}, oracle=oracles.keeping, told={"mine": oracles.is_head}, norm=True),
    Case(
        name="lg-fedavg", settings={"lr": 0.2}, oracle=oracles.keeping, told={"mine": lambda n: not oracles.is_head(n)}, norm=True
    ),
    Case(name="fedbn", settings={"lr": 0.2}, oracle=oracles.keeping, told={"mine": is_norm}, norm=True),
    Case(name="fedrep", settings={"lr": 0.2, "head_passes": 2}, oracle=oracles.fedrep),
    Case(name="fedbabu", settings={"lr": 0.2, "tune_lr": 0.3}, oracle=oracles.fedbabu),
    Case(
        name="pfedme",
        settings={"lr": 0.05, "lam": 4.0, "inner_steps": 3, "inner_lr": 0.1, "beta": 0.9},
        oracle=oracles.pfedme,
    ),
    Case(name="per-fedavg", settings={"lr": 0.2, "inner_lr": 0.1}, oracle=oracles.per_fedavg),
    Case(name="per-fedavg-hf", settings={"lr": 0.2, "inner_lr": 0.1, "delta": 0.01}, oracle=oracles.per_fedavg),
    Case(name="fedala", settings={"lr": 0.2, "weight_lr": 3.0, "weight_steps": 3}, oracle=oracles.fedala),
    Case(name="ifca", settings={"lr": 0.2, "clusters": 2}, oracle=oracles.ifca, told={"centers": centers}, norm=True),
    Case(name="fedrod", settings={"lr": 0.2}, oracle=oracles.fedrod, told={"classes": CLASSES}, norm=True),
    Case(name="fedproto", settings={"lr": 0.2, "lam": 0.7}, oracle=oracles.fedproto, told={"classes": CLASSES}, norm=True),
    Case(name="feddbe", settings={"lr": 0.2, "kappa": 5.0, "momentum": 0.3}, oracle=oracles.feddbe, norm=True),
    Case(name="knn-per", settings={"lr": 0.2, "neighbors": 3}, oracle=oracles.knn_per, told={"classes": CLASSES}),
    Case(
        name="fedavg",
        settings={"lr": 0.2},
        oracle=oracles.fedavgm,
        told={"momentum": 0.8, "server_lr": 0.7},
        wrapper=("server-momentum", {"momentum": 0.8, "server_lr": 0.7}),
        norm=True,
        label="-server-momentum",
    ),
]


def outcome(problem: Problem, algorithm: Algorithm) -> oracles.Outcome:
    engine = LoopEngine(algorithm, problem.feed, WORK)
    *_, last = train(algorithm, engine, problem.clients, rounds=ROUNDS, cohort=COHORT)
    predictions = engine.predict(algorithm.broadcast(last.server), problem.clients, ["test"])
    return oracles.Outcome(last.server, dict(engine.store.committed()), {c: said["test"] for c, said in predictions.items()})


def assert_equal(got: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    for path, value in flatten(wanted).items():
        torch.testing.assert_close(flatten(got)[path], value, rtol=0, atol=1e-9, msg=lambda text, p=path: f"{where} {p}: {text}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name + case.label)
def test_an_algorithm_equals_its_oracle(case: Case) -> None:
    given = problem(norm=case.norm)
    algorithm = case.build(given)
    ours = outcome(given, algorithm)

    log = log_of(given.feed, rounds=ROUNDS, cohort=COHORT)
    settings = {"adam": v == "adam"} if (v := case.settings.get("optimizer")) else {}
    settings |= {k: v for k, v in case.settings.items() if k not in ("optimizer", "clusters")}
    told = {k: v(algorithm) if v is centers else v for k, v in case.told.items()}
    theirs = case.oracle(given.net, log, given.loss, **settings, **told)

    server = ours.server["server"] if case.wrapper else ours.server
    assert flatten(server).keys() == flatten(theirs.server).keys()
    assert_equal(server, theirs.server, "server")
    for client, personal in ours.personal.items():
        if flatten(personal):
            assert_equal(personal, theirs.personal[client], client)
    assert len(theirs.predictions) == len(given.clients)
    assert_equal(ours.predictions, theirs.predictions, "predictions of")


def test_every_algorithm_has_an_oracle() -> None:
    ours = {n for n in algorithm_names() if algorithm_entry(n).package == "freehold"}
    assert ours == {case.name for case in CASES}


def test_some_clients_of_these_runs_never_took_part_or_paused() -> None:
    log = log_of(problem().feed, rounds=ROUNDS, cohort=COHORT)
    assert any(len([1 for asked in log.rounds if c in asked]) < ROUNDS for c in log.train)
    assert len({len(batches) for asked in log.rounds for batches in asked.values()}) > 2, "ragged"


def test_the_oracles_import_nothing_from_freehold() -> None:
    tree = ast.parse(Path(oracles.__file__).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    top = {name.split(".")[0] for name in found}
    assert top == {"__future__", "collections", "copy", "dataclasses", "math", "torch", "typing"}
