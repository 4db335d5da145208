"""What Opacus makes of a few DP-SGD steps without noise, and its ε: the figures that tests hold Freehold's against.

Opacus is not among Freehold's dependencies. In an environment that has it:

    python tests/unit/core/opacus_golden.py > tests/unit/core/opacus.json
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import nn

MAX_NORM, EXPECTED, LR = 0.7, 5, 0.3


def numbers(count: int, seed: int) -> torch.Tensor:
    """Whole numbers of a linear congruence, in [-1, 1): the same wherever they are drawn."""
    out, state = [], seed
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((state >> 40) / 2**23 - 1)
    return torch.tensor(out, dtype=torch.float64)


def network() -> nn.Module:
    """A convolution, a normalization by groups and a linear layer, with parameters that are written down here."""
    module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(numbers(parameter.numel(), index).view_as(parameter))
    return module


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of Poisson sampling: 6, 1 and 3 examples."""
    sizes = (6, 1, 3)
    return [(3 * numbers(size * 6, 100 + size).view(size, 1, 6), torch.arange(size) % 3) for size in sizes]


def main() -> None:
    """Print the figures as JSON."""
    import opacus
    from opacus import GradSampleModule
    from opacus.accountants.analysis import rdp
    from opacus.optimizers import DPOptimizer

    module = GradSampleModule(network(), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=LR),
        noise_multiplier=0.0,
        max_grad_norm=MAX_NORM,
        expected_batch_size=EXPECTED,
        loss_reduction="mean",
    )
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    epsilons = []
    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    for q, noise, steps, delta in ((0.01, 4.0, 10_000, 1e-5), (512 / 50_000, 1.5, 8789, 1e-5), (0.1, 2.0, 100, 1e-6)):
        moments = rdp.compute_rdp(q=q, noise_multiplier=noise, steps=steps, orders=orders)
        epsilons.append([q, noise, steps, delta, rdp.get_privacy_spent(orders=orders, rdp=moments, delta=delta)[0]])
    state = {k.removeprefix("_module."): v.tolist() for k, v in module.state_dict().items()}
    settings = {"max_norm": MAX_NORM, "expected_batch": EXPECTED, "lr": LR}
    print(json.dumps({"opacus": opacus.__version__, **settings, "state": state, "epsilons": epsilons}))


if __name__ == "__main__":
    main()
