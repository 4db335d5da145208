"""Wrappers: an algorithm in, an algorithm out. Server momentum (Hsu et al. 2019, arXiv:1909.06335) and clipping."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace

from freehold.core import (
    Algorithm,
    ClientResult,
    Fraction,
    Rate,
    Round,
    Steps,
    Tree,
    Value,
    checked,
    declared,
    leaves,
    norm,
    scale,
)
from freehold.errors import UnknownName, UsageError, near_miss


def with_server_momentum(algorithm: Algorithm, *, momentum: Fraction = 0.9, server_lr: Rate = 1.0) -> Algorithm:
    """`u = momentum u + mean`, and the algorithm's server update sees `server_lr * u`. momentum 0, server_lr 1: unchanged.

    Trained parameters have momentum. Running statistics, control variates, counts and sums pass as they are: they are no
    gradient, and a step beyond their mean means nothing. Raises UsageError in the first round of an algorithm that sends
    nothing else.
    """
    trained = frozenset(algorithm.task.parameters)

    def init() -> Tree:
        return {"server": algorithm.init(), "velocity": {}}

    def server_update(round: Round, server: Tree, mean: Tree) -> Tree:
        steps = {name: value for name, value in mean.items() if name not in algorithm.statistics}
        velocity = _pushed(server["velocity"], steps, momentum, trained)
        if mean and not any(True for _ in leaves(velocity)):
            raise UsageError(
                f"server-momentum pushes the steps of one model, but {algorithm.name} sends none.", hint="Leave the wrapper out."
            )
        seen = _overlaid(mean, scale(velocity, server_lr))
        return {"server": algorithm.server_update(round, server["server"], seen), "velocity": velocity}

    return replace(
        algorithm,
        name=f"{algorithm.name}+server-momentum",
        init=init,
        server_update=server_update,
        broadcast=lambda server: algorithm.broadcast(server["server"]),
    )


def with_clip(algorithm: Algorithm, *, max_norm: Rate = 1.0) -> Algorithm:
    """Scale a contribution down to L2 norm `max_norm` over the whole tree; smaller ones pass unchanged.

    Raises UsageError for an algorithm that sends statistics: a control variate has to be what the client keeps, and of a sum
    that is divided by a count nothing is bounded by making both smaller.
    """
    if algorithm.statistics:
        raise UsageError(
            f"clip cannot bound what {algorithm.name} sends: {', '.join(sorted(algorithm.statistics))} may not be scaled.",
            hint="Clip an algorithm that sends steps of its model alone, e.g. fedavg or ditto.",
        )

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        result = algorithm.client_update(round, shared, personal, steps)
        if not result.contribution:
            return result
        factor = (max_norm / norm(result.contribution).clamp(min=1e-12)).clamp(max=1)
        return result._replace(contribution=scale(result.contribution, factor))

    return replace(algorithm, name=f"{algorithm.name}+clip", client_update=client_update)


def _pushed(velocity: Tree, mean: Tree, momentum: float, trained: Container[str]) -> Tree:
    """`momentum * velocity + mean`, for the tensors whose names are `trained`; what has no velocity yet starts at rest."""
    return {
        name: _pushed(velocity.get(name, {}), value, momentum, trained)
        if isinstance(value, Mapping)
        else (momentum * velocity[name] + value if name in velocity else value)
        for name, value in mean.items()
        if isinstance(value, Mapping) or name in trained
    }


def _overlaid(mean: Tree, step: Tree) -> Tree:
    """`mean`, but `step` for the names that it has."""
    return {
        name: _overlaid(value, step.get(name, {})) if isinstance(value, Mapping) else step.get(name, value)
        for name, value in mean.items()
    }


WRAPPERS: dict[str, Callable[..., Algorithm]] = {"clip": with_clip, "server-momentum": with_server_momentum}
"""Wrappers by the name that a plan uses."""


def wrapped(algorithm: Algorithm, name: str, **settings: Value) -> Algorithm:
    """An algorithm in the wrapper of that name; raises UnknownName with the near miss."""
    if name not in WRAPPERS:
        raise UnknownName(f"There is no wrapper named {name!r}.", hint=near_miss(name, WRAPPERS))
    wrapper = WRAPPERS[name]
    return wrapper(algorithm, **checked(name, declared(wrapper), settings))
