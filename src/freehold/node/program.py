"""What one client computes: the runs of a plan on its own data. The trainer's inside, without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from freehold.algorithms import build_algorithm, prefer
from freehold.core import Algorithm, ClientResult, Round, Sums, Tree, hits, is_finite
from freehold.data import Population, Prepared, from_files
from freehold.data.check import check
from freehold.engines import Feed, LoopEngine, planned_work
from freehold.errors import DataUnfit, Diverged, FreeholdError
from freehold.node.measures import FEWEST
from freehold.node.secret import Secret
from freehold.plan import AlgorithmRef, Plan, Privacy, runs_of
from freehold.tasks import TaskDefinition, build_task, prepare_for, schema_of, task_definition
from freehold.wire.messages import DIFFERING, Measured

ALONE = "local"
"""The algorithm that is the measure of every gain."""


def load(plan: Plan, client: str, path: Path, definition: TaskDefinition | None = None) -> Population:
    """One client's table, read by the schema of `definition`, or of the installed task; DataUnfit if it does not fit."""
    definition = definition or task_definition(plan.task.name)
    try:
        return from_files({client: path}, schema=schema_of(definition, plan))
    except FreeholdError as error:
        raise DataUnfit(f"The data of {client} does not fit the plan: {error.message}", hint=error.hint) from error


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one model does on the client's validation and test examples."""

    sums: Mapping[str, Measured]
    losses: Tensor
    """[n] of each validation example; never leaves."""
    right: Tensor
    """[n] bool, whether each test example is classified right; [0] for regression. Never leaves."""


