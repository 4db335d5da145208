"""Contributions that are rounded on the node: to what, what is left alone, and what a model that overflows is told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freehold.algorithms import build_algorithm, sent_as, with_clip
from freehold.core import Algorithm, ClientResult, Round, State, Steps, Tree, algorithm_entry, flatten
from freehold.engines import METRICS, LoopEngine, VectorEngine, Work, contribution_tensors, departing
from freehold.errors import Diverged
from freehold.plan import AlgorithmRef, SentAs
from freehold.wire import codec
from tests.laws.cases import COHORT, steps, task_of
from tests.problems import feed_for

ROUND = Round(0, 3, 8)
WORK = Work(batch_size=4, epochs=1)
DTYPES: tuple[SentAs, ...] = ("float32", "bfloat16")


def update(algorithm: Algorithm) -> ClientResult:
    shared = algorithm.broadcast(algorithm.init())
    return algorithm.client_update(ROUND, shared, algorithm.enroll(shared), steps(COHORT[0], 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedproto", "ifca", "fedrep"])
def test_steps_are_rounded_once_and_statistics_are_not(name: str, dtype: SentAs) -> None:
    algorithm = algorithm_entry(name).build(task_of("mixed"))
    plain, rounded = update(algorithm), update(sent_as(algorithm, dtype))
    whole, narrow = flatten(plain.contribution), flatten(rounded.contribution)
    assert whole.keys() == narrow.keys()
    for key, value in whole.items():
        assert narrow[key].dtype == value.dtype, "what is summed is as wide as before"
        left = key.split("/")[0] in algorithm.statistics or not value.is_floating_point()
        assert narrow[key].equal(value if left else value.to(getattr(torch, dtype)).to(value.dtype))
    for key, value in flatten(plain.personal).items():
        assert flatten(rounded.personal)[key].equal(value), "what stays is not rounded"


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_what_travels_is_what_counts(name: str) -> None:
    """Packing a rounded contribution loses nothing more, and the spec says what is packed."""
    algorithm = sent_as(algorithm_entry(name).build(task_of("mixed")), "bfloat16")
    result = update(algorithm)
    sent = departing(algorithm, result)
    for key, value in flatten(result.contribution).items():
        assert sent[key].to(value.dtype).equal(value)
    spec = {t.name: t.dtype for t in contribution_tensors(algorithm, feed_for("mixed"), WORK)}
    assert spec == {key: str(value.dtype).removeprefix("torch.") for key, value in sent.items()}
    assert "bfloat16" in spec.values()


def test_metrics_and_integers_keep_their_dtype() -> None:
    plain = algorithm_entry("fedavg").build(task_of("mixed"))

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        result = plain.client_update(round, shared, personal, steps)
        counted = {**result.contribution, "seen": torch.tensor(300)}
        return ClientResult(counted, result.personal, {"loss": torch.tensor(1 / 3)})

    algorithm = sent_as(Algorithm(name="counting", task=plain.task, init=plain.init, client_update=client_update), "bfloat16")
    sent = departing(algorithm, update(algorithm))
    assert sent["seen"].equal(torch.tensor(300))
    assert sent[f"{METRICS}loss"].equal(torch.tensor(1 / 3))


def test_a_contribution_beyond_the_narrow_dtype_diverges() -> None:
    """float64 holds it, float32 does not: that is said, and nothing infinite leaves."""
    plain = algorithm_entry("fedavg").build(task_of("mixed"))

    def client_update(round: Round, shared: State, personal: Tree, batches: Steps) -> ClientResult:
        return ClientResult({k: torch.full_like(v, 1e200) for k, v in shared.items() if v.is_floating_point()}, personal)

    huge = Algorithm(name="huge", task=plain.task, init=plain.init, client_update=client_update)
    for kind in (LoopEngine, VectorEngine):
        kind(huge, feed_for("mixed"), WORK).collect(ROUND, huge.init(), COHORT)
        with pytest.raises(Diverged, match="contribution"):
            kind(sent_as(huge, "float32"), feed_for("mixed"), WORK).collect(ROUND, huge.init(), COHORT)


def test_a_plan_without_a_dtype_builds_the_very_same_algorithm() -> None:
    task = task_of("mixed")
    assert build_algorithm(task, AlgorithmRef(name="fedavg")).sent_as is None
    found = build_algorithm(task, AlgorithmRef(name="fedavg"), "bfloat16")
    assert found.sent_as is torch.bfloat16
    assert found.name == "fedavg"
    assert with_clip(found).sent_as is torch.bfloat16


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_torch_and_the_codec_know_the_same_bfloat16(numbers: list[float]) -> None:
    given_ = torch.tensor(numbers, dtype=torch.float32).to(torch.bfloat16)
    bits = given_.view(torch.int16).numpy().view("uint16")
    assert codec.widened(bits).tolist() == given_.float().tolist()
