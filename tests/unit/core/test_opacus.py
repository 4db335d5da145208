"""DP-SGD against Opacus's per-sample gradients: three steps of Poisson batches, to 1e-6; made by opacus_golden.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from freehold.core import Batch, NoisedSum, Privacy, Task, descend, private, task_from
from freehold.node.secret import Secret
from freehold.privacy.accounting import Mechanism, epsilon, epsilon_by_rdp
from tests.problems import distance
from tests.unit.core.opacus_golden import batches, network

GOLDEN = json.loads(Path(__file__).with_name("opacus.json").read_text())
THEIRS = {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN["state"].items()}


def task(noise: float = 0.0, noised_sum: NoisedSum | None = None) -> Task:
    privacy = Privacy(
        max_norm=GOLDEN["max_norm"], noise_multiplier=noise, expected_batch=GOLDEN["expected_batch"], noised_sum=noised_sum
    )
    return private(task_from(network(), F.cross_entropy, classes=3), privacy)


def steps(width: int = 0) -> list[Batch]:
    """Their batches, padded to `width`."""
    out = []
    for key, (x, y) in enumerate(batches()):
        more = max(width - len(y), 0)
        real = torch.arange(len(y) + more) < len(y)
        padded = {"x": torch.cat([x, 7 + x[:1].expand(more, 1, 6)]), "y": torch.cat([y, y[:1].expand(more)])}
        out.append({**padded, "real": real, "live": torch.tensor(True), "key": torch.tensor(key)})
    return out


def test_a_loop_over_the_steps_ends_where_opacus_does() -> None:
    ours = task()
    moved = descend(ours.objective, ours.init, steps(), GOLDEN["lr"])
    assert distance(moved, THEIRS) < 1e-6 < distance(ours.init, THEIRS)


def test_so_does_a_cohort_under_vmap_with_padding() -> None:
    ours = task()

    def run(rows: list[Batch]) -> dict[str, Tensor]:
        return dict(descend(ours.objective, ours.init, rows, GOLDEN["lr"]))

    both = [{k: torch.stack([v, v]) for k, v in batch.items()} for batch in steps(9)]
    found = vmap(run)(both)
    assert all(distance({k: v[i] for k, v in found.items()}, THEIRS) < 1e-6 for i in range(2))


def test_so_does_a_node_in_whole_numbers() -> None:
    ours = task(noise=1e-11, noised_sum=Secret().noised_sum)
    assert distance(descend(ours.objective, ours.init, steps(), GOLDEN["lr"]), THEIRS) < 1e-6


@pytest.mark.parametrize("row", GOLDEN["epsilons"], ids=str)
def test_epsilon_by_renyi_is_theirs_and_by_privacy_loss_distributions_is_less(row: list[float]) -> None:
    sampling, noise, count, delta, theirs = row
    each = [Mechanism(noise_multiplier=noise, sampling=sampling, count=int(count))]
    assert epsilon_by_rdp(each, delta) == pytest.approx(theirs, rel=1e-4)
    assert 0.8 * theirs < epsilon(each, delta) < theirs
