"""Processes that die at random, again and again: every study ends bit-equal to one in which nobody died."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor, stack

from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import personal_state, server_state

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 25


@pytest.fixture
def federation(tmp_path: Path, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path, NODES, fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def plan_named(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))


def children(fork: Path) -> list[int]:
    """Guards, trainers and server code: what the fork server has forked."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(fork).encode() in (place / "cmdline").read_bytes() and _parent(place) == os.getpid():
                return [int(pid) for pid in (place / "task" / place.name / "children").read_text().split()]
    raise AssertionError("the fork server is not there")


def _parent(place: Path) -> int:
    return int((place / "stat").read_text().rpartition(")")[2].split()[1])


def kill_coordinator(federation: Federation, chance: random.Random, fork: Path) -> str:
    federation.coordinator.kill()
    federation.start_coordinator()
    return "coordinator"


def kill_agent(federation: Federation, chance: random.Random, fork: Path) -> str:
    node = chance.choice(NODES)
    federation.nodes[node].kill()
    federation.start_node(node)
    return f"agent of {node}"


def kill_child(federation: Federation, chance: random.Random, fork: Path) -> str:
    pid = chance.choice(sorted(children(fork)))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return "a guard, a trainer or the server code"


def kill_several(federation: Federation, chance: random.Random, fork: Path) -> str:
    """A node comes back while its coordinator is away."""
    federation.coordinator.kill()
    node = chance.choice(NODES)
    federation.nodes[node].kill()
    federation.start_node(node, wait=False)
    federation.start_coordinator()
    return f"coordinator and agent of {node}"


FAULTS: list[Callable[[Federation, random.Random, Path], str]] = [
    kill_coordinator,
    kill_agent,
    kill_child,
    kill_child,
    kill_several,
]


def soak(federation: Federation, fork: Path, seconds: float) -> int:
    """Studies one after another for so long; how many processes were killed."""
    seed = int(os.environ.get("FREEHOLD_SOAK_SEED") or random.SystemRandom().getrandbits(32))
    chance = random.Random(seed)
    plan = plan_named("undisturbed")
    federation.finished(federation.run(plan))
    undisturbed = server_state(federation, runs_of(plan)[0].id)
    until, number, faults = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until or not number:
        plan = plan_named(f"soaked-{number}")
        digest = federation.run(plan)
        while (study := federation.study(digest)).state == "running":
            fault = chance.choice(FAULTS)
            pause(federation, chance.random() * 0.1)
            print(f"seed {seed}, study {number}, round {study.runs[0].round}: {fault(federation, chance, fork)}")
            faults += 1
            federation.until(partial(moved, federation, digest, study.runs[0].round))
        check(federation, plan, undisturbed)
        number += 1
    return faults


def pause(federation: Federation, seconds: float) -> None:
    """So that faults do not always come at the same place in a round."""
    end = time.monotonic() + seconds
    federation.until(lambda: time.monotonic() >= end)


def moved(federation: Federation, digest: str, round: int) -> bool:
    study = federation.study(digest)
    return study.state != "running" or study.runs[0].round > round


def check(federation: Federation, plan: Plan, undisturbed: dict[str, Tensor]) -> None:
    run = runs_of(plan)[0].id
    results = federation.finished(federation.run(plan))
    assert {r.round: r.heard for r in results.rounds if r.round < ROUNDS} == dict.fromkeys(range(ROUNDS), NODES)
    state = server_state(federation, run)
    assert all(state[key].equal(value) for key, value in undisturbed.items())
    own = [personal_state(federation, node, run) for node in NODES]
    for key in own[0]:
        assert stack([personal[key] for personal in own]).mean(0).allclose(state[f"control/{key}"], atol=1e-6)


def test_processes_die_at_random(federation: Federation, fork: Path) -> None:
    assert soak(federation, fork, 45.0) > 5


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_processes_die_at_random_for_half_an_hour(federation: Federation, fork: Path) -> None:
    assert soak(federation, fork, 1800.0) > 200
