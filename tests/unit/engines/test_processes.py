"""A crew of processes: what is killed is done again, what fails is told, and nothing is left behind."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from freehold.core import ClientResult, Round, Steps, Tree, train, tree_map
from freehold.engines import Feed, LoopEngine, Processes, Work
from freehold.engines.shards import balanced
from freehold.errors import Diverged, SimulationError, WorkersLost
from tests.laws.cases import build, task_of
from tests.problems import CLIENTS, distance, feed_for

WORK = Work(batch_size=4, epochs=1)
NAMES = CLIENTS[:6]


def taken(lines: Path) -> bool:
    """Whether there was a line, which is gone now; workers that look at the same time take one each."""
    with lines.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = file.read().splitlines()
        file.seek(0)
        file.truncate()
        file.write("\n".join(found[1:]))
    return bool(found)


def built(feed: Feed, *, name: str = "ditto", killing: Path | None = None, failing: str = "") -> LoopEngine:
    """An engine whose first client of a round kills its process as long as the file `killing` has lines, or fails."""
    algorithm = build(name, task_of("plain"))

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        if killing is not None and killing.exists() and taken(killing):
            os.kill(os.getpid(), signal.SIGKILL)
        if failing == "value":
            raise ValueError("no such thing")
        if failing == "file":
            Path("/nonexistent/model").read_text(encoding="utf-8")
        result = algorithm.client_update(round, shared, personal, steps)
        if failing == "wild":
            return result._replace(contribution=tree_map(lambda t: t * float("nan"), result.contribution))
        return result

    return LoopEngine(replace(algorithm, client_update=client_update), feed, WORK)


def run(engine: object, rounds: int = 3) -> tuple[Tree, Mapping[str, Tree]]:
    """The server and the personal states after some rounds."""
    algorithm = build("ditto", task_of("plain"))
    *_, last = train(algorithm, engine, NAMES, rounds=rounds, cohort=4)  # type: ignore[arg-type]
    return last.server, engine.store.committed()  # type: ignore[attr-defined]


def of(crew: Processes, **how: object) -> object:
    return crew.engine(build("ditto", task_of("plain")), feed_for("plain"), partial(built, **how))  # type: ignore[arg-type]


def without_rows(feed: Feed, *clients: str) -> Feed:
    """The same feed, in which these have no training data."""
    none = torch.zeros(0, dtype=torch.int64)
    return replace(feed, rows={c: {**splits, "train": none} if c in clients else splits for c, splits in feed.rows.items()})


@pytest.mark.parametrize("empty", [NAMES[:1], NAMES[1:]], ids=["one", "all-but-one"])
def test_clients_without_training_data_are_left_out_and_keep_the_state_that_they_had(empty: tuple[str, ...]) -> None:
    algorithm, feed = build("ditto", task_of("plain")), without_rows(feed_for("plain"), *empty)
    crew = Processes(2)
    try:
        there, here = crew.engine(algorithm, feed, built), built(feed)
        shared, round_ = algorithm.broadcast(algorithm.init()), Round(0, len(NAMES), len(NAMES))
        for engine in (here, there):
            found = engine.collect(round_, shared, NAMES)
            engine.settle(counted=True)
            assert found.clients == len(NAMES) - len(empty) and tuple(engine.execution.skipped) == empty
        assert there.store.committed().keys() == here.store.committed().keys()
        said = [engine.predict(shared, NAMES, ["test"]) for engine in (here, there)]
        assert all(distance(said[0][c], said[1][c]) < 1e-9 for c in NAMES)
    finally:
        crew.close()


@pytest.fixture(scope="module")
def crew() -> Iterator[Processes]:
    found = Processes(2)
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected() -> tuple[Tree, Mapping[str, Tree]]:
    return run(built(feed_for("plain")))


def close(a: tuple[Tree, Mapping[str, Tree]], b: tuple[Tree, Mapping[str, Tree]]) -> bool:
    return all(distance(dict(sorted(x.items())), dict(sorted(y.items()))) < 1e-9 for x, y in zip(a, b, strict=True))


def test_a_worker_that_is_killed_in_a_round_costs_what_it_was_computing(
    crew: Processes, expected: tuple[Tree, Mapping[str, Tree]], tmp_path: Path
) -> None:
    (tmp_path / "kill").write_text("once")
    engine = of(crew, killing=tmp_path / "kill")
    before = {child.pid for child in multiprocessing.active_children()}
    assert close(run(engine), expected)
    assert not (tmp_path / "kill").read_text()
    assert len(before - {child.pid for child in multiprocessing.active_children()}) == 1


def test_states_outlive_the_processes_that_made_them(crew: Processes, expected: tuple[Tree, Mapping[str, Tree]]) -> None:
    engine = of(crew)
    algorithm = build("ditto", task_of("plain"))
    for report in train(algorithm, engine, NAMES, rounds=3, cohort=4):  # type: ignore[arg-type]
        if report.round.index == 1:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    assert close((report.server, engine.store.committed()), expected)  # type: ignore[attr-defined]


def test_a_round_that_does_not_count_leaves_the_states_as_they_were(crew: Processes) -> None:
    engine = of(crew)
    shared = build("ditto", task_of("plain")).init()
    for counted in (True, False):
        engine.collect(Round(0, 4, 6), shared, NAMES[:4])  # type: ignore[attr-defined]
        engine.settle(counted)  # type: ignore[attr-defined]
        if counted:
            kept = engine.store.committed()  # type: ignore[attr-defined]
    assert distance(engine.store.committed(), kept) == 0 and set(kept) == set(NAMES[:4])  # type: ignore[attr-defined]
    again = of(crew)
    again.store.restore(kept)  # type: ignore[attr-defined]
    assert distance(again.store.committed(), kept) == 0  # type: ignore[attr-defined]


def test_who_is_killed_again_and_again_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "kill").write_text("\n".join("x" * 30))
    others, crew = set(multiprocessing.active_children()), Processes(1)
    with pytest.raises(WorkersLost, match="killed by signal 9"):
        run(of(crew, killing=tmp_path / "kill"))
    assert set(multiprocessing.active_children()) <= others
    crew.close()


def test_what_a_client_raises_is_raised_here_and_the_crew_goes_on(
    crew: Processes, expected: tuple[Tree, Mapping[str, Tree]]
) -> None:
    with pytest.raises(ValueError, match="no such thing") as told:
        run(of(crew, failing="value"))
    assert "client_update" in told.value.__notes__[0]
    with pytest.raises(FileNotFoundError):
        run(of(crew, failing="file"))
    with pytest.raises(Diverged, match="Round 0, client c"):
        run(of(crew, failing="wild"))
    assert close(run(of(crew)), expected)


def test_code_that_another_process_cannot_have_is_refused_with_a_remedy(
    crew: Processes, monkeypatch: pytest.MonkeyPatch, expected: tuple[Tree, Mapping[str, Tree]]
) -> None:
    here_only = types.ModuleType("nowhere_else")
    exec("def build(feed): return feed", here_only.__dict__)
    monkeypatch.setitem(sys.modules, "nowhere_else", here_only)
    for build_ in (here_only.build, lambda feed: built(feed)):
        with pytest.raises(SimulationError, match="another process") as told:
            crew.engine(build("ditto", task_of("plain")), feed_for("plain"), build_)
        assert "--processes 1" in told.value.hint
    assert close(run(of(crew)), expected)


def test_float32_agrees_too(crew: Processes) -> None:
    feed = feed_for("plain")
    small = Feed(x=feed.x.float(), y=feed.y, rows=feed.rows, seed=feed.seed)
    here, there = half(small), crew.engine(half(small).algorithm, small, half)
    found = [list(train(here.algorithm, each, NAMES, rounds=2, cohort=5))[-1].server for each in (here, there)]
    assert distance(found[0], here.algorithm.init()) > 0 and distance(*found) < 1e-5


def half(feed: Feed) -> LoopEngine:
    """FedAvg on a float32 model."""
    task = task_of("plain")
    return LoopEngine(build("fedavg", replace(task, init=tree_map(lambda t: t.float(), task.init))), feed, WORK)


def test_nothing_is_left_behind() -> None:
    def traces() -> tuple[list[str], int]:
        gc.collect()
        return sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))

    others = set(multiprocessing.active_children())
    segments, descriptors = traces()
    crew = Processes(1)
    for _ in range(2):
        run(of(crew), rounds=2)
    crew.close()
    del crew
    after, open_now = traces()
    assert set(after) <= set(segments)
    assert open_now <= descriptors + 2  # multiprocessing's own tracker, which stays
    assert set(multiprocessing.active_children()) <= others


def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import multiprocessing, sys, signal\n"
        "from tests.unit.engines.test_processes import Processes, of, run\n"
        "if __name__ == '__main__':\n"
        "    crew = Processes(1); run(of(crew), rounds=1)\n"
        "    print(*(c.pid for c in multiprocessing.active_children()), flush=True)\n"
        "    signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 1
    parent.kill()
    parent.communicate()
    for worker in workers:
        assert select.select([worker], [], [], 60)[0]
        os.close(worker)


def test_clients_are_dealt_out_evenly_and_always_alike() -> None:
    sizes = {f"c{i}": 1 + (i * 7919) % 97 for i in range(50)}
    parts = balanced(list(sizes), lambda c: float(sizes[c]), 3)
    assert sorted(c for part in parts for c in part) == sorted(sizes)
    loads = [sum(sizes[c] for c in part) for part in parts]
    assert max(loads) - min(loads) <= 1 + max(sizes.values()) // 10
    assert parts == balanced(list(sizes), lambda c: float(sizes[c]), 3)
    assert balanced(["a"], lambda c: 1.0, 2) == (("a",), ())
    assert torch.tensor([len(part) for part in parts]).min() > 0
