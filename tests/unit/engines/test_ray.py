"""The Ray engine on two real nodes: the vector engine's results, and those of a lost node's clients too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import ray

from freehold.core import Tree, train
from freehold.engines import Feed, LoopEngine, ShardedEngine, VectorEngine, Work
from freehold.engines.ray import MIRRORED_EVERY, RayCluster
from freehold.errors import ClusterUnfit, Diverged
from freehold.study import Interrupted, Settings
from tests.laws.cases import build, task_of
from tests.laws.test_engines_agree import Outcome, outcome
from tests.problems import CLIENTS, distance, feed_for
from tests.rays import Cluster
from tests.unit.engines.test_processes import built as failing
from tests.unit.study.test_compare import _StopAfter, compared

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of which there are many
    pytest.mark.xdist_group("ray"),
]

WORK = Work(batch_size=4, epochs=1)
FEED = feed_for("mixed")


def built(name: str, feed: Feed) -> LoopEngine:
    """What a worker builds."""
    return VectorEngine(build(name, task_of("mixed")), feed, WORK)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as found:
        yield found


@pytest.fixture(scope="module")
def crew(cluster: Cluster) -> Iterator[RayCluster]:
    found = RayCluster(cluster.address)
    yield found
    found.close()
    assert not ray.is_initialized()


def ran(engine: LoopEngine | ShardedEngine, rounds: int, stop: Mapping[int, partial[None]] | None = None) -> tuple[Tree, Tree]:
    """The server and the personal states after some rounds; after some of them something happens."""
    for report in train(engine.algorithm, engine, CLIENTS[:8], rounds=rounds, cohort=5):
        if stop and report.round.index in stop:
            stop[report.round.index]()
    return report.server, dict(sorted(engine.store.committed().items()))


@pytest.mark.parametrize("name", ["ditto", "scaffold", "fedavg", "ifca"])
def test_ray_gives_what_the_vector_engine_gives(name: str, crew: RayCluster) -> None:
    here = built(name, FEED)
    there = crew.engine(here.algorithm, FEED, partial(built, name))
    assert crew.places == 2
    found = [outcome(here.algorithm, each, clients=CLIENTS[:6], rounds=2, cohort=4) for each in (here, there)]
    for part, a, b in zip(Outcome._fields, *found, strict=True):
        assert distance(a, b) < 1e-9, part


def test_states_are_given_back_and_taken_from(crew: RayCluster) -> None:
    algorithm = built("ditto", FEED).algorithm
    _, states = ran(crew.engine(algorithm, FEED, partial(built, "ditto")), 2)
    there = crew.engine(algorithm, FEED, partial(built, "ditto"))
    there.store.restore(states)
    assert distance(dict(sorted(there.store.committed().items())), states) == 0
    here, shared = built("ditto", FEED), algorithm.broadcast(algorithm.init())
    here.store.restore(states)
    assert distance(there.evaluate(shared, CLIENTS, "test"), here.evaluate(shared, CLIENTS, "test")) < 1e-9
    assert distance(there.adapted(shared, "c1"), here.adapted(shared, "c1")) < 1e-9


def test_what_a_client_raises_on_ray_is_raised_here(crew: RayCluster) -> None:
    algorithm, feed = build("ditto", task_of("plain")), feed_for("plain")
    for kind, error in (("wild", Diverged), ("value", ValueError)):
        with pytest.raises(error):
            ran(crew.engine(algorithm, feed, partial(failing, failing=kind)), 1)


def test_too_many_workers_are_refused(crew: RayCluster, cluster: Cluster) -> None:
    with pytest.raises(ClusterUnfit, match="processors free"):
        RayCluster(cluster.address, 7).engine(built("fedavg", FEED).algorithm, FEED, partial(built, "fedavg"))


def test_the_clients_of_a_lost_worker_are_done_again_elsewhere(crew: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "kill").write_text("once")
    expected = ran(failing(feed_for("plain")), 3)
    alone = crew.engine(build("ditto", task_of("plain")), feed_for("plain"), partial(failing, killing=tmp_path / "kill"))
    found = ran(alone, 3)
    assert all(distance(a, b) < 1e-9 for a, b in zip(expected, found, strict=True))
    assert len(set(crew.hosts)) == 1 and not (tmp_path / "kill").read_text()
    crew.close()


def test_the_clients_of_a_lost_node_are_done_again_elsewhere(crew: RayCluster, cluster: Cluster) -> None:
    """Three rounds after the driver had its last copy of the states."""
    crew.close()
    here, again = built("ditto", FEED), RayCluster(cluster.address)
    there = again.engine(here.algorithm, FEED, partial(built, "ditto"))
    rounds = MIRRORED_EVERY + 5
    lost = {MIRRORED_EVERY + 2: partial(cluster.kill, 1)}
    try:
        for a, b in zip(ran(here, rounds), ran(there, rounds, lost), strict=True):
            assert distance(a, b) < 1e-9
        assert len(set(again.hosts)) == 1
    finally:
        again.close()


def test_a_study_on_what_is_left_of_the_cluster_is_interrupted_and_goes_on_without_it(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        compared(settings=Settings(engine="ray", address=cluster.address, checkpoint=tmp_path, listener=_StopAfter(6)))
    found, expected = compared(settings=Settings(checkpoint=tmp_path, resume=True)), compared()
    for row, other in zip(found.rows, expected.rows, strict=True):
        for a, b in zip(row.results, other.results, strict=True):
            assert a.figures.keys() == b.figures.keys()
            assert all(a.figures[c] == pytest.approx(b.figures[c], abs=1e-5) for c in a.figures)
