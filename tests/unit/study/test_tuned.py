"""The choice by validation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from freehold.study.cell import Validated
from freehold.study.tuned import chosen_of, means_of

SHARES = st.integers(0, 10).map(lambda tenth: tenth / 10)
SAID = st.one_of(
    st.builds(Validated, metric=SHARES, loss=st.one_of(st.none(), SHARES)), st.builds(Validated, lost=st.just("It diverged."))
)


@given(st.integers(1, 4).flatmap(lambda seeds: st.lists(st.lists(SAID, min_size=seeds, max_size=seeds), min_size=1, max_size=6)))
def test_the_best_mean_is_chosen_and_never_one_worse_than_the_defaults(trials: list[list[Validated]]) -> None:
    means = [means_of(each) for each in trials]
    alive = [mean for mean in means if mean is not None]
    chosen = chosen_of(trials)
    if not alive:
        assert chosen is None
        return
    assert chosen is not None
    found = means[chosen]
    assert found is not None
    assert found[0] == max(mean[0] for mean in alive)
    first = means[0]
    assert first is None or found[0] >= first[0]
    assert all(said.metric is not None for said in trials[chosen])


def said(metric: float, loss: float | None = None) -> list[Validated]:
    return [Validated(metric=metric, loss=loss)]


def test_of_equals_the_least_loss_is_chosen_then_the_first() -> None:
    assert chosen_of([said(0.8, 0.5), said(0.8, 0.4), said(0.7, 0.1)]) == 1
    assert chosen_of([said(0.8, 0.5), said(0.8, 0.5)]) == 0
    assert chosen_of([said(0.8, None), said(0.8, 0.5)]) == 1
    assert chosen_of([said(-3.0), said(-2.0)]) == 1


def test_a_trial_that_is_lost_with_one_seed_is_lost() -> None:
    good, lost = Validated(metric=0.9, loss=0.1), Validated(lost="It diverged.")
    assert chosen_of([[good, lost], [Validated(metric=0.5), Validated(metric=0.5)]]) == 1
    assert chosen_of([[good, lost], [lost, good]]) is None
