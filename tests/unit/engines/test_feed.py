"""What clients are fed: every example once per pass, last batches as asked, and never another client's row."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freehold.core import Steps
from freehold.engines import Feed, Work
from freehold.engines.loop import ADAPTING
from freehold.errors import TooFewExamples, UsageError
from tests.padding import pad, pad_batches
from tests.problems import CLIENTS, SIZES, feed_for


def feed_of(*sizes: int, seed: int = 0) -> Feed:
    """Clients "0", "1", … with so many training rows; a row's target is its number in the table."""
    rows = torch.arange(sum(sizes)).split(list(sizes))
    split = {str(i): {"train": r, "validation": r[:0], "test": r[:1]} for i, r in enumerate(rows)}
    return Feed(x=torch.arange(float(sum(sizes)))[:, None], y=torch.arange(sum(sizes)), rows=split, seed=seed)


def order(steps: Steps) -> list[list[int]]:
    """The targets that each step reads, without padding."""
    return [batch["y"][batch["real"]].tolist() for batch in steps]


sizes = st.integers(1, 23)
batch_sizes = st.integers(1, 9)
rounds = st.integers(0, 5)


@given(sizes, batch_sizes, rounds, st.integers(1, 3), st.sampled_from(["even", "short"]))
def test_an_epoch_visits_every_example_once_and_deals_what_is_left_over_as_asked(
    size: int, batch_size: int, index: int, epochs: int, last_batch: Literal["even", "short"]
) -> None:
    work = Work(batch_size=batch_size, epochs=epochs, last_batch=last_batch)
    batches = order(feed_of(4, size).steps("1", index, work))
    per_pass = -(-size // batch_size)
    assert len(batches) == epochs * per_pass
    for first in range(0, len(batches), per_pass):
        one_pass = batches[first : first + per_pass]
        assert sorted(chain.from_iterable(one_pass)) == list(range(4, 4 + size))
        lengths = [len(b) for b in one_pass]
        if last_batch == "even":
            assert max(lengths) <= batch_size and max(lengths) - min(lengths) <= 1
        else:
            assert lengths[:-1] == [batch_size] * (per_pass - 1) and 1 <= lengths[-1] <= batch_size


@given(sizes, batch_sizes, st.integers(1, 7))
def test_continuing_goes_on_in_the_shuffle_where_the_last_round_stopped(size: int, batch_size: int, steps: int) -> None:
    feed, work = feed_of(4, size), Work(batch_size=batch_size, steps=steps, continuing=True)
    walked = [batch for index in range(6) for batch in order(feed.steps("1", index, work))]
    per_pass = -(-size // batch_size)
    assert len(walked) == 6 * steps
    for first in range(0, len(walked) - per_pass + 1, per_pass):
        assert sorted(chain.from_iterable(walked[first : first + per_pass])) == list(range(4, 4 + size))


@given(sizes, batch_sizes, st.integers(1, 7))
def test_otherwise_each_round_starts_a_shuffle_of_its_own(size: int, batch_size: int, steps: int) -> None:
    feed, work = feed_of(size), Work(batch_size=batch_size, steps=steps)
    per_pass = -(-size // batch_size)
    for index in range(3):
        batches = order(feed.steps("0", index, work))
        assert len(batches) == steps
        seen = Counter(chain.from_iterable(batches[:per_pass]))
        assert max(seen.values()) == 1, "no example comes twice in the first pass"
        assert steps < per_pass or len(seen) == size


def test_rounds_and_passes_are_shuffled_differently() -> None:
    feed = feed_of(40)
    for work in (Work(batch_size=40, epochs=2), Work(batch_size=40, steps=2), Work(batch_size=40, steps=2, continuing=True)):
        passes = [tuple(b) for index in (ADAPTING, 0, 1, 2) for b in order(feed.steps("0", index, work))]
        assert len(set(passes)) == 8


def test_an_example_left_over_makes_no_step_of_its_own_unless_asked() -> None:
    for last_batch, lengths in (("even", [2, 3]), ("short", [1, 4])):
        work = Work(batch_size=4, epochs=1, last_batch=last_batch)
        assert sorted(map(len, order(feed_of(5).steps("0", 0, work)))) == lengths


def test_what_a_client_reads_depends_on_seed_round_and_client_and_on_nothing_else() -> None:
    work = Work(batch_size=3, epochs=2)
    one, other = feed_of(9, 8).steps("0", 1, work), feed_of(9).steps("0", 1, work)
    assert order(one) == order(other) and torch.equal(one.keys, other.keys)
    assert order(feed_of(9, seed=1).steps("0", 1, work)) != order(other)


def test_the_shuffle_and_the_keys_are_the_same_on_every_machine() -> None:
    steps = feed_of(6).steps("0", 0, Work(batch_size=4, epochs=1))
    assert order(steps) == [[4, 1, 5], [0, 3, 2]]
    assert steps.keys.tolist() == [3813416035228498409, 2359708404379407364]


def test_keys_differ_between_steps_rounds_clients_and_seeds() -> None:
    work = Work(batch_size=2, epochs=3)
    keys = [
        k
        for seed in (0, 1)
        for c in ("0", "1")
        for index in (ADAPTING, 0, 1, 2)
        for k in feed_of(8, 8, seed=seed).steps(c, index, work).keys.tolist()
    ]
    assert len(set(keys)) == len(keys) == 2 * 2 * 4 * 12 and min(keys) >= 0


# Poisson sampling.


def test_poisson_draws_each_example_with_its_chance_by_itself() -> None:
    work = Work(batch_size=3, steps=3000, poisson=True)
    batches = order(feed_of(12).steps("0", 0, work))
    sizes = torch.tensor([float(len(b)) for b in batches])
    chance = 3 / 12
    assert abs(float(sizes.mean()) - 3) < 4 * (12 * chance * (1 - chance) / 3000) ** 0.5
    assert abs(float(sizes.var()) - 12 * chance * (1 - chance)) < 0.25, "binomial, not fixed"
    counts = Counter(chain.from_iterable(batches))
    assert all(abs(counts[i] - 3000 * chance) < 4.5 * (3000 * chance * (1 - chance)) ** 0.5 for i in range(12))
    assert any(not b for b in batches), "some steps are empty"


def test_an_empty_poisson_step_is_live_and_has_a_masked_example() -> None:
    steps = feed_of(2).steps("0", 0, Work(batch_size=1, steps=30, poisson=True))
    empty = [b for b in steps if not b["real"].any()]
    assert empty and all(bool(b["live"]) and len(b["x"]) == 1 for b in empty)
    assert len({int(b["key"]) for b in empty}) == len(empty)


def test_poisson_epochs_are_as_many_steps_as_a_pass_has_batches() -> None:
    assert len(feed_of(10).steps("0", 0, Work(batch_size=4, epochs=2, poisson=True))) == 6
    assert all(len(b) == 3 for b in order(feed_of(3).steps("0", 0, Work(batch_size=5, steps=4, poisson=True))))


# Padding.


def test_padding_reads_the_clients_own_rows_and_says_what_is_real() -> None:
    feed, work = feed_for(), Work(batch_size=4, epochs=2)
    each = [feed.steps(c, 0, work) for c in CLIENTS]
    whole = pad(each)
    for i, (client, steps) in enumerate(zip(CLIENTS, each, strict=True)):
        mine = whole.of_client(tuple(t[i] for t in whole.per_client()))
        own = set(feed.rows[client]["train"].tolist())
        assert set(mine.rows.tolist()) <= own and set(mine.rows[mine.picks].flatten().tolist()) <= own
        assert int(mine.present.sum()) == SIZES[i] and int(mine.live.sum()) == len(steps)
        padded = [batch for batch in mine if batch["live"]]
        for a, b in zip(padded, steps, strict=True):
            assert torch.equal(a["y"][a["real"]], b["y"]) and torch.equal(a["x"][a["real"]], b["x"]) and a["key"] == b["key"]
        assert not any(batch["real"].any() for batch in mine if not batch["live"])
        assert torch.equal(mine.everything()["x"][mine.present], steps.everything()["x"])


def test_the_table_is_never_copied_per_client() -> None:
    feed = feed_for()
    each = [feed.steps(c, 0, Work(batch_size=4, epochs=1)) for c in CLIENTS]
    assert all(s.table["x"] is feed.x for s in each) and pad(each).table["x"] is feed.x


def test_padded_batches_have_a_client_axis_and_masks() -> None:
    feed = feed_for()
    whole = pad_batches([feed.batch(c, "validation") for c in CLIENTS[:4]])
    assert whole["x"].shape == (4, 3, 6) and whole["real"].sum(1).tolist() == [0, 0, 2, 3]
    assert whole["live"].tolist() == [False, False, True, True] and whole["key"].shape == (4,)


def test_a_batch_is_a_whole_split() -> None:
    feed = feed_for()
    batch = feed.batch("c3", "validation")
    assert torch.equal(batch["x"], feed.x[feed.rows["c3"]["validation"]]) and bool(batch["real"].all())
    assert feed.size("c3") == 12 and feed.size("c3", "validation") == 3
    assert not feed.batch("c1", "validation")["live"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0, "epochs": 1},
        {"batch_size": 1},
        {"batch_size": 1, "epochs": 1, "steps": 1},
        {"batch_size": 1, "epochs": 0},
        {"batch_size": 1, "steps": -1},
    ],
)
def test_no_amount_of_work_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError) as refusal:
        Work(**wrong)
    assert "either epochs or steps" in refusal.value.hint


