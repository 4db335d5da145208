"""A sweep: trials of one algorithm, which differ in scalars only, ride along as more clients of the same cohort.

A scalar, such as a learning rate, is a part of the state that a client is shown, so each client's update may have another
one, and trials x clients are one batched program. Each trial has a server of its own, and each client a personal state for
each trial; all see the same batches and the same keys, so that a trial is what it would be by itself, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from freehold.algorithms import Family
from freehold.core import Algorithm, Batch, ClientResult, Round, Steps, Task, Tree, Weighting, choose, leaves, stack, tree_map
from freehold.engines.feed import Feed, Work
from freehold.engines.loop import ADAPTING
from freehold.engines.store import PersonalStore
from freehold.engines.vector import VectorEngine
from freehold.errors import HiddenTensor, NotBatchable

PAYS_BYTES = 128 * 2**10
"""Models up to this size are faster side by side: a step of theirs is mostly overhead. Larger ones fill the caches one by one;
measured with networks of 10 and 155 KiB, where 8 trials took a third of the time of 8 runs, and as long as these."""
_ROOM_BYTES, _MOST = 16 * 2**20, 1024
"""What the models of a chunk may take, all of its clients and trials together, and how many they may be."""


def riding(family: Family, trials: Sequence[Algorithm], scalars: Mapping[str, Tensor]) -> Algorithm:
    """One algorithm that is all `trials` at once: every tree has a leading axis [K], and any engine can run it.

    `scalars`, [K] each, are those in which trials differ, in the dtype of the parameters. A trial that diverges is lost: it
    stays as it was in the round before, and the others go on; `lost_of` tells which.
    """
    one = _one(family, trials[0])

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        def mapped(shared: Tree, personal: Tree) -> tuple[Tree, Tree]:
            result = one.client_update(round, shared, personal, steps)
            return result.contribution, result.personal

        return ClientResult(*_over_trials(mapped, shared, personal))

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        after, lost = [], []
        for k, trial in enumerate(trials):
            before, sent = _pick(server["server"], k), _pick(mean["sent"], k)
            # What a wrapper remembers begins in the first round, so all trials take part in that one.
            tried = trial.server_update(round, before, sent)
            fine = _all_finite(tried) & (mean["lost"][k] == 0) & (server["lost"][k] == 0)
            after.append(choose(fine, tried, _as_before(before, tried)))
            lost.append(~fine)
        return {**server, "server": stack(after), "lost": torch.stack(lost).to(server["lost"].dtype)}

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        found: Tree = _over_trials(lambda s, p: one.adapt(s, p, steps, validation), shared, personal)
        return found

    def predict(shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        # The client's examples lead, as everywhere: [B, K, ...].
        found: Tensor = _over_trials(lambda s, p: one.outputs(s, p, x), shared, personal)
        return found.movedim(0, 1)

    count = len(trials)
    return Algorithm(
        name=trials[0].name,
        task=trials[0].task,
        init=lambda: {"scalars": scalars, "server": stack([t.init() for t in trials]), "lost": torch.zeros(count)},
        broadcast=lambda server: {
            "scalars": server["scalars"],
            "shared": stack([t.broadcast(_pick(server["server"], k)) for k, t in enumerate(trials)]),
        },
        enroll=lambda shared: stack([t.enroll(_pick(shared["shared"], k)) for k, t in enumerate(trials)]),
        client_update=client_update,
        server_update=server_update,
        adapt=adapt,
        predict=predict,
        weighting=trials[0].weighting,
    )


def lost_of(server: Tree) -> tuple[bool, ...]:
    """Which trials of a sweep have diverged."""
    return tuple(bool(lost) for lost in server["lost"])


def _one(family: Family, like: Algorithm) -> Algorithm:
    """A single trial as nodes see it: its scalars are a part of what is shared, `{"scalars", "shared"}`."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        result = family(shared["scalars"]).client_update(round, shared["shared"], personal, steps)
        fine = _all_finite(result.contribution) & _all_finite(result.personal)
        sent = tree_map(lambda t: torch.where(fine, t, torch.zeros_like(t)), result.contribution)
        return ClientResult({"sent": sent, "lost": (~fine).double()}, choose(fine, result.personal, personal))

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        return family(shared["scalars"]).adapt(shared["shared"], personal, steps, validation)

    def predict(shared: Tree, personal: Tree, x: Tensor) -> Tensor:
        return family(shared["scalars"]).outputs(shared["shared"], personal, x)

    return Algorithm(
        name=like.name,
        task=like.task,
        init=dict,
        client_update=client_update,
        adapt=adapt,
        predict=predict,
        weighting=like.weighting,
    )


def pays(task: Task) -> bool:
    """Whether trials of this task are faster side by side than one after the other."""
    return _size(task) <= PAYS_BYTES


