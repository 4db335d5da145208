"""Trials that ride along give what they give by themselves, for every algorithm; and a trial that diverges is lost alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from freehold.algorithms import WRAPPERS, family_of
from freehold.core import Algorithm, AlgorithmEntry, Task, Tree, algorithm_entry, algorithm_names, train, tree_map
from freehold.engines import Feed, LoopEngine, SweepEngine, VectorEngine, Work, lost_of, riding
from freehold.engines.sweep import Family
from freehold.errors import Diverged
from freehold.plan import AlgorithmRef, WrapperRef
from tests.laws.cases import task_of
from tests.problems import CLIENTS, distance, feed_for

WORK, ADAPTATION = Work(batch_size=4, epochs=1), Work(batch_size=3, steps=2)
ASKED = {"clients": CLIENTS[:4], "rounds": 2, "cohort": 3, "seed": 2}
FACTORS = (1.0, 0.5, 1.3)
WRAPPED = {name: WrapperRef(name=name) for name in WRAPPERS}


def settings_of(entry: AlgorithmEntry, factor: float) -> dict[str, float]:
    """Every scalar that is no whole number, moved by a factor."""
    lr = entry.hyperparameters["lr"].default
    found = {}
    for name, each in entry.hyperparameters.items():
        if each.kind is float:
            value = factor * float(lr if each.default is None else each.default)
            found[name] = min(value, 0.95) if each.between is not None and each.between.high == 1 else value
    return found


def reference(name: str) -> AlgorithmRef:
    """The algorithm of that name; a wrapper goes around ditto."""
    return AlgorithmRef(name="ditto", wrappers=(WRAPPED[name],)) if name in WRAPPED else AlgorithmRef(name=name)


def sweep_of(name: str, task: Task) -> tuple[Family, list[Algorithm], dict[str, torch.Tensor]]:
    ref = reference(name)
    each = [settings_of(algorithm_entry(ref.name), factor) for factor in FACTORS]
    family = family_of(task, ref)
    dtype = next(iter(task.parameters.values())).dtype
    scalars = {key: torch.tensor([settings[key] for settings in each], dtype=dtype) for key in each[0]}
    return family, [family(settings) for settings in each], scalars  # type: ignore[arg-type]


def run(algorithm: Algorithm, engine: LoopEngine) -> tuple[Tree, Mapping[str, Tree], Mapping[str, torch.Tensor]]:
    *_, last = train(algorithm, engine, **ASKED)
    shared = algorithm.broadcast(last.server)
    predicted = engine.predict(shared, CLIENTS[:5], ["validation"])
    return last.server, dict(engine.store.committed()), {c: said["validation"] for c, said in predicted.items()}


def check(name: str, task: Task, feed: Feed, tolerance: float, *, nested: bool = False) -> None:
    family, trials, scalars = sweep_of(name, task)
    alone = [run(trial, VectorEngine(trial, feed, WORK, adaptation=ADAPTATION)) for trial in trials]
    together = riding(family, trials, scalars)
    engines: list[LoopEngine] = [SweepEngine(family, trials, feed, WORK, adaptation=ADAPTATION, chunk=2)]
    if nested:
        engines.append(VectorEngine(together, feed, WORK, adaptation=ADAPTATION))
    for engine in engines:
        server, personal, said = run(together, engine)
        assert lost_of(server) == (False,) * len(trials)
        for k, (its_server, its_personal, its_said) in enumerate(alone):
            assert distance(tree_map(lambda t, k=k: t[k], server["server"]), its_server) < tolerance
            assert personal.keys() == its_personal.keys()
            for client, state in its_personal.items():
                assert distance(tree_map(lambda t, k=k: t[k], personal[client]), state) < tolerance, client
            for client, outputs in its_said.items():
                assert outputs.shape == said[client][:, k].shape
                assert distance({"out": said[client][:, k]}, {"out": outputs}) < tolerance, client


@pytest.mark.parametrize("name", (*algorithm_names(), *WRAPPED))
def test_trials_that_ride_are_what_they_are_by_themselves(name: str) -> None:
    check(name, task_of("mixed"), feed_for("mixed"), 1e-9, nested=True)


@pytest.mark.parametrize("name", (*algorithm_names(), *WRAPPED))
def test_the_same_in_single_precision(name: str) -> None:
    task, feed = task_of("mixed"), feed_for("mixed")
    narrow = {k: t.float() if t.is_floating_point() else t for k, t in task.init.items()}
    check(name, replace(task, init=narrow), replace(feed, x=feed.x.float()), 1e-5)


def test_a_trial_that_diverges_is_lost_and_the_others_go_on() -> None:
    task, feed = task_of("mixed"), feed_for("mixed")
    family = family_of(task, AlgorithmRef(name="ditto"))
    rates = torch.tensor([0.1, 1e200, 0.05], dtype=torch.float64)
    trials = [family({"lr": float(lr)}) for lr in rates]  # type: ignore[dict-item]
    together = riding(family, trials, {"lr": rates})
    with pytest.raises(Diverged):
        run(trials[1], VectorEngine(trials[1], feed, WORK))
    for engine in (SweepEngine(family, trials, feed, WORK), LoopEngine(together, feed, WORK)):
        server, personal, _ = run(together, engine)
        assert lost_of(server) == (False, True, False)
        for k in (0, 2):
            its_server, its_personal, _ = run(trials[k], VectorEngine(trials[k], feed, WORK))
            assert distance(tree_map(lambda t, k=k: t[k], server["server"]), its_server) < 1e-9
            for client, state in its_personal.items():
                assert distance(tree_map(lambda t, k=k: t[k], personal[client]), state) < 1e-9
