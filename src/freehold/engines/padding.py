"""Does padding change a gradient? It does where a module mixes examples in a way that core does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from freehold.core import Batch, Steps, Task, Tree, gradient, stack
from freehold.errors import NotBatchable

Run = Callable[[Callable[..., Any], Sequence[Batch]], Any]
"""(one client's function of (shared, personal, steps, batches), batches [1, ...]) -> what it gives for a cohort of one."""


def check_padding(task: Task, steps: Steps, run: Run) -> None:
    """Raise NotBatchable where the gradient on a batch of `steps` changes with padding."""
    # Of one example, padded with itself, nothing could be seen.
    batch = max((batch for batch, count in steps.counted() if count), key=lambda b: len(b["real"]), default=None)
    if batch is None:
        return
    n = len(batch["real"])
    padded = {k: torch.cat([v, 2 * v[-1:] if v.is_floating_point() else v[-1:]]) if v.dim() else v for k, v in batch.items()}
    padded["real"] = torch.arange(n + 1, device=batch["real"].device) < n

    def gradients(shared: Tree, personal: Tree, steps: Steps, batches: Sequence[Batch]) -> tuple[Tree, ...]:
        return tuple(gradient(task.objective, task.init, b)[0] for b in batches)

    alone, with_padding = run(gradients, [stack([b]) for b in (batch, padded)])
    tolerance = 1e-6 if next(iter(alone.values())).dtype == torch.float64 else 1e-3
    for name, g in alone.items():
        # NaN on both sides is not padding's doing; the update itself will say whose it is.
        if not torch.allclose(
            g, with_padding[name], rtol=tolerance, atol=tolerance * float(g.nan_to_num().abs().max()), equal_nan=True
        ):
            raise NotBatchable(
                f"The model mixes the examples of a batch (the gradient of {name} changes with padding), "
                "so clients of unequal size cannot share a batch.",
                hint="Run with --executor loop. (BatchNorm is known and fine.)",
            )
