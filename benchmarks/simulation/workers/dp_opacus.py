"""Opacus: DP-SGD client by client, with gradients of each example (`default`) or by ghost clipping (`ghost`)."""

from __future__ import annotations

import sys

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from benchmarks.simulation.workers.given import Given, Pipes, serve


class Opacus:
    """One module, one optimizer: the clients take turns."""

    def __init__(self, given: Given, ghost: bool) -> None:
        """No noise where the multiplier is 0."""
        self.given, self.ghost = given, ghost
        self.bare = given.module()
        most = given.told["max_norm"]
        settings = {"noise_multiplier": given.told["noise"], "max_grad_norm": most, "expected_batch_size": given.told["batch"]}
        sgd = torch.optim.SGD(self.bare.parameters(), lr=given.lr)
        self.criterion = nn.CrossEntropyLoss()
        if ghost:
            self.module: nn.Module = GradSampleModuleFastGradientClipping(self.bare, max_grad_norm=most, use_ghost_clipping=True)
            self.optimizer = DPOptimizerFastGradientClipping(sgd, **settings)
            self.loss = DPLossFastGradientClipping(self.module, self.optimizer, self.criterion)
        else:
            self.module = GradSampleModule(self.bare)
            self.optimizer = DPOptimizer(sgd, **settings)
            self.loss = self.criterion
        self.mean: dict[str, Tensor] = {}

    def round(self, index: int) -> None:
        """All clients."""
        params = dict(self.bare.named_parameters())
        total = {k: torch.zeros_like(v) for k, v in self.given.init.items()}
        for client, size in enumerate(self.given.sizes):
            with torch.no_grad():
                torch._foreach_copy_([params[k] for k in total], [self.given.init[k] for k in total])
            for x, y in self.given.batches(index, client):
                self.optimizer.zero_grad()
                self.loss(self.module(x), y).backward()
                self.optimizer.step()
            with torch.no_grad():
                for k, t in total.items():
                    t.add_(params[k] - self.given.init[k], alpha=size)
        self.mean = {k: t / sum(self.given.sizes) for k, t in total.items()}


def main() -> None:
    """One round for each that is asked."""
    torch.set_num_threads(1)
    pipes = Pipes()
    opacus = Opacus(Given(pipes.folder), sys.argv[4] == "ghost")
    serve(opacus.round, lambda: opacus.mean, pipes)
