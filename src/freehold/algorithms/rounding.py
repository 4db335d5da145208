"""Contributions rounded to a narrower dtype on the node: bfloat16 halves what a model of float32 sends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from freehold.core import Algorithm, ClientResult, Round, Steps, Tree, tree_map
from freehold.plan import SentAs


def sent_as(algorithm: Algorithm, dtype: SentAs) -> Algorithm:
    """Each floating tensor of a contribution is rounded to `dtype`, once and to nearest, before it counts.

    It stays in its own dtype, so that sums are as exact as they were. Statistics pass as they are: a control variate has to be
    what the client keeps, and a sum that is divided by a count must not be rounded apart from it.
    """
    narrow: torch.dtype = getattr(torch, dtype)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(narrow).to(tensor.dtype) if tensor.is_floating_point() else tensor

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        result = algorithm.client_update(round, shared, personal, steps)
        kept = {name: value for name, value in result.contribution.items() if name in algorithm.statistics}
        narrowed = tree_map(rounded, {name: value for name, value in result.contribution.items() if name not in kept})
        return result._replace(contribution={**narrowed, **kept})

    return replace(algorithm, client_update=client_update, sent_as=narrow)
