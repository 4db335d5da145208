"""Laws of trees, over trees that Hypothesis makes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freehold.core import (
    Tree,
    add,
    at,
    choose,
    difference,
    dot,
    flatten,
    is_finite,
    leaves,
    mix,
    move,
    norm,
    scale,
    split,
    stack,
    tree_map,
    unflatten,
    zeros,
)
from tests.problems import copied, distance, same, shapes

NAMES = st.text("abc._", min_size=1, max_size=3)
SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def tensors(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5).to(dtype)


LEAVES = st.builds(tensors, st.sampled_from([torch.float64, torch.float64, torch.int64]), SHAPES, st.integers(0, 99))
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(NAMES, st.one_of(LEAVES, inner), min_size=1, max_size=3),
    max_leaves=4,
)


def like(tree: Tree, seed: int) -> Tree:
    """Another tree of the same names, shapes and dtypes."""
    return tree_map(lambda t: tensors(t.dtype, tuple(t.shape), seed), tree)


@given(TREES)
def test_unflatten_inverts_flatten(tree: Tree) -> None:
    assert same(unflatten(flatten(tree)), tree)
    assert all(a is b for a, b in zip(flatten(tree).values(), leaves(tree), strict=True))


@given(TREES, st.integers(0, 99))
def test_moving_by_the_difference_arrives(tree: Tree, seed: int) -> None:
    new = like(tree, seed)
    floats = {k: t for k, t in flatten(move(tree, difference(new, tree))).items() if t.is_floating_point()}
    assert distance(floats, {k: t for k, t in flatten(new).items() if t.is_floating_point()}) < 1e-12


@given(TREES, st.integers(0, 99))
def test_integers_are_neither_sent_nor_moved(tree: Tree, seed: int) -> None:
    step = difference(like(tree, seed), tree)
    assert all(t.is_floating_point() for t in leaves(step))
    arrived = flatten(move(tree, step))
    assert all(torch.equal(arrived[k], t) for k, t in flatten(tree).items() if not t.is_floating_point())
    assert shapes(move(tree, step)) == shapes(tree)


@given(TREES)
def test_a_difference_of_nothing_is_zero_and_moves_nothing(tree: Tree) -> None:
    nothing = difference(tree, tree)
    assert same(nothing, zeros(nothing)) and same(move(tree, nothing), tree)


@given(TREES, st.integers(0, 99), st.floats(0, 1))
def test_a_mix_lies_between_its_ends(tree: Tree, seed: int, weight: float) -> None:
    other = like(tree, seed)
    assert same(mix(tree, other, 0.0), tree)
    ends, middle = (flatten(tree), flatten(other)), flatten(mix(tree, other, weight))
    for name, t in middle.items():
        if t.is_floating_point():
            low, high = torch.minimum(ends[0][name], ends[1][name]), torch.maximum(ends[0][name], ends[1][name])
            assert bool((t >= low - 1e-12).all() and (t <= high + 1e-12).all())
    floats = {k for k, t in ends[1].items() if t.is_floating_point()}
    assert all(torch.equal(flatten(mix(tree, other, 1.0))[k], ends[1][k]) for k in floats)


@given(TREES, st.integers(0, 99))
def test_adding_commutes_and_zero_is_neutral(tree: Tree, seed: int) -> None:
    other = like(tree, seed)
    assert same(add(tree, other), add(other, tree)) and same(add(tree, zeros(tree)), tree)
    assert distance(scale(add(tree, other), 2), add(scale(tree, 2), scale(other, 2))) < 1e-12


@given(TREES)
def test_trees_are_never_changed(tree: Tree) -> None:
    before = copied(tree)
    for _ in (add(tree, tree), scale(tree, 2), zeros(tree), mix(tree, tree, 0.3), difference(tree, tree), move(tree, tree)):
        assert same(tree, before)


@given(TREES, st.integers(0, 99))
def test_what_is_stacked_can_be_taken_out_again(tree: Tree, seed: int) -> None:
    other = like(tree, seed)
    both = stack([tree, other])
    assert same(at(both, 0), tree) and same(at(both, 1), other)
    taken = at(both, 0)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(leaves(taken), leaves(both), strict=True) if a.numel())


def test_names_pair_tensors_whatever_their_order() -> None:
    a = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}
    b = {"y": torch.tensor([20.0]), "x": torch.tensor([10.0])}
    assert same(add(a, b), {"x": torch.tensor([11.0]), "y": torch.tensor([22.0])})
    assert float(dot(a, b)) == 50.0


def test_norm_is_that_of_the_whole_tree() -> None:
    assert math.isclose(float(norm({"a": torch.tensor([3.0]), "b": {"c": torch.tensor([[4.0]])}})), 5.0)


def test_a_step_may_lack_names_but_not_invent_them() -> None:
    state = {"a": torch.ones(2), "n": torch.tensor(3)}
    assert same(move(state, {"a": torch.ones(2)}), {"a": 2 * torch.ones(2), "n": torch.tensor(3)})
    assert same(move(state, {}), state)
    with pytest.raises(KeyError):
        difference({"a": torch.ones(2)}, {"b": torch.ones(2)})


def test_choose_takes_one_or_the_other() -> None:
    a, b = {"x": torch.tensor([1.0]), "n": torch.tensor(1)}, {"x": torch.tensor([2.0]), "n": torch.tensor(2)}
    assert same(choose(torch.tensor(True), a, b), a) and same(choose(torch.tensor(False), a, b), b)


def test_split_is_a_partition() -> None:
    picked, rest = split({"head.w": torch.ones(1), "body.w": torch.ones(1)}, lambda name: name.startswith("head"))
    assert set(picked) == {"head.w"} and set(rest) == {"body.w"}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found(wrong: float) -> None:
    assert is_finite({"a": torch.ones(3), "n": torch.tensor(3)})
    assert not is_finite({"a": torch.ones(3), "b": {"c": torch.tensor([0.0, wrong])}})
