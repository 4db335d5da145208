"""The coordinator's store in a real PostgreSQL: the same study, the same bits, also when the database goes away in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from freehold.errors import StudyRefused
from freehold.plan import Plan, RoundPolicy, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import server_state
from tests.postgres import Postgres, postgres

NODES = ["cleveland", "switzerland"]
ROUNDS = 6


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, database: Postgres, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("p"), NODES, fork=fork, settings={"database": database.url})
    found.start()
    try:
        yield found
    finally:
        found.stop()


def plan_named(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))


def test_the_database_goes_away_in_the_middle_of_a_study(federation: Federation, database: Postgres) -> None:
    quiet = plan_named("quiet")
    federation.finished(federation.run(quiet))
    disturbed = plan_named("disturbed")
    digest = federation.run(disturbed)
    federation.coordinator.wait_for("round.closed", run=runs_of(disturbed)[0].id, round=1)
    database.stop("immediate")
    database.start()
    results = federation.finished(digest)
    assert all(r.heard == NODES for r in results.rounds if r.round < ROUNDS)
    expected, found = (server_state(federation, runs_of(p)[0].id, url=database.url) for p in (quiet, disturbed))
    assert expected.keys() == found.keys() and all(found[k].equal(v) for k, v in expected.items())


def test_the_coordinator_takes_up_its_studies_from_postgresql(federation: Federation, database: Postgres) -> None:
    plan = plan_named("killed")
    federation.coordinator.stop()
    federation.start_coordinator("coordinator.round.committed=kill@3")
    digest = federation.run(plan)
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    federation.finished(digest)
    expected, found = (server_state(federation, runs_of(p)[0].id, url=database.url) for p in (plan_named("quiet"), plan))
    assert all(found[k].equal(v) for k, v in expected.items())


def test_asynchronous_rounds_are_refused_where_other_coordinators_may_be(federation: Federation) -> None:
    plan = heart_plan("fedavg", name="buffered", rounds=ROUNDS, nodes=len(NODES))
    policy = RoundPolicy(mode="asynchronous", buffer=2, least_nodes=len(NODES))
    with pytest.raises(StudyRefused, match="database of its own"):
        federation.run(msgspec.structs.replace(plan, round=policy))