class Program:
    """All runs of a plan for one client; algorithms and splits are made when they are first needed, and kept."""

    def __init__(self, plan: Plan, client: str, population: Population, definition: TaskDefinition | None = None) -> None:
        """`definition`: the use case; the installed one of that name if not given."""
        self.plan, self.client, self.population = plan, client, population
        self.definition = definition or task_definition(plan.task.name)
        self.runs = runs_of(plan)
        self._engines: dict[int, LoopEngine] = {}
        self._prepared: dict[int, Prepared] = {}
        self._alone: dict[int, tuple[int, Tree, Measurement]] = {}
        """Repeat -> the index of the round before which it was measured, the state then, and what it did."""
        self._last: dict[int, tuple[int, Measurement]] = {}
        """The same of each run, without the state."""

    def findings(self) -> list[str]:
        """What is odd about the data, in plain words."""
        return [finding.text for finding in check(self.population)]

    def algorithm(self, number: int) -> Algorithm:
        """The algorithm of a run."""
        return self._engine(number).algorithm

    def train(self, number: int, round: Round, shared: Tree, personal: Tree) -> tuple[ClientResult, float]:
        """A round's client update, and what it weighs; raises Diverged where something is not finite."""
        engine = self._engine(number)
        steps = engine.feed.steps(self.client, round.index, engine.work)
        result = engine.algorithm.client_update(round, shared, personal, steps)
        for part, tree in (("contribution", result.contribution), ("personal state", result.personal)):
            if not is_finite(tree):
                raise Diverged(
                    f"Round {round.index}: the {part} of {engine.algorithm.name} is not finite; its loss was NaN or infinite.",
                    hint="Lower the learning rate, or look at the data with `freehold data check`.",
                )
        return result, engine.weight(self.client)

    def measure(
        self, number: int, shared: Tree, personal: Tree, *, index: int | None = None
    ) -> tuple[Measurement, Measurement, str]:
        """The model of a run, the one trained alone, and which of "local", "shared" and "personal" this node would serve.

        `index` is that of the round that measures; the first one of a study if it is not given.
        """
        run = self.runs[number]
        index = self.plan.training.rounds if index is None else index
        found = self._measured(self._engine(number), shared, personal)
        alone = self._trained_alone(run.repeat, index)
        found = _paired(found, alone)
        self._last[number] = index, found
        return found, alone, self._served(run.repeat, alone, index)

    def _served(self, repeat: int, alone: Measurement, index: int) -> str:
        """By validation data: leaves "local" only for a paired gain of more than a standard error."""
        kinds = {run.algorithm.name: run.number for run in self.runs if run.repeat == repeat}
        personal, shared = kinds[self.plan.algorithm.name], kinds.get("fedavg")
        known = {number: found for number, (when, found) in self._last.items() if when == index}
        if personal not in known or (shared is not None and shared not in known):
            return ""
        candidates = {"local": alone, "personal": known[personal]}
        if shared is not None and shared != personal:
            candidates["shared"] = known[shared]
        losses = torch.stack([m.losses for m in candidates.values()])
        return list(candidates)[int(prefer(losses, torch.ones(losses.shape[1], dtype=torch.bool)).argmax())]

    def _trained_alone(self, repeat: int, until: int) -> Measurement:
        """Training alone for as many rounds as the others, those before the round of index `until`."""
        before, personal, found = self._alone.get(repeat, (0, None, None))
        if found is None or before != until:
            said = next((c for c in self.plan.companions if c.name == ALONE), None)
            same_rate = {k: v for k, v in self.plan.algorithm.hyperparameters.items() if k == "lr"}
            engine = self._engine_of(said or AlgorithmRef(name=ALONE, hyperparameters=same_rate), repeat, key=-1 - repeat)
            shared = engine.algorithm.broadcast(engine.algorithm.init())
            if personal is None or before > until:
                before, personal = 0, engine.algorithm.enroll(shared)
            for index in filter(self.plan.training.trains, range(before, until)):
                steps = engine.feed.steps(self.client, index, engine.work)
                personal = engine.algorithm.client_update(Round(index, 1, 1), shared, personal, steps).personal
            found = self._measured(engine, shared, personal)
            self._alone[repeat] = until, personal, found
        return found

    def _measured(self, engine: LoopEngine, shared: Tree, personal: Tree) -> Measurement:
        engine.store.restore({self.client: personal})
        adapted = engine.adapted(shared, self.client)
        sums, losses, right = {}, torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        for split in ("validation", "test"):
            rows = engine.feed.rows[self.client][split]
            outputs = engine.algorithm.outputs(shared, adapted, engine.feed.x[rows])
            sums[split] = released(engine.algorithm.task.measure(outputs, engine.feed.y[rows]), len(rows))
            if split == "validation":
                losses = engine.algorithm.task.losses(outputs, engine.feed.y[rows]).double()
            elif engine.algorithm.task.classes:
                right = hits(outputs, engine.feed.y[rows])
        return Measurement(sums=sums, losses=losses, right=right)

    def _engine(self, number: int) -> LoopEngine:
        run = self.runs[number]
        return self._engine_of(run.algorithm, run.repeat, key=number)

    def _prepared_for(self, repeat: int) -> Prepared:
        if repeat not in self._prepared:
            seed = self.plan.training.seed + repeat
            self._prepared[repeat] = prepare_for(self.definition, self.plan, self.population, seed=seed)
        return self._prepared[repeat]

    def training(self) -> int:
        """Examples that are trained on, in the repeat that has the fewest."""
        return min(len(self._prepared_for(repeat).rows[self.client]["train"]) for repeat in range(self.plan.repeats))

    def _engine_of(self, reference: AlgorithmRef, repeat: int, *, key: int) -> LoopEngine:
        """`key`: the run's number; that of training alone is negative."""
        if key not in self._engines:
            seed = self.plan.training.seed + repeat
            prepared = self._prepared_for(repeat)
            # Of what is trained alone nothing leaves, so it needs no noise: with it, taking part would seem to gain more.
            plan = self.plan if reference.name != ALONE else msgspec.structs.replace(self.plan, privacy=Privacy())
            # Who knew the draws could take the noise away, and would know who was in a batch. A round that is asked again draws
            # anew: with the same noise on another model, the difference of the two would have none.
            drawing = Secret() if plan.privacy.unit == "record" else None
            noised_sum, poisson = (drawing.noised_sum, drawing.poisson) if drawing else (None, None)
            task = build_task(self.definition, prepared, plan, seed, noised_sum=noised_sum)
            work, adaptation = planned_work(plan)
            self._engines[key] = LoopEngine(
                build_algorithm(task, reference, self.plan.contribution.dtype),
                Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=seed, poisson=poisson),
                work,
                adaptation=adaptation,
                weighting=self.plan.training.weighting,
                most_weight=self.plan.training.most_weight,
            )
        return self._engines[key]


def _paired(found: Measurement, alone: Measurement) -> Measurement:
    """With the number of test examples that one model has right and the other has wrong: how sure a difference of theirs is."""
    test = found.sums["test"]
    if not len(found.right) or not test.sums:
        return found
    differing = float((found.right != alone.right).sum())
    told = Measured(examples=test.examples, sums={**test.sums, DIFFERING: differing})
    return replace(found, sums={**found.sums, "test": told})


def released(sums: Sums, examples: int) -> Measured:
    """Sums as they may leave: nothing that rests on fewer than five examples.

    Sums per class leave only where each class has five examples or more: from all but one the last could be worked out.
    """
    if examples < FEWEST:
        return Measured(examples=examples, sums={})
    seen = sums.get("count_by_class")
    classes = seen is not None and bool((seen >= FEWEST).all())
    out: dict[str, float] = {}
    for name, value in sums.items():
        if value.dim() == 0:
            out[name] = float(value)
        elif classes:
            out |= {f"{name}/{k}": float(each) for k, each in enumerate(value)}
    return Measured(examples=examples, sums=out)
