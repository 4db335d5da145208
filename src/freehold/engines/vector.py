"""The vector engine: a chunk of the cohort as one batched program, or one client at a time where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from freehold.core import (
    Algorithm,
    Batch,
    Round,
    Steps,
    Tally,
    Tree,
    Weighting,
    executing,
    imperative,
    leaves,
    tree_map,
)
from freehold.core.cohort import dense, weighted_sum
from freehold.engines.choice import FED, Choice, ExecutorName, Kind, choose, load_of, measured, near
from freehold.engines.execution import Execution
from freehold.engines.feed import Feed, Work
from freehold.engines.loop import ADAPTING, LoopEngine, check_finite
from freehold.engines.padding import check_padding
from freehold.errors import Diverged, HiddenTensor, NotBatchable

_BLOCK = 1 << 25
"""Numbers of examples that are predicted for at once."""


class VectorEngine(LoopEngine):
    """Runs a chunk of clients at a time, those with most steps first; equal to the loop up to rounding.

    What the executor cannot take falls back to the loop, unless the executor was asked for by name: then NotBatchable. Where
    memory runs out, the chunk is halved.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        feed: Feed,
        work: Work,
        *,
        adaptation: Work | None = None,
        weighting: Weighting | None = None,
        most_weight: int | None = None,
        executor: ExecutorName = "auto",
        chunk: int | None = None,
        rounds: int = 1,
        choice: Choice | None = None,
        explain: bool = False,
    ) -> None:
        """As `LoopEngine`; memory grows with `chunk` times the model. `chunk`: None lets the engine choose.

        `rounds`: how many are to come, as far as is known: in a long run a measurement pays, where the cost model is not sure.
        `choice`: that of a run that is continued. `explain`: measure in any case; that alone changes no choice.
        """
        super().__init__(algorithm, feed, work, adaptation=adaptation, weighting=weighting, most_weight=most_weight)
        self.asked, self.rounds, self.explain = executor, rounds, explain
        self.execution = Execution(choice=choice)
        self._chunk = chunk
        self._padding_checked = False
        self._largest = ""
        if choice is not None:
            self.execution.executor, self.execution.chunk = choice.executor, choice.chunk

    # ---- rounds

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort; clients without training data are left out."""
        present = self.present(cohort)
        self._largest = max(present, key=self.feed.size)
        self._decide(round, shared, present)
        order = sorted(present, key=lambda c: self.feed.count(c, round.index, self.work), reverse=True)
        finite: list[Tensor] = []
        tally: Tally = reduce(add, self._parts(order, partial(self._collect, round, shared, finite)))
        if finite and not bool(torch.stack(finite).all()):
            self._blame(round, shared, order)
        return tally

    def _collect(self, round: Round, shared: Tree, finite: list[Tensor], clients: Sequence[str]) -> Tally:
        """Ask one chunk; `finite` gets a flag, so that nobody waits for it within the round."""
        steps = self.feed.cohort(clients, round.index, self.work)
        counts = [self.feed.count(c, round.index, self.work) for c in clients]
        if self.execution.executor == "loop":
            tally, flags, computed = *self._alone(round, shared, clients, steps, counts), sum(counts)
        else:
            self._check_padding(shared)
            tally, flags = self._together(round, shared, clients, steps)
            computed = len(counts) * max(counts) if self.execution.executor == "vmap" else _reached(counts)
        self.execution.count(steps.real, sum(counts), computed)
        finite.extend(flags)
        return tally

    def _alone(
        self, round: Round, shared: Tree, clients: Sequence[str], steps: Steps, counts: Sequence[int]
    ) -> tuple[Tally, list[Tensor]]:
        total: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        flags: list[Tensor] = []
        weight = 0.0
        for own, client in zip(self._own(steps, clients, counts), clients, strict=True):
            with imperative():
                result = self.algorithm.client_update(round, shared, self.store.read(client, shared), own)
            mine = self.weight(client)
            total, metrics = _added(total, result.contribution, mine), _added(metrics, dict(result.metrics), mine)
            weight += mine
            flags += _flags(result.personal)
            self.store.stage(client, result.personal)
        return Tally(total=total, weight=weight, clients=len(clients), metrics=metrics), [*flags, *_flags(total)]

    def _own(self, steps: Steps, clients: Sequence[str], counts: Sequence[int]) -> Iterator[Steps]:
        """Each client's steps, its padding cut off."""
        for i, (client, count) in enumerate(zip(clients, counts, strict=True)):
            size = max(1, self.feed.size(client))
            rows, present, picks, real, live, keys = (t[i] for t in steps.per_client())
            own = (rows[:size], present[:size], picks[:count], real[:count], live[:count], keys[:count])
            yield replace(steps.of_client(own), trim=True)

    def _together(self, round: Round, shared: Tree, clients: Sequence[str], steps: Steps) -> tuple[Tally, list[Tensor]]:
        def one(shared: Tree, personal: Tree, steps: Steps, _: Sequence[Batch]) -> tuple[Tree, Tree, Tree]:
            result = self.algorithm.client_update(round, shared, personal, steps)
            return result.contribution, dense(result.personal), dict(result.metrics)

        contribution, personal, metrics = self._run(one, shared, clients, steps, ())
        weights = [self.weight(c) for c in clients]
        shares = torch.tensor(weights, dtype=torch.float64).to(self.feed.device, non_blocking=True)
        total = weighted_sum(contribution, shares)
        tally = Tally(total=total, weight=sum(weights), clients=len(clients), metrics=weighted_sum(metrics, shares))
        self.store.scatter(clients, personal)
        return tally, [*_flags(total), *_flags(personal)]

    def _blame(self, round: Round, shared: Tree, cohort: Sequence[str]) -> None:
        """Raise Diverged for the first client whose result is not finite, found by asking again, one by one."""
        for client in cohort:
            personal = self.store.read(client, shared)
            with imperative() if self.asked == "auto" else nullcontext():
                result = self.algorithm.client_update(round, shared, personal, self.feed.steps(client, round.index, self.work))
            check_finite(result, client, round, self.algorithm.name)
        raise Diverged(
            f"Round {round.index}: the sum of what the clients sent is not finite, though each of them is.",
            hint="Lower the learning rate. The round before was kept.",
        )

    # ---- predictions

    def predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """client -> split -> outputs of its own model [n, ...], on the CPU."""
        with_data = [c for c in clients if self.feed.size(c)]
        if with_data:
            self._largest = max(with_data, key=self.feed.size)
            self._decide(Round(0, len(clients), len(clients)), shared, with_data)
        order = sorted(with_data, key=lambda c: self.feed.count(c, ADAPTING, self.adaptation), reverse=True)
        out: dict[str, Mapping[str, Tensor]] = {}
        for part in self._parts(order, lambda part: self._predict(shared, part, splits)):
            out |= part
        for client in clients:
            if client not in out:
                out[client] = self.unadapted(shared, client, splits)
        return {c: out[c] for c in clients}

    def _predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
        if self.execution.executor == "loop":
            return {c: self._predict_alone(shared, c, splits) for c in clients}
        if self.algorithm.adapts:
            steps = self.feed.cohort(clients, ADAPTING, self.adaptation)
            adapted = self._run(self._adapt, shared, clients, steps, [self.feed.batches(clients, "validation")])
        else:
            adapted = self._personal(clients, shared)
        copies = self._copies(shared, len(clients))
        found: dict[str, dict[str, Tensor]] = {c: {} for c in clients}
        for split in splits:
            outputs = []
            for x in self._blocks(clients, split):
                outputs.append(self._batched(self.algorithm.outputs, copies, adapted, x).to("cpu"))
            whole = torch.cat(outputs, dim=1)
            for i, client in enumerate(clients):
                found[client][split] = whole[i, : self.feed.size(client, split)]
        return dict(found)

    def _adapt(self, shared: Tree, personal: Tree, steps: Steps, batches: Sequence[Batch]) -> Tree:
        adapted: Tree = dense(self.algorithm.adapt(shared, personal, steps, batches[0]))
        return adapted

    def _predict_alone(self, shared: Tree, client: str, splits: Sequence[str]) -> dict[str, Tensor]:
        with imperative():
            personal = self.adapted(shared, client)
        rows = {split: self.feed.rows[client][split] for split in splits}
        most = max(1, _BLOCK // max(1, self.feed.x[:1].numel()))
        return {
            split: torch.cat([self.algorithm.outputs(shared, personal, self.feed.x[part]) for part in mine.split(most)]).to("cpu")
            for split, mine in rows.items()
        }

    def _blocks(self, clients: Sequence[str], split: str) -> Iterator[Tensor]:
        """`x` of a split [C, n, ...], as many examples at once as memory should hold."""
        rows, present = self.feed.split_rows(clients, split)
        most = max(1, _BLOCK // max(1, self.feed.x[:1].numel() * len(clients)))
        for part, there in zip(rows.split(most, dim=1), present.split(most, dim=1), strict=True):
            yield self.feed.read(self.feed.x, part, there)

    # ---- how it runs

    def _parts(self, order: Sequence[str], run: Callable[[Sequence[str]], Any]) -> Iterator[Any]:
        """`run` for each chunk, by another executor or on fewer clients where it has to be."""
        start, execution = 0, self.execution
        while start < len(order):
            part = order[start : start + execution.chunk]
            try:
                found = run(part)
            except (NotBatchable, HiddenTensor) as error:
                if self.asked != "auto" or execution.executor == "loop":
                    raise
                execution.fallbacks[f"{execution.executor} → loop: {error.message}"] = None
                execution.executor, execution.chunk = "loop", self._chunk or FED
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(part) < 2:
                    raise
                execution.chunk = len(part) // 2
                execution.fallbacks[f"chunk {len(part)} → {execution.chunk}: there was not enough memory"] = None
                continue
            start += len(part)
            yield found

    def _run(self, one: Callable[..., Any], shared: Tree, clients: Sequence[str], steps: Steps, batches: Sequence[Batch]) -> Any:
        """`one(shared, personal, steps, batches)` for each client, by the executor's batching rule."""

        def mapped(shared: Tree, personal: Tree, own: tuple[Tensor, ...], batches: Sequence[Batch]) -> Any:
            return one(shared, personal, steps.of_client(own), batches)

        personal, own = self._personal(clients, shared), steps.per_client()
        return self._batched(mapped, self._copies(shared, len(clients)), personal, own, tuple(batches))

    def _batched(self, one: Callable[..., Any], *mapped: Any) -> Any:
        name: Any = self.execution.executor
        try:
            with nullcontext() if name in ("loop", "vmap") else executing(name):
                return vmap(one, randomness="error")(*mapped)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise NotBatchable(
                f"{self.algorithm.name} cannot run for many clients at once with this model ({str(error).splitlines()[0]}).",
                hint="Run with --executor loop.",
            ) from error

    def _copies(self, shared: Tree, size: int) -> Tree:
        """A view per client, no copy: what a module changes in place has to have a client axis under vmap."""
        return tree_map(lambda t: t.expand(size, *t.shape), shared)

    def _personal(self, clients: Sequence[str], shared: Tree) -> Tree:
        return tree_map(lambda t: t.to(self.feed.device), self.store.gather(clients, shared))

    def _decide(self, round: Round, shared: Tree, cohort: Sequence[str]) -> None:
        """Once: the executor and the chunk."""
        execution = self.execution
        if execution.executor or not cohort:
            return
        if self.asked != "auto":
            chosen: Choice = Choice(executor=self.asked, chunk=self._chunk or FED, why="asked for by name")
            execution.choice, execution.executor, execution.chunk = chosen, chosen.executor, chosen.chunk
            if self._chunk is not None:
                return
        sample = sorted(cohort, key=self.feed.size)[len(cohort) // 2]
        steps = self.feed.steps(sample, round.index, self.work)
        load = load_of(self.algorithm.task, next(iter(steps)))
        if self.asked != "auto":
            chosen = replace(chosen, chunk=load.chunk(self.asked), flop_per_step=load.flop)
        else:
            chosen = choose(load, steps.picks.numel(), self.feed.size(sample), clients=len(cohort), device=self.feed.device.type)
            total = self.rounds * sum(self.feed.count(c, round.index, self.work) for c in cohort)
            deciding = near(chosen, total)
            if candidates := deciding or (near(chosen, None) if self.explain else ()):
                seen = measured(chosen, load, candidates, partial(self._sample, round, shared, cohort))
                chosen = seen if deciding else replace(chosen, measured_us=seen.measured_us)
        if self._chunk is not None:
            chosen = replace(chosen, chunk=self._chunk)
        execution.choice, execution.executor, execution.chunk = chosen, chosen.executor, chosen.chunk

    def _sample(
        self, round: Round, shared: Tree, cohort: Sequence[str], name: Kind, chunk: int
    ) -> tuple[int, Callable[[], object]]:
        """A few steps of a first chunk by an executor; what they give is thrown away."""
        clients = sorted(cohort, key=self.feed.size, reverse=True)[: min(chunk, 4) if name == "loop" else chunk]
        few = replace(self.work, epochs=None, steps=3, continuing=False)
        steps, counts = self.feed.cohort(clients, round.index, few), [3] * len(clients)

        def compute() -> object:
            before, self.execution.executor = self.execution.executor, name
            try:
                if name == "loop":
                    return self._alone(round, shared, clients, steps, counts)
                self._check_padding(shared)
                return self._together(round, shared, clients, steps)
            finally:
                self.execution.executor = before
                self.store.settle(False)

        return 3 * len(clients), compute

    def _check_padding(self, shared: Tree) -> None:
        client = self._largest
        if not self._padding_checked:
            steps = self.feed.steps(client, 0, self.work)
            whole = self.feed.cohort([client], 0, self.work)
            check_padding(self.algorithm.task, steps, lambda one, batches: self._run(one, shared, [client], whole, batches))
            self._padding_checked = True


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on the CPU or on a device."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in ("can't allocate memory", "out of memory"))
    )


def _reached(counts: Sequence[int]) -> int:
    """Steps that are computed where each runs on the clients up to the last one that has it: all useful if these are sorted."""
    found = most = 0
    for count in reversed(counts):
        most = max(most, count)
        found += most
    return found


def _flags(tree: Tree) -> list[Tensor]:
    return [t.isfinite().all() for t in leaves(tree) if t.is_floating_point()]


def _added(total: dict[str, Any], tree: Tree, weight: float) -> dict[str, Any]:
    """`total + weight * tree`, in place; an empty total starts one."""
    numbers = tree_map(lambda t: t if t.is_floating_point() else t.double(), tree)
    if not total:
        return dict(tree_map(lambda t: t * weight, numbers))
    if mine := list(leaves(total)):
        theirs = list(leaves(tree_map(lambda _, t: t, total, numbers)))  # in the order of the total's names
        torch._foreach_add_(mine, theirs, alpha=weight)
    return total
