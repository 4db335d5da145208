"""The vector engine: a chunk of the cohort as one batched program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from freehold.core import (
    Algorithm,
    Batch,
    ClientResult,
    Round,
    Steps,
    Tally,
    Tree,
    Weighting,
    at,
    gradient,
    leaves,
    stack,
    tree_map,
)
from freehold.engines.feed import Feed, Work, pad, pad_batches
from freehold.engines.loop import ADAPTING, LoopEngine, check_finite
from freehold.errors import NotBatchable


class VectorEngine(LoopEngine):
    """Runs `chunk` clients at a time under `vmap`, those with most steps first; equal to the loop up to rounding."""

    def __init__(
        self,
        algorithm: Algorithm,
        feed: Feed,
        work: Work,
        *,
        adaptation: Work | None = None,
        weighting: Weighting | None = None,
        most_weight: int | None = None,
        chunk: int = 64,
    ) -> None:
        """As `LoopEngine`; memory grows with `chunk` times the model."""
        super().__init__(algorithm, feed, work, adaptation=adaptation, weighting=weighting, most_weight=most_weight)
        self.chunk = chunk
        self._padding_checked = False

    def collect(self, round: Round, shared: Tree, cohort: Sequence[str]) -> Tally:
        """Ask the cohort."""
        self._check_padding(shared, cohort)
        chunks = self._chunks(cohort, lambda c: self.feed.steps(c, round.index, self.work))
        return reduce(add, (self._collect_chunk(round, shared, clients, steps) for clients, steps in chunks))

    def predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> Mapping[str, Mapping[str, Tensor]]:
        """client -> split -> outputs of its own model [n, ...]."""
        out: dict[str, Mapping[str, Tensor]] = {}
        for part, steps in self._chunks(clients, lambda c: self.feed.steps(c, ADAPTING, self.adaptation)):
            batches = [pad_batches([self.feed.batch(c, split) for c in part]) for split in ("validation", *splits)]
            found = self._run(self._predict_one, shared, part, steps, batches)
            for i, client in enumerate(part):
                out[client] = {s: outputs[i, : self.feed.size(client, s)] for s, outputs in zip(splits, found, strict=True)}
        return {c: out[c] for c in clients}

    def _predict_one(self, shared: Tree, personal: Tree, steps: Steps, batches: Sequence[Batch]) -> tuple[Tensor, ...]:
        validation, *asked = batches
        adapted = self.algorithm.adapt(shared, personal, steps, validation)
        return tuple(self.algorithm.outputs(shared, adapted, batch["x"]) for batch in asked)

    def _collect_chunk(self, round: Round, shared: Tree, clients: Sequence[str], steps: Steps) -> Tally:
        def one(shared: Tree, personal: Tree, steps: Steps, _: Sequence[Batch]) -> tuple[Tree, Tree, Tree]:
            result = self.algorithm.client_update(round, shared, personal, steps)
            return result.contribution, result.personal, dict(result.metrics)

        results = ClientResult(*self._run(one, shared, clients, steps, ()))
        weights = torch.tensor([self.weight(c) for c in clients], dtype=torch.float64)
        tally = Tally(
            total=tree_map(lambda t: _weighted_sum(t, weights), results.contribution),
            weight=float(weights.sum()),
            clients=len(clients),
            metrics=tree_map(lambda t: _weighted_sum(t, weights), results.metrics),
        )
        if not all(bool(t.isfinite().all()) for tree in (results.contribution, results.personal) for t in leaves(tree)):
            for i, client in enumerate(clients):
                mine = ClientResult(at(results.contribution, i), at(results.personal, i))
                check_finite(mine, client, round, self.algorithm.name)
        self.store.scatter(clients, results.personal)
        return tally

    def _chunks(self, clients: Sequence[str], steps_of: Callable[[str], Steps]) -> Iterator[tuple[Sequence[str], Steps]]:
        steps = {c: steps_of(c) for c in clients}
        order = sorted(clients, key=lambda c: len(steps[c]), reverse=True)
        for start in range(0, len(order), self.chunk):
            part = order[start : start + self.chunk]
            yield part, pad([steps[c] for c in part])

    def _run(self, one: Callable[..., Any], shared: Tree, clients: Sequence[str], steps: Steps, batches: Sequence[Batch]) -> Any:
        """`one(shared, personal, steps, batches)` for each client, under `vmap`."""
        personal = self.store.gather(clients, shared)
        # A view per client, no copy: what a module changes in place has to have a client axis under vmap.
        copies = tree_map(lambda t: t.expand(len(clients), *t.shape), shared)

        def mapped(shared: Tree, personal: Tree, own: tuple[Tensor, ...], batches: Sequence[Batch]) -> Any:
            return one(shared, personal, steps.of_client(own), batches)

        try:
            return vmap(mapped, randomness="error")(copies, personal, steps.per_client(), tuple(batches))
        except RuntimeError as error:
            raise NotBatchable(
                f"{self.algorithm.name} cannot run for many clients at once with this model ({str(error).splitlines()[0]}).",
                hint="Run with --engine loop.",
            ) from error

    def _check_padding(self, shared: Tree, cohort: Sequence[str]) -> None:
        """Once: does padding change the gradient? It does where a module mixes examples in a way that core does not know."""
        if self._padding_checked:
            return
        task = self.algorithm.task
        largest = max(cohort, key=self.feed.size)
        steps = self.feed.steps(largest, 0, self.work)
        batch = max(steps, key=lambda b: int(b["real"].sum()))  # of one example, padded with itself, nothing could be seen
        n = len(batch["real"])
        padded = {k: torch.cat([v, 2 * v[-1:] if v.is_floating_point() else v[-1:]]) if v.dim() else v for k, v in batch.items()}
        padded["real"] = torch.arange(n + 1) < n

        def gradients(shared: Tree, personal: Tree, steps: Steps, batches: Sequence[Batch]) -> tuple[Tree, ...]:
            return tuple(gradient(task.objective, task.init, b)[0] for b in batches)

        alone, with_padding = self._run(gradients, shared, [largest], pad([steps]), [stack([b]) for b in (batch, padded)])
        tolerance = 1e-6 if next(iter(alone.values())).dtype == torch.float64 else 1e-3
        for name, g in alone.items():
            # NaN on both sides is not padding's doing; the update itself will say whose it is.
            if not torch.allclose(
                g, with_padding[name], rtol=tolerance, atol=tolerance * float(g.nan_to_num().abs().max()), equal_nan=True
            ):
                raise NotBatchable(
                    f"The model mixes the examples of a batch (the gradient of {name} changes with padding), "
                    "so clients of unequal size cannot share a batch.",
                    hint="Run with --engine loop. (BatchNorm is known and fine.)",
                )
        self._padding_checked = True


def _weighted_sum(t: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum(
        "c,c...->...", weights.to(t.dtype if t.is_floating_point() else torch.float64), t if t.is_floating_point() else t.double()
    )
