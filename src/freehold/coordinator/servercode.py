"""The child that runs an algorithm's server code: `init`, `broadcast` and `server_update`. No keys, no network, no state.

All it needs comes with each job, so it may be ended at any time. Shapes come from made-up data with the task's schema.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from freehold.algorithms import build_algorithm
from freehold.coordinator.serverjobs import Close, Describe, Described, FromChild, Load, Loaded, ServerCodeError, States, ToChild
from freehold.core import Algorithm, Round, Tree, flatten, is_finite, unflatten
from freehold.data import mock_population
from freehold.engines import METRICS, Feed, contribution_tensors, planned_work
from freehold.errors import Diverged, FreeholdError, NotAsynchronous, PeerGone, StudyRefused
from freehold.plan import Contribution, Plan, TensorSpec, parse, runs_of
from freehold.tasks import TaskDefinition, build_task, prepare_for, schema_of, task_definition
from freehold.tasks.bundled import definition_of
from freehold.wire.codec import CHUNK
from freehold.wire.local import Mapped, channel_from, close, read
from freehold.wire.tally import FixedPointSum
from freehold.wire.tensors import packed, unpacked

UNEXPECTED = 411

LEAST_MOCK_ROWS = 64
MOST_MOCK_CELLS = 10_000_000
"""Of made-up data, rows times columns: about 80 MB. It gives shapes only, and must not take the machine's memory."""


_bundled: dict[str, TaskDefinition] = {}
"""Digest -> what the bundle defines; there is one at most, in a process that is in a sandbox for it."""


class Built(NamedTuple):
    """One run's algorithm, and the made-up data that gave it its shapes."""

    algorithm: Algorithm
    feed: Feed
    contribution: Contribution
    own: Mapping[str, torch.dtype]
    """The dtypes of the contribution's tensors in the algorithm, where they are not those that travel."""


@lru_cache(maxsize=8)
def _plan(text: bytes) -> Plan:
    return parse(text.decode())


@lru_cache(maxsize=256)
def _built(text: bytes, number: int) -> Built:
    plan = _plan(text)
    run = runs_of(plan)[number]
    definition = task_definition(plan.task.name) if plan.task.bundle is None else _bundled[plan.task.bundle]
    schema = schema_of(definition, plan)
    made_up = mock_population(schema, ("mock",), examples=mock_rows(plan, columns=len(schema.names) + 1))
    prepared = prepare_for(definition, plan, made_up, seed=run.seed)
    task = build_task(definition, prepared, plan, run.seed)
    algorithm = build_algorithm(task, run.algorithm, plan.contribution.dtype)
    feed = Feed(x=prepared.x, y=prepared.y, rows=prepared.rows, seed=run.seed)
    as_made: tuple[TensorSpec, ...] = ()
    if algorithm.sent_as is not None:
        as_made = contribution_tensors(replace(algorithm, sent_as=None), feed, planned_work(plan)[0])
    return Built(algorithm, feed, run.contribution, {t.name: getattr(torch, t.dtype) for t in as_made})


def mock_rows(plan: Plan, *, columns: int) -> int:
    """Rows of made-up data that such a plan needs; raises StudyRefused for too many. `columns`: with the target."""
    rows = max(LEAST_MOCK_ROWS, 4 * plan.min_examples)
    if rows * columns > MOST_MOCK_CELLS:
        most = MOST_MOCK_CELLS // columns // 4
        raise StudyRefused(
            f"With min_examples = {plan.min_examples} the plan needs {rows} rows of {columns} columns of made-up data, more than "
            f"{MOST_MOCK_CELLS} cells.",
            hint=f"Lower min_examples to {most} or less." if most >= 1 else "Choose a task with fewer columns.",
        )
    return rows


