"""The benchmark of the simulator at sizes that say nothing: all do the same work, and its figures are what they claim."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.by_hand import by_hand
from benchmarks.simulation import goals, run, scale, start
from benchmarks.simulation.contender import Contender, Disagrees, allowed, apart
from benchmarks.simulation.ours import EXECUTORS, Ours, takes
from benchmarks.simulation.peer import PEERS, ROUNDS_GIVEN, write
from benchmarks.simulation.plain import Plain
from benchmarks.simulation.plot import plot
from benchmarks.simulation.timing import Gemm, race, ratio, summary
from benchmarks.simulation.workers.given import Given
from benchmarks.simulation.works import WORKLOADS, Ready, flop, module_of, ready, sizes
from benchmarks.table import tables

SIZES = {"W2a": (2, 4), "W2b": (1, 3), "W3a": (2, 3), "W3b": (2, 3)}
PARAMETERS = {"W1a": 7_850, "W1b": 159_010, "W2a": 1_206_590, "W2b": 6_603_710, "W3a": 114_266, "W3b": 69_114, "W4": 64_033}
FLOP = {"W1a": 31e3, "W1b": 0.64e6, "W2a": 72e6, "W2b": 103e6, "W3a": 25e6, "W3b": 16e6, "W4": 200}
BY_HAND = ("W1a", "W1b", "W1b-E5", "W4")


def tiny(name: str) -> Ready:
    clients, samples = SIZES.get(name, (5, 12))
    return ready(replace(WORKLOADS[name], clients=clients, samples=samples, batch=5))


def after_two_rounds(contender: Contender) -> Mapping[str, Tensor]:
    for index in (0, 1):
        contender.round(index)
    return contender.outcome()


@pytest.mark.parametrize("name", WORKLOADS)
def test_freehold_does_the_work_of_the_plain_loop(name: str) -> None:
    made = tiny(name)
    # Neither attention nor the GRU has kernels on a processor that know many models at once, and torch says so.
    ours, plain = Ours(made, "loop" if name in ("W3a", "W3b") else None), Plain(made)
    theirs, reference = after_two_rounds(ours), after_two_rounds(plain)
    assert apart(theirs, reference) <= allowed(reference, made.task.init)


@pytest.mark.parametrize("name", BY_HAND)
def test_code_by_hand_does_the_work_of_the_plain_loop(name: str) -> None:
    made = ready(replace(WORKLOADS[name], clients=20, samples=17))  # more than one chunk, and repeated items
    hand = by_hand(made)
    assert hand is not None
    assert apart(after_two_rounds(hand), after_two_rounds(Plain(made))) < 1e-5


def test_code_by_hand_is_of_fedavg_only() -> None:
    assert by_hand(tiny("W1b-ditto")) is None
    assert by_hand(tiny("DP")) is None


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_are_those_that_were_defined(name: str) -> None:
    made = tiny(name)
    assert sum(p.numel() for p in module_of(made.workload, made.task.init).parameters()) == PARAMETERS[name]
    assert flop(made.workload) == pytest.approx(FLOP[name], rel=0.05)


def test_drawn_rows_are_the_feeds() -> None:
    made = ready(replace(WORKLOADS["W1b-E5"], clients=3, samples=23))
    for client in made.clients:
        steps = made.feed.steps(client, 4, made.work)
        fed = [steps.rows[pick[real]].tolist() for pick, real in zip(steps.picks, steps.real, strict=True)]
        assert [rows.tolist() for rows in made.drawn(client, 4)] == fed


def test_sizes_are_uneven_and_as_large_as_said() -> None:
    drawn = sizes(10_000, 50)
    assert sum(drawn) / len(drawn) == pytest.approx(50, rel=0.03)
    assert min(drawn) < 15 < 120 < max(drawn)


def test_a_worker_reads_what_was_written(tmp_path: Path) -> None:
    made = tiny("W1b")
    write(made, tmp_path)
    given = Given(tmp_path)
    for index in (0, 3, ROUNDS_GIVEN + 3):  # after the last, the first again
        for number, client in enumerate(made.clients):
            expected = made.drawn(client, index % ROUNDS_GIVEN)
            for (x, y), at in zip(given.batches(index, number), expected, strict=True):
                assert torch.equal(x, made.feed.x[at])
                assert torch.equal(y, made.feed.y[at])
    assert all(torch.equal(given.init[k], v) for k, v in made.task.init.items())
    assert all(torch.equal(p, made.task.init[k]) for k, p in given.module().named_parameters())


def test_peers_take_the_work_that_they_can_do() -> None:
    assert [name for name, peer in PEERS.items() if peer.does(tiny("W1a"))] == ["flwr", "pfl"]
    assert [name for name, peer in PEERS.items() if peer.does(tiny("DP"))] == ["opacus", "opacus ghost"]
    assert not any(peer.does(tiny("W1b-fedrep")) for peer in PEERS.values())


class Fixed:
    """Takes so long, and says who was asked when."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def round(self, index: int) -> float:
        self.log.append((self.name, index))
        return self.seconds

    def outcome(self) -> Mapping[str, Tensor]:
        return {"w": torch.ones(2)}

    def close(self) -> None:
        pass