class SweepEngine(VectorEngine):
    """Runs a sweep with clients x trials under one `vmap`; equal to `riding` on any engine, and to trials by themselves."""

    def __init__(
        self,
        family: Family,
        trials: Sequence[Algorithm],
        feed: Feed,
        work: Work,
        *,
        adaptation: Work | None = None,
        weighting: Weighting | None = None,
        most_weight: int | None = None,
        chunk: int | None = None,
    ) -> None:
        """As `VectorEngine`; `chunk` counts clients. By default as many as keep all their trials' models within 16 MiB."""
        models = min(_ROOM_BYTES // max(_size(trials[0].task), 1), _MOST)
        super().__init__(
            _one(family, trials[0]),
            feed,
            work,
            adaptation=adaptation,
            weighting=weighting,
            most_weight=most_weight,
            executor="stacked",
            chunk=max(1, models // len(trials)) if chunk is None else chunk,
        )
        self.trials = len(trials)
        self.store = PersonalStore(lambda shared: stack([t.enroll(_pick(shared["shared"], k)) for k, t in enumerate(trials)]))

    def unadapted(self, shared: Tree, client: str, splits: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of a client that has no training data to adapt with: of the states that it has [n, K, ...]."""
        personal, rows = self.store.read(client, shared), self.feed.rows[client]
        said = {s: _over_trials(partial(self._said, self.feed.x[rows[s]]), shared, personal) for s in splits}
        return {split: outputs.movedim(0, 1).to("cpu") for split, outputs in said.items()}

    def _said(self, x: Tensor, shared: Tree, personal: Tree) -> Tensor:
        return self.algorithm.outputs(shared, personal, x)

    def _predict(self, shared: Tree, clients: Sequence[str], splits: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
        steps = self.feed.cohort(clients, ADAPTING, self.adaptation)
        batches = [self.feed.batches(clients, split) for split in ("validation", *splits)]
        found = self._run(self._adapted_outputs, shared, clients, steps, batches)
        out: dict[str, Mapping[str, Tensor]] = {}
        for i, client in enumerate(clients):
            sizes = [self.feed.size(client, split) for split in splits]
            out[client] = {s: o[i, :, :n].movedim(0, 1).to("cpu") for s, o, n in zip(splits, found, sizes, strict=True)}
        return out

    def _adapted_outputs(self, shared: Tree, personal: Tree, steps: Steps, batches: Sequence[Batch]) -> tuple[Tensor, ...]:
        validation, *asked = batches
        adapted = self.algorithm.adapt(shared, personal, steps, validation)
        return tuple(self.algorithm.outputs(shared, adapted, batch["x"]) for batch in asked)

    def _run(self, one: Callable[..., Any], shared: Tree, clients: Sequence[str], steps: Steps, batches: Sequence[Batch]) -> Any:
        """`one(shared, personal, steps, batches)` for each client and trial, under one `vmap`; leading axes [C, K]."""
        count, trials = len(clients), self.trials
        personal = tree_map(lambda t: t.flatten(0, 1), self.store.gather(clients, shared))
        copies = tree_map(lambda t: t.expand(count, *t.shape).flatten(0, 1), shared)
        own = tuple(t.repeat_interleave(trials, 0) for t in steps.per_client())
        inputs = tuple(tree_map(lambda t: t.repeat_interleave(trials, 0), batch) for batch in batches)

        def mapped(shared: Tree, personal: Tree, own: tuple[Tensor, ...], batches: Sequence[Batch]) -> Any:
            return one(shared, personal, steps.of_client(own), batches)

        try:
            found = self._batched(mapped, copies, personal, own, inputs)
        except TypeError as error:
            raise NotBatchable(
                f"Trials of {self.algorithm.name} cannot run side by side with this model ({str(error).splitlines()[0]}).",
                hint="Run them one by one.",
            ) from error
        return tuple(_unflattened(part, count, trials) for part in found)

    def _batched(self, one: Callable[..., Any], *mapped: Any) -> Any:
        try:
            return super()._batched(one, *mapped)
        except HiddenTensor:  # a loss is made with a trial's own scalar, which only the definition can see
            self.execution.executor = "vmap"
            return super()._batched(one, *mapped)


def _size(task: Task) -> int:
    return sum(t.numel() * t.element_size() for t in task.init.values())


def _over_trials(one: Callable[[Tree, Tree], Any], shared: Tree, personal: Tree) -> Any:
    return vmap(one, randomness="error")(shared, personal)


def _unflattened(part: Any, count: int, trials: int) -> Any:
    if isinstance(part, Tensor):
        return part.unflatten(0, (count, trials))
    return tree_map(lambda t: t.unflatten(0, (count, trials)), part)


def _pick(tree: Tree, k: int) -> Tree:
    return tree_map(lambda t: t[k], tree)


def _all_finite(tree: Tree) -> Tensor:
    found = [t.isfinite().all() for t in leaves(tree) if t.is_floating_point()]
    return torch.stack(found).all() if found else torch.tensor(True)


def _as_before(before: Tree, after: Tree) -> Tree:
    """`before` in the shape of `after`: what was begun in this round is zero."""

    def one(name: str, value: Tensor | Tree) -> Tensor | Tree:
        if isinstance(value, Mapping):
            return _as_before(before.get(name, {}), value)
        return before[name] if name in before else torch.zeros_like(value)

    return {name: one(name, value) for name, value in after.items()}
