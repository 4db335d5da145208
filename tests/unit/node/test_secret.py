"""What record-level privacy draws on a node: sums with a bounded sensitivity, noise as wide as promised, never twice the same."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from freehold.core import Round, Tree, flatten
from freehold.data.heart import heart_records
from freehold.errors import DataUnfit, PlanError
from freehold.node.counted import checked_records, most_records
from freehold.node.program import Program, load
from freehold.node.secret import Secret, integers
from freehold.plan import Plan, Privacy
from freehold.plan.tables import MOST_RECORD_NOISE
from freehold.privacy.accounting import MOST_STEPS, steps_of_norm
from freehold.study.federated import federated_plan
from tests.warm import specified

RECORD = Privacy(unit="record", max_norm=1.0, noise_multiplier=1.0, expected_batch=16.0)


def gradients(rows: int = 6) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return {
        "w": torch.randn(rows, 3, 4, generator=rng, dtype=torch.float64),
        "b": torch.randn(rows, 3, generator=rng, dtype=torch.float64),
    }


def clipped_sum(each: dict[str, Tensor], counts: list[bool], max_norm: float) -> dict[str, Tensor]:
    total = {k: torch.zeros_like(g[0]) for k, g in each.items()}
    for i, counted in enumerate(counts):
        norm = math.sqrt(sum(float((g[i] ** 2).sum()) for g in each.values()))
        if counted and math.isfinite(norm):
            total = {k: t + each[k][i] * min(1.0, max_norm / norm) for k, t in total.items()}
    return total


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 100.0])
def test_the_sum_is_that_of_the_clipped_gradients_of_what_is_real(max_norm: float) -> None:
    each, counts = gradients(), [True, False, True, True, True, True]
    each["b"][2, 1] = math.nan
    found = Secret().noised_sum(each, torch.tensor(counts), max_norm, 1e-12)
    wanted = clipped_sum(each, counts, max_norm)
    assert all(torch.allclose(found[k], wanted[k], rtol=0, atol=20 * max_norm / MOST_STEPS) for k in wanted)


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30),
    st.floats(1e-6, 1e6),
    st.sampled_from([2.0**28, 2.0**20, 2.0**12]),
)
def test_no_example_adds_more_than_the_norm_rounding_included(numbers: list[float], max_norm: float, units: float) -> None:
    found = integers(np.array(numbers), max_norm, units)
    assert (found == np.rint(found)).all() and np.isfinite(found).all()
    assert sum(int(each) ** 2 for each in found) <= int(units) ** 2


def test_the_noise_is_as_wide_as_promised_and_never_the_same() -> None:
    each, none = {"w": torch.zeros(1, 40_000, dtype=torch.float64)}, torch.tensor([False])
    secret = Secret()
    first, second = (secret.noised_sum(each, none, 2.0, 1.5)["w"] for _ in range(2))
    for noise in (first, second, (first - second) / math.sqrt(2)):
        assert float(noise.std()) == pytest.approx(3.0, rel=0.03) and abs(float(noise.mean())) < 0.1
    grid = 2.0 / steps_of_norm(1.5)
    assert torch.equal(first / grid, (first / grid).round()), "noise, and what it hides, are whole steps of one grid"


def test_sums_and_noise_stay_exact_however_wide_the_noise() -> None:
    for noise in (1e-9, 1.0, 4096.0, 1e6, 1e11):
        units = steps_of_norm(noise)
        assert units == 2 ** round(math.log2(units)) and units * noise <= 2**40 and units <= MOST_STEPS
        assert units == MOST_STEPS or 2 * units * noise > 2**40


class Counting:
    """A stream whose words count up from the highest: the chance of each draw is known exactly."""

    def __init__(self, words: list[int]) -> None:
        self.words = words

    def fill(self, into: NDArray[np.uint16]) -> None:
        into.view(np.uint64)[:] = np.array(self.words, np.uint64)

    def word(self) -> int:
        raise AssertionError


def test_an_example_takes_part_with_no_more_than_its_chance() -> None:
    least = 1 << 11  # one of 2^53
    quarter = (1 << 62) // least
    stream = Counting([(quarter - 1) * least, quarter * least])
    assert Secret(stream).poisson(1, 2, 0.25).tolist() == [[True, False]]
    assert Secret(Counting([(1 << 64) - 1] * 4)).poisson(2, 2, 1.0).all(), "a chance of one: always"
    drawn = Secret().poisson(200, 500, 0.1)
    assert drawn.shape == (200, 500) and float(drawn.double().mean()) == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(drawn, Secret().poisson(200, 500, 0.1))


def program(path: Path, privacy: Privacy) -> Program:
    plan = specified(federated_plan("heart", "fedavg", companions=[], rounds=1))
    plan = msgspec.structs.replace(plan, privacy=privacy)
    table = path / "cleveland.csv"
    heart_records()["Cleveland"].write_csv(table)
    return Program(plan, "cleveland", load(plan, "cleveland", table))


def test_a_round_that_is_asked_again_has_other_noise_so_two_models_tell_no_gradient(tmp_path: Path) -> None:
    """With the same noise on two models, the difference of the contributions would be clipped gradients without any."""
    node = program(tmp_path, RECORD)
    algorithm = node.algorithm(0)
    shared = algorithm.broadcast(algorithm.init())

    def trained() -> Tensor:
        found: Tree = node.train(0, Round(0, 1, 1), shared, algorithm.enroll(shared))[0].contribution
        return torch.cat([t.flatten() for t in flatten(found).values()])

    again = trained() - trained()
    steps = 2 * -(-node.training() // 16)
    wanted = 0.05 * math.sqrt(2 * steps) / 16  # lr, independent noise of two rounds, divided by the expected batch
    assert float(again.std()) > 0.8 * wanted


def test_a_record_changes_no_other_and_none_in_another_split(tmp_path: Path) -> None:
    node = program(tmp_path, RECORD)
    table = tmp_path / "cleveland.csv"
    lines = table.read_text().splitlines()
    cells = lines[5].split(",")
    cells[0] = "99"  # the age of one patient
    at = lines[0].split(",").index("num")
    cells[at] = "ill" if cells[at] == "healthy" else "healthy"
    table.write_text("\n".join([*lines[:5], ",".join(cells), *lines[6:]]) + "\n")
    other = Program(node.plan, "cleveland", load(node.plan, "cleveland", table))
    ours, theirs = node._prepared_for(0), other._prepared_for(0)
    assert all(torch.equal(ours.rows["cleveland"][s], theirs.rows["cleveland"][s]) for s in ("train", "validation", "test"))
    differ = ((ours.x != theirs.x).any(1) | (ours.y != theirs.y)).nonzero().flatten().tolist()
    assert differ == [4]
    clear = Program(msgspec.structs.replace(node.plan, privacy=Privacy()), "cleveland", other.population)._prepared_for(0)
    bare = Program(clear_plan(node.plan), "cleveland", node.population)._prepared_for(0)
    assert int((clear.x != bare.x).any(1).sum()) > 100, "without a promise, features are standardized by all of them"


def clear_plan(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, privacy=Privacy())


def test_the_guard_believes_no_more_records_than_there_are(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('\ufeffa,b\n1,"x\ny"\n\n2,z\n')
    assert most_records(table) == 2 and checked_records(2, table) == 2
    with pytest.raises(DataUnfit, match="claims 3"):
        checked_records(3, table)
    with pytest.raises(DataUnfit):
        checked_records(-1, table)
    parquet = tmp_path / "t.parquet"
    parquet.write_bytes(b"PAR1")
    assert most_records(parquet) is None and checked_records(7, parquet) == 7


@pytest.mark.parametrize("noise", [2.0**20 + 1, 2.1e8, 2.0**41, 1e300])
def test_noise_whose_grid_is_too_coarse_for_gradients_is_refused_with_the_plan(noise: float) -> None:
    with pytest.raises(PlanError, match="per record it is at most"):
        msgspec.structs.replace(RECORD, noise_multiplier=noise)


def test_the_widest_noise_leaves_room_to_round_the_largest_models() -> None:
    """An example's integers must have norm `units` or less, rounding included, so the limit must not fall below 0."""
    units, numbers = steps_of_norm(MOST_RECORD_NOISE), 10**12
    assert units * (1 - 2.0**-30) - math.sqrt(numbers) / 2 > units / 3