def test_contenders_take_turns() -> None:
    log: list[tuple[str, int]] = []
    seconds = race({"a": Fixed("a", 1.0, log), "b": Fixed("b", 2.0, log)}, rounds=2, start=5)
    assert log == [("a", 5), ("b", 5), ("b", 6), ("a", 6)]
    assert seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_ratio_is_of_medians_and_pairs_turns() -> None:
    assert ratio([6.0, 6.0, 60.0], [2.0, 2.0, 2.0]).ratio == 3.0
    ours = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert ratio([2 * s for s in ours], ours) == (2.0, 2.0, 2.0)  # what disturbs both does not spread
    apart_ = ratio([2.0, 4.0, 6.0, 8.0, 10.0], [5.0, 1.0, 4.0, 2.0, 3.0])
    assert apart_.low < apart_.ratio < apart_.high


def test_a_summary_has_shares_of_the_peak() -> None:
    told = summary({"plain": [4.0, 4.0], "freehold": [2.0, 2.0]}, "freehold", flop=100, peak=200.0)
    assert told["freehold"]["share_of_gemm"] == 0.25
    assert told["plain"]["times_ours"] == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert "times_ours" not in told["freehold"]
    assert Gemm(torch.device("cpu"), width=8).flop_per_s([2.0, 1.0]) == 1024


@pytest.mark.parametrize(
    ("low", "floor", "goal", "said"),
    [
        (41.0, 25.0, 40.0, "goal reached"),
        (25.0, 25.0, 40.0, "reached"),
        (24.9, 25.0, 40.0, "missed"),
        (3.0, None, 40.0, "measured"),
        (None, 25.0, 40.0, "not timed"),
        (0.95, 0.9, None, "reached"),
    ],
)
def test_the_lower_bound_counts(low: float | None, floor: float | None, goal: float | None, said: str) -> None:
    assert goals.judged(low, floor, goal) == said


def test_who_does_other_work_is_not_timed() -> None:
    log: list[tuple[str, int]] = []
    with pytest.raises(Disagrees, match=r"gives \['w'\]"):
        run.agreed(Fixed("a", 1.0, log), Plain(tiny("W1a")), tiny("W1a"))
    made = tiny("W1a")
    ours, plain = Ours(made), Plain(made)
    plain.round(0)
    ours.round(1)  # other batches
    with pytest.raises(Disagrees, match="allowed"):
        run.agreed(ours, plain, made)