def test_a_client_without_training_rows_is_refused_by_name() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    feed = Feed(x=torch.zeros(3, 2), y=torch.zeros(3), rows={"empty": {"train": none, "validation": none, "test": none}})
    with pytest.raises(TooFewExamples, match="empty"):
        feed.steps("empty", 0, Work(batch_size=2, epochs=1))


@given(
    st.lists(sizes, min_size=1, max_size=6),
    batch_sizes,
    st.integers(-1, 6),
    st.integers(1, 9),
    st.sampled_from(["epochs", "steps", "continuing"]),
    st.sampled_from(["even", "short"]),
    st.booleans(),
)
def test_a_cohort_is_fed_at_once_with_what_each_client_would_draw_alone(
    sizes: list[int], size: int, index: int, amount: int, kind: str, last_batch: Literal["even", "short"], poisson: bool
) -> None:
    feed = feed_of(*sizes)
    work = Work(
        batch_size=size,
        epochs=amount if kind == "epochs" else None,
        steps=None if kind == "epochs" else amount,
        continuing=kind == "continuing",
        last_batch=last_batch,
        poisson=poisson,
    )
    clients = list(feed.rows)
    each = [feed.steps(c, index, work) for c in clients]
    whole, padded = feed.cohort(clients, index, work), pad(each)
    assert all(torch.equal(a, b) for a, b in zip(whole.per_client(), padded.per_client(), strict=True))
    assert [feed.count(c, index, work) for c in clients] == list(map(len, each))


def test_batches_of_several_clients_are_those_of_each_padded() -> None:
    feed = feed_for()
    for split in ("validation", "test"):
        whole, padded = feed.batches(CLIENTS, split), pad_batches([feed.batch(c, split) for c in CLIENTS])
        assert all(torch.equal(whole[k], padded[k]) for k in padded)
    assert feed.batches(["c1"], "validation")["x"].shape == (1, 0, 6)