def answer(job: ToChild, fds: Sequence[int]) -> tuple[FromChild, list[int]]:
    """The answer to a job, and the sealed memory that goes with it."""
    text = read(fds[0])
    plan = _plan(text)
    if isinstance(job, Load):
        assert plan.task.bundle is not None
        _bundled[plan.task.bundle] = definition_of(plan, read(fds[1]))
        return Loaded(), []
    if isinstance(job, Describe):
        kinds = [_built(text, number) for number in range(1 + len(plan.companions))]
        for each in kinds:
            _check_mode(plan, each)
        return Described(tensors=[contribution_tensors(b.algorithm, b.feed, planned_work(plan)[0]) for b in kinds]), []
    built = _built(text, job.number)
    algorithm = built.algorithm
    server = algorithm.init()
    if isinstance(job, Close):
        server = unflatten(unpacked(fds[1]), server)
        mean = _mean(built, fds[2])
        if mean is not None:
            server = algorithm.server_update(Round(job.round, job.heard, job.population), server, mean)
        if not is_finite(server):
            raise Diverged(
                f"Round {job.round}: the server state of {algorithm.name} is no longer finite.",
                hint="Lower the learning rates; the round before was kept.",
            )
    shared = algorithm.broadcast(server)
    states = [packed(flatten(server), "server")]
    if shared is not server:
        states.append(packed(flatten(shared), "shared"))
    return States(), states


def _check_mode(plan: Plan, built: Built) -> None:
    algorithm, spec = built.algorithm, contribution_tensors(built.algorithm, built.feed, planned_work(plan)[0])
    whole = [tensor.name for tensor in spec if "int" in tensor.dtype]
    if plan.round.mode == "asynchronous" and (not algorithm.asynchronous or whole):
        why = ", ".join(sorted(algorithm.statistics)) or ", ".join(whole) or "what it sends"
        raise NotAsynchronous(
            f"{algorithm.name} needs the mean of one round: {why} must not be damped, or come from an older state.",
            hint='Say mode = "synchronous" in [round], or choose e.g. fedavg, ditto, fedper or fedadam, also as companions.',
        )


def _mean(built: Built, fd: int) -> Tree | None:
    """The weighted mean contribution. In float64 up to the last step: the sum is exact, so it is rounded once.

    None where all that were heard weigh nothing: they have no mean, and the server state stays as it was.
    """
    spec = built.contribution
    flat: dict[str, Tensor] = {}
    with Mapped(fd) as view:
        tally = FixedPointSum(spec, view, most_clients=1)
        weight = tally.weight
        if not weight:
            return None
        for tensor in spec.tensors:
            if tensor.name.startswith(METRICS):
                continue
            whole = "int" in tensor.dtype
            dtype = torch.float32 if whole else built.own.get(tensor.name, getattr(torch, tensor.dtype))
            total, mean = tally.tensor(tensor.name), torch.empty(tensor.shape, dtype=dtype)
            for at in range(0, len(total), CHUNK):  # without another copy of the whole model
                part = torch.from_numpy(total[at : at + CHUNK].astype("float64"))
                mean.view(-1)[at : at + CHUNK] = part / (weight / 2**spec.scale if whole else weight)
            flat[tensor.name] = mean
    return unflatten(flat)


def main() -> None:
    """`python -m freehold.coordinator.servercode FD`: the descriptor of the channel to the coordinator."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    channel = channel_from(int(sys.argv[1]))
    while True:
        try:
            job, fds = channel.receive(ToChild)
        except PeerGone:
            return
        out: list[int] = []
        reply: FromChild
        try:
            reply, out = answer(job, fds)  # type: ignore[arg-type]
        except FreeholdError as error:
            reply = ServerCodeError(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:  # foreign code may raise anything, and the coordinator must hear of it
            reply = ServerCodeError(code=UNEXPECTED, message=f"The algorithm's server code raised {type(error).__name__}.")
        finally:
            close(fds)
        try:
            channel.send(reply, out)
        except PeerGone:
            return
        finally:
            close(out)


if __name__ == "__main__":
    main()