def test_a_kink_of_float32_is_none_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny("W2a")
    ours, plain = Ours(made), Plain(made)
    ours.round(0)
    plain.round(0)
    assert run.in_double(ours, made) < 1e-12
    monkeypatch.setattr(run, "apart", lambda theirs, reference: 5e-3 if next(iter(theirs.values())).dtype.itemsize == 4 else 0.0)
    assert run.agreed(ours, plain, made) == 5e-3
    with pytest.raises(Disagrees, match="allowed"):  # of others we do not know what they do in float64
        run.agreed(plain, plain, made)


def test_a_comparison_becomes_tables_json_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Gemm", lambda device: Gemm(device, width=16))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    told = () if takes("executor") else ("stacked",)
    works = {name: run.compare(tiny(name), rounds=2, executors=told) for name in ("W1a", "DP")}
    found = {"works": works, "goals": [verdict._asdict() for verdict in goals.verdicts(works)]}
    assert set(works["W1a"]["seconds"]) == {"plain", "freehold", "by hand"}
    assert all(len(times) == 2 for times in works["W1a"]["seconds"].values())
    assert bool(works["W1a"]["missing"]) == bool(told)
    points = [{"clients": n, "cpu_s": n / 100, "cpu_ms_each": 10.0} for n in (100, 1000)]
    found["start"] = {"freehold": {"first_round_s": 1.0, "first_round_cpu_s": 0.9, "peak_mb": 300.0}}
    found["growth"] = {
        "asked": points,
        "slope": scale.slope(points),
        "population": [{"population": 1000, "cohort": 100, "cpu_s": 0.1}],
        "processes": {"missing": "one process"},
    }
    again = json.loads(json.dumps(found))
    told_lines = tables("simulation", again)
    assert "by hand" in told_lines and "two processes: one process" in told_lines
    assert {line["said"] for line in found["goals"]} <= {"goal reached", "reached", "missed", "measured", "not timed"}
    plot(again, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_growth_is_a_slope_of_logarithms() -> None:
    assert scale.slope([{"clients": n, "cpu_s": 3 * n**2} for n in (10, 100, 1000)]) == pytest.approx(2)


def test_two_processes_are_compared_with_one() -> None:
    assert scale.speedup([4.0, 4.0], [2.0, 2.0]) == {"speedup": 2.0, "low": 2.0, "high": 2.0}
    lines = list(goals.others({"freehold": {"first_round_s": 3.1, "peak_mb": 500.0}}, {"processes": {"missing": "one core"}}))
    assert [line.said for line in lines] == ["missed", "reached", "not timed"]
    of_start, growth = {"freehold": {"first_round_s": 1.0, "peak_mb": 2.0}}, {"processes": scale.speedup([4.0], [2.0])}
    assert [line.low for line in goals.others(of_start, growth)] == [1.0, 2.0, 2.0]


def test_a_population_is_as_large_as_one_likes_and_costs_nothing() -> None:
    made = scale.populated(1_000_000)
    assert len(made.feed.rows) == 1_000_000
    rows = made.feed.rows["999999"]["train"]
    assert len(rows) >= 2 and int(rows.max()) < scale.TABLE
    assert scale.population((300,), cohort=3)[0]["cpu_s"] > 0
    assert scale.asked((4,))[0]["clients"] == 4


def test_the_first_round_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = tmp_path / "noted"
    monkeypatch.setenv(start.NOTED, str(noted))
    made = tiny("W1a")
    contender = Ours(replace(made, algorithm=start.first(made.task)))
    contender.round(0)
    kept = noted.read_text(encoding="utf-8")
    contender.round(1)
    assert noted.read_text(encoding="utf-8") == kept
    assert len(kept.split()) == 2
    assert apart(contender.outcome(), after_two_rounds(Plain(made))) < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_flag_is_refused_in_one_line() -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        run.check("cuda")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="no work W9; there are W1a"):
        run.run(["W9"])
    with pytest.raises(SystemExit, match="no peer fate"):
        run.run([], ["fate"])
    if not takes("executor"):
        with pytest.raises(ValueError, match=f"no executor {EXECUTORS[1]}"):
            Ours(tiny("W1a"), EXECUTORS[1])
