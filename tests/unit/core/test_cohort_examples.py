"""Gradients per example in pairs: built from them, they are those that vmap gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from freehold.core import State, Task, task_from
from freehold.core.cohort import ExamplePair, ExamplePairs, example_pairs
from freehold.errors import NotPrivate
from tests.problems import distance
from tests.unit.core.cohorts import CLASSES, NETWORKS, UNEQUAL, each_of, padded, spread, task_of

STEPS = padded(each_of(UNEQUAL))
BATCH = {
    "x": STEPS.table["x"][STEPS.rows.gather(1, STEPS.picks[:, 0])],
    "y": STEPS.table["y"][STEPS.rows.gather(1, STEPS.picks[:, 0])],
    "real": STEPS.real[:, 0],
    "live": STEPS.live[:, 0],
    "key": STEPS.keys[:, 0],
}


def found_in(task: Task, state: State) -> ExamplePairs:
    params = {k: v for k, v in state.items() if k in task.parameters}
    return example_pairs(task.objective, params, {k: v for k, v in state.items() if k not in params}, BATCH)


def built(pair: ExamplePair, like: Tensor) -> Tensor:
    """[C, B, *shape]."""
    if pair.kind == "each":
        return pair.g.reshape(*pair.g.shape[:2], *like.shape)
    if pair.kind == "product":
        return torch.einsum("cbto,cbti->cboi", pair.g, pair.x).reshape(*pair.g.shape[:2], *like.shape)
    whole = pair.g.new_zeros(*pair.g.shape[:2], *like.shape)
    for t in range(pair.x.shape[2]):
        at = pair.x[:, :, t, None, None].expand(-1, -1, 1, like.shape[1])
        whole.scatter_add_(2, at, pair.g[:, :, t, None])
    return whole


def by_vmap(task: Task, state: State) -> State:
    def of_one(state: State, x: Tensor, y: Tensor, real: Tensor, key: Tensor) -> State:
        one = {"x": x[None], "y": y[None], "real": real[None], "live": real, "key": key}

        def loss(params: State) -> Tensor:
            return torch.where(real, task.objective.losses({**state, **params}, one)[0], 0).sum()

        slopes: State = grad(loss)({k: state[k] for k in task.parameters})
        return slopes

    of_client = vmap(of_one, in_dims=(None, 0, 0, 0, None))
    return dict(vmap(of_client)(state, BATCH["x"], BATCH["y"], BATCH["real"], BATCH["key"]))


def check(task: Task) -> None:
    state = spread(task.init, len(UNEQUAL))
    found, expected = found_in(task, state), by_vmap(task, state)
    assert not found.left and not found.why
    total: dict[str, Tensor] = {}
    for pair in found.pairs:
        part = built(pair, task.init[pair.name])
        total[pair.name] = total[pair.name] + part if pair.name in total else part
    assert distance(total, expected) < 1e-12


@pytest.mark.parametrize("network", ["logistic", "mlp", "bare", "layernorm", "sequence", "twice", "embedded"])
def test_pairs_are_the_gradients_of_examples(network: str) -> None:
    check(task_of(network))


def test_pairs_of_convolutions_and_group_norm() -> None:
    layers = (nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Flatten())
    net = nn.Sequential(nn.Unflatten(1, (1, 4, 5)), *layers, nn.Linear(12, CLASSES))
    check(task_from(net.double(), nn.CrossEntropyLoss(), classes=CLASSES))


def test_norms_come_from_pairs_without_building_anything() -> None:
    task = task_of("sequence")
    state = spread(task.init, len(UNEQUAL))
    expected = by_vmap(task, state)
    for pair in found_in(task, state).pairs:
        if pair.kind == "product":
            square = (pair.x @ pair.x.mT * (pair.g @ pair.g.mT)).sum((2, 3))
            assert torch.allclose(square, expected[pair.name].flatten(2).square().sum(2), atol=1e-12)


def test_what_has_no_pairs_is_named() -> None:
    for network, left in (("rows", {"user"}), ("tied", {"a.weight"}), ("dropout", set(task_of("dropout").init))):
        task = task_of(network)
        found = found_in(task, spread(task.init, len(UNEQUAL)))
        assert set(found.left) == left and found.why
        assert not {p.name for p in found.pairs} & left


def test_a_layer_that_mixes_examples_is_refused() -> None:
    task = task_of("batchnorm")
    with pytest.raises(NotPrivate, match="BatchNorm"):
        found_in(task, spread(task.init, len(UNEQUAL)))


def test_every_network_gives_pairs_or_a_reason() -> None:
    for network in NETWORKS:
        task = task_of(network)
        if network != "batchnorm":
            found = found_in(task, spread(task.init, len(UNEQUAL)))
            assert {p.name for p in found.pairs} | set(found.left) == set(task.parameters)
            assert bool(found.why) == bool(found.left)
