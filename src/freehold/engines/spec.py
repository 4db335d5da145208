"""What leaves a node in a round: the contribution and the metrics, flat, and their spec."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from freehold.core import Algorithm, ClientResult, Round, flatten
from freehold.engines.feed import Feed, Work
from freehold.errors import TaskError
from freehold.plan import DType, TensorSpec

METRICS = "metrics/"
"""What names of metrics begin with among the tensors that leave."""

_DTYPES: tuple[DType, ...] = get_args(DType)


def departing(algorithm: Algorithm, result: ClientResult) -> dict[str, Tensor]:
    """All that leaves a node of a client update, by name, in the dtypes that travel."""
    narrow = algorithm.sent_as
    sent: dict[str, Tensor] = {}
    for name, tensor in flatten(result.contribution).items():
        fixed = narrow is None or not tensor.is_floating_point() or name.split("/", 1)[0] in algorithm.statistics
        sent[name] = tensor if fixed else tensor.to(narrow)
    return {**sent, **{f"{METRICS}{name}": value for name, value in result.metrics.items()}}


def contribution_tensors(algorithm: Algorithm, feed: Feed, work: Work) -> tuple[TensorSpec, ...]:
    """Names, shapes and dtypes of what a node sends each round, found by one client update; the data only gives shapes."""
    client = next(iter(feed.rows))
    shared = algorithm.broadcast(algorithm.init())
    result = algorithm.client_update(Round(0, 1, 1), shared, algorithm.enroll(shared), feed.steps(client, 0, work))
    return tuple(
        TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_dtype(name, tensor))
        for name, tensor in departing(algorithm, result).items()
    )


def _dtype(name: str, tensor: Tensor) -> DType:
    for dtype in _DTYPES:
        if str(tensor.dtype) == f"torch.{dtype}":
            return dtype
    raise TaskError(
        f"The algorithm sends {name} as {tensor.dtype}, which cannot travel.", hint=f"Use one of {', '.join(_DTYPES)}."
    )
