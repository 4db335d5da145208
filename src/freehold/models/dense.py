"""Linear models and multilayer perceptrons, initialized by a seed and by nothing else."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def linear(features: int, outputs: int, *, seed: int) -> nn.Module:
    """One linear layer; with `outputs` = 0 a single value per example [B], else logits or values [B, outputs]."""
    return mlp(features, outputs, hidden=(), seed=seed)


def mlp(features: int, outputs: int, *, hidden: tuple[int, ...], seed: int) -> nn.Module:
    """Linear layers with ReLU between them, torch's default initialization; `outputs` as for `linear`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (features, *hidden)
        body = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        squeeze = [] if outputs else [nn.Flatten(0)]
        return nn.Sequential(*body, nn.Linear(widths[-1], outputs or 1), *squeeze)
